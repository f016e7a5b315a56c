-- The read models. Each table is written by the events of one log only, and rows of different logs refer to each other
-- by id without a foreign key: so they come out the same whichever log arrives first.
CREATE TABLE namespaces (
    id          text PRIMARY KEY COLLATE "C",
    kind        text   NOT NULL CHECK (kind IN ('group', 'workspace')),
    -- Empty for a top-level group.
    parent_id   text   NOT NULL COLLATE "C",
    name        text   NOT NULL COLLATE "C",
    description text   NOT NULL,
    -- In seconds; of a workspace that says so.
    max_job_duration bigint,
    version     bigint NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);
CREATE UNIQUE INDEX namespaces_by_parent ON namespaces (parent_id, name);

CREATE TABLE managed_identities (
    id            text PRIMARY KEY COLLATE "C",
    group_id      text   NOT NULL COLLATE "C",
    name          text   NOT NULL COLLATE "C",
    description   text   NOT NULL,
    -- `tharsis.identity.v1.Configuration`.
    configuration bytea  NOT NULL,
    version       bigint NOT NULL,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL
);
CREATE UNIQUE INDEX managed_identities_by_group ON managed_identities (group_id, name);

CREATE TABLE assignments (
    workspace_id        text NOT NULL COLLATE "C",
    managed_identity_id text NOT NULL COLLATE "C",
    PRIMARY KEY (workspace_id, managed_identity_id)
);
