-- Since when a private half is kept. One that no event names long after that is of a process which ended in between.
ALTER TABLE signing_keys ADD COLUMN made timestamptz NOT NULL DEFAULT now();
