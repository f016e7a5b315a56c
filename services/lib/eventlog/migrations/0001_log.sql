-- The head row. Every append goes through it, so positions are dense and in commit order.
CREATE TABLE log_head (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- Made with the database: a follower that meets another one stops.
    epoch     uuid    NOT NULL DEFAULT gen_random_uuid(),
    position  bigint  NOT NULL DEFAULT 0,
    -- Counts the changes of events, facts and commands: what was read at a revision holds as long as it is the same.
    revision  bigint  NOT NULL DEFAULT 0
);
INSERT INTO log_head DEFAULT VALUES;

CREATE TABLE events (
    position    bigint PRIMARY KEY,
    stream_id   text        NOT NULL COLLATE "C",
    version     bigint      NOT NULL,
    event_id    uuid        NOT NULL,
    event_type  text        NOT NULL,
    payload     bytea       NOT NULL,
    metadata    jsonb       NOT NULL,
    recorded_at timestamptz NOT NULL,
    UNIQUE (stream_id, version)
);

CREATE FUNCTION refuse_change_of_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never changed: % refused', TG_OP;
END
$$;
CREATE TRIGGER events_are_never_changed
    BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_events();

-- What was carried out, so that the same request twice is carried out once and answered alike. For a command that had
-- nothing to change, the positions are those around its place: the first is one behind the last.
CREATE TABLE commands (
    command_id     uuid PRIMARY KEY,
    -- Of the request's content: the same id with another content is a mistake of the caller.
    fingerprint    bytea  NOT NULL,
    first_position bigint NOT NULL,
    last_position  bigint NOT NULL,
    recorded_at    timestamptz NOT NULL,
    reply          bytea  NOT NULL
);

-- What commands decide on beyond their own streams: who holds a name, what is above what, who may do what. Written
-- behind the head row only, by appends or by the follower that keeps a replica of another log's facts.
CREATE TABLE facts (
    key   text PRIMARY KEY COLLATE "C",
    value text NOT NULL COLLATE "C",
    -- Of the log that a replica's fact comes from: with its checkpoint it is all that there is of the replica.
    log   text NOT NULL DEFAULT '' COLLATE "C"
);

-- How far this database has followed the logs of the other services.
CREATE TABLE checkpoints (
    log      text PRIMARY KEY COLLATE "C",
    epoch    uuid   NOT NULL,
    position bigint NOT NULL,
    -- Of the event at the position: a log that went back and grew again has another one there.
    event_id uuid
);
