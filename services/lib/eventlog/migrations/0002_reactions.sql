-- Events, of another log or of our own, by which something may have lost what it depends on. A row is written in the
-- transaction that moves the checkpoint past its event, and goes when all that follows from it is appended.
CREATE TABLE reactions (
    log         text   COLLATE "C",
    position    bigint,
    event_id    uuid   NOT NULL,
    -- What was moved or deleted.
    resource_id text   NOT NULL COLLATE "C",
    PRIMARY KEY (log, position)
);

-- Up to where our own log was looked through for such events.
CREATE TABLE looked_through (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    position  bigint  NOT NULL DEFAULT 0
);
INSERT INTO looked_through DEFAULT VALUES;
