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
    -- Of an alias; it has its source's description, configuration, token settings and type.
    source_id     text COLLATE "C",
    group_id      text   NOT NULL COLLATE "C",
    name          text   NOT NULL COLLATE "C",
    description   text   NOT NULL,
    -- `tharsis.identity.v1.Configuration`.
    configuration bytea  NOT NULL,
    -- `tharsis.identity.v1.TokenSettings`.
    token_settings bytea NOT NULL,
    -- `aws`, …: which configuration it has.
    type          text   NOT NULL COLLATE "C",
    -- Of the name, as those of places.
    grams         integer[] NOT NULL,
    version       bigint NOT NULL,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL
);
CREATE UNIQUE INDEX managed_identities_by_group ON managed_identities (group_id, name);
CREATE INDEX managed_identities_by_source ON managed_identities (source_id, name, id) WHERE source_id IS NOT NULL;

-- What is hidden of what a group or workspace inherits, from there down.
CREATE TABLE masks (
    id           text PRIMARY KEY COLLATE "C",
    namespace_id text NOT NULL COLLATE "C",
    -- The id of an identity, a type of identities, or `*` for all.
    hides        text NOT NULL COLLATE "C",
    -- Ids of identities that are not hidden, each with a space before it.
    exceptions   text NOT NULL COLLATE "C"
);
CREATE INDEX masks_by_namespace ON masks (namespace_id, id);

CREATE TABLE assignments (
    workspace_id        text NOT NULL COLLATE "C",
    managed_identity_id text NOT NULL COLLATE "C",
    PRIMARY KEY (workspace_id, managed_identity_id)
);

-- What can be found by its path, and where everything is that something ever happened to.
--
-- A path is the names from the top, each with a slash behind it: so everything below a place, itself included, is one
-- range of the index, and search, paging, subtrees and what a caller may see are all ranges of it. A move rewrites the
-- paths of what is below, in one statement and in the order of the one log that the table is made of; whatever refers
-- to a place does so by id, and so is at its new path at once, whichever log came first.
--
-- What is deleted stays, for the record of what happened there: as `~<id>/` right below the group that it was deleted
-- from, which is no name, so whoever may see that sees it still, and whoever may only see a new thing of the same name
-- does not. No path is longer than one of as many names as the depth may have, 2,600 bytes: an entry of an index holds
-- no more than 2,704.
CREATE TABLE places (
    id    text PRIMARY KEY COLLATE "C",
    kind  text    NOT NULL CHECK (kind IN ('group', 'workspace')),
    name  text    NOT NULL COLLATE "C",
    path  text    NOT NULL COLLATE "C",
    -- Each one, two and three characters of the name, as numbers: substrings are found by the arrays' own GIN index.
    -- pg_trgm would do the same for three and more, but it is an extension: not everywhere installed, and one for a
    -- whole database, where read models of two versions stand side by side.
    grams integer[] NOT NULL,
    gone  boolean NOT NULL DEFAULT false
);
CREATE INDEX places_by_path ON places (path) WHERE NOT gone;
CREATE INDEX places_gone_by_path ON places (path) WHERE gone;
CREATE INDEX places_by_gram ON places USING gin (grams) WHERE NOT gone;

-- Who holds a membership where: to be listed, and for what a caller may see.
CREATE TABLE members (
    -- Of the membership.
    id           text PRIMARY KEY COLLATE "C",
    namespace_id text    NOT NULL COLLATE "C",
    -- `user:dev/alice`.
    principal    text    NOT NULL COLLATE "C",
    -- The number of `tharsis.access.v1.Role`.
    role         integer NOT NULL,
    version      bigint  NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
CREATE INDEX members_by_principal ON members (principal, id) INCLUDE (namespace_id);
CREATE INDEX members_by_namespace ON members (namespace_id, principal);
CREATE INDEX members_by_creation ON members (namespace_id, created_at, id);
CREATE INDEX members_by_update ON members (namespace_id, updated_at, id);

CREATE TABLE teams (
    id          text PRIMARY KEY COLLATE "C",
    name        text   NOT NULL COLLATE "C",
    description text   NOT NULL,
    version     bigint NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);
CREATE UNIQUE INDEX teams_by_name ON teams (name);
CREATE INDEX teams_by_creation ON teams (created_at, id);
CREATE INDEX teams_by_update ON teams (updated_at, id);

CREATE TABLE team_members (
    team_id   text NOT NULL COLLATE "C",
    -- `user:dev/alice`.
    principal text NOT NULL COLLATE "C",
    added_at  timestamptz NOT NULL,
    PRIMARY KEY (team_id, principal)
);
CREATE INDEX team_members_by_principal ON team_members (principal, team_id);

CREATE TABLE service_accounts (
    id             text PRIMARY KEY COLLATE "C",
    group_id       text   NOT NULL COLLATE "C",
    name           text   NOT NULL COLLATE "C",
    description    text   NOT NULL,
    -- `tharsis.identity.v1.ServiceAccount`, of which only the trust policies are set.
    trust_policies bytea  NOT NULL,
    version        bigint NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
);
CREATE UNIQUE INDEX service_accounts_by_group ON service_accounts (group_id, name);
CREATE INDEX service_accounts_by_creation ON service_accounts (group_id, created_at, id);
CREATE INDEX service_accounts_by_update ON service_accounts (group_id, updated_at, id);

CREATE INDEX namespaces_by_creation ON namespaces (parent_id, created_at, id);
CREATE INDEX namespaces_by_update ON namespaces (parent_id, updated_at, id);
CREATE INDEX managed_identities_by_gram ON managed_identities USING gin (grams);
CREATE INDEX assignments_by_identity ON assignments (managed_identity_id, workspace_id);

CREATE TABLE jobs (
    id           text PRIMARY KEY COLLATE "C",
    workspace_id text NOT NULL COLLATE "C",
    -- The number of `tharsis.issuer.v1.Stage`.
    stage        integer NOT NULL,
    principal    text NOT NULL COLLATE "C",
    -- Who opened it on behalf of that; empty if nobody else did.
    opener       text NOT NULL COLLATE "C",
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz,
    -- A google.protobuf.Duration.
    heartbeat_timeout bytea NOT NULL,
    -- A tharsis.issuer.v1.Module, without attestations; none if nobody has said what it runs.
    module       bytea
);
CREATE INDEX jobs_by_workspace ON jobs (workspace_id, created_at, id);
CREATE INDEX jobs_by_time ON jobs (created_at, id);

-- Each credential that was issued or refused, and each token for a service account. It only grows; old rows would be dropped by their time, by credentials_by_time.
CREATE TABLE credentials (
    -- Of the event in the issuer's log.
    position            bigint PRIMARY KEY,
    -- When the event was: the token says so in whole seconds only, by which nothing can be ordered.
    recorded_at         timestamptz NOT NULL,
    token_id            text NOT NULL COLLATE "C",
    job_id              text NOT NULL COLLATE "C",
    workspace_id        text NOT NULL COLLATE "C",
    managed_identity_id text NOT NULL COLLATE "C",
    -- The identity whose subject the token has, if that is another one: the source of an alias.
    source_id           text COLLATE "C",
    subject             text NOT NULL COLLATE "C",
    audience            text NOT NULL COLLATE "C",
    kid                 text NOT NULL COLLATE "C",
    -- Or refused.
    issued_at           timestamptz NOT NULL,
    -- None if it was refused; then what follows on the identity is empty.
    expires_at          timestamptz,
    -- Why it was refused: reasons, with commas between.
    reasons             text NOT NULL,
    -- For whom it is, if it is none of a job; then what precedes of jobs and identities is empty.
    service_account_id  text COLLATE "C",
    -- The workspace, or the service account's group: where one has to see to see this.
    place_id            text NOT NULL COLLATE "C",
    -- The number of `tharsis.issuer.v1.Stage`; 0 if there is none.
    stage               integer NOT NULL,
    -- How far the logs were known that the decision leans on.
    revision            text NOT NULL,
    -- What a job named that is no identity.
    requested_identity  text NOT NULL COLLATE "C"
);
CREATE INDEX credentials_by_token ON credentials (token_id);
CREATE INDEX credentials_by_job ON credentials (job_id, recorded_at, position);
CREATE INDEX credentials_by_place ON credentials (place_id, recorded_at, position);
CREATE INDEX credentials_by_identity ON credentials (managed_identity_id, recorded_at, position);
CREATE INDEX credentials_by_source ON credentials (source_id, recorded_at, position) WHERE source_id IS NOT NULL;
CREATE INDEX credentials_by_key ON credentials (kid, recorded_at, position);
CREATE INDEX credentials_by_service_account ON credentials (service_account_id, recorded_at, position)
    WHERE service_account_id IS NOT NULL;
-- What is in one place of a thing, for whoever does not see all of that. Each of these is of one expression, which no other
-- index serves: of two columns, a plan may take the index of the thing alone, and read what is hidden.
CREATE INDEX credentials_by_identity_there ON credentials ((managed_identity_id || ' ' || place_id), recorded_at, position);
CREATE INDEX credentials_by_source_there ON credentials ((source_id || ' ' || place_id), recorded_at, position)
    WHERE source_id IS NOT NULL;
CREATE INDEX credentials_by_job_there ON credentials ((job_id || ' ' || place_id), recorded_at, position);
CREATE INDEX credentials_by_service_account_there
    ON credentials ((service_account_id || ' ' || place_id), recorded_at, position) WHERE service_account_id IS NOT NULL;
CREATE INDEX credentials_by_time ON credentials (recorded_at, position);

-- Every event of every log: who did what when, and where. That something was moved out of a group is in a second row,
-- which is shown where the first is not. It only grows; old rows would be dropped by their time, by activities_by_time.
CREATE TABLE activities (
    -- The position, times four, and the number of the log: unique to an event, and of one log in its order.
    id                  bigint NOT NULL,
    at                  timestamptz NOT NULL,
    actor               text NOT NULL COLLATE "C",
    event_type          text NOT NULL COLLATE "C",
    -- What it happened to.
    resource_id         text NOT NULL COLLATE "C",
    -- The group or workspace that one has to see to see this; empty for what is of no such place.
    place_id            text NOT NULL COLLATE "C",
    -- The managed identity that it is about too, if that is not what it happened to.
    managed_identity_id text COLLATE "C",
    -- In the second row of a move, whose place is the group that was left: the place of the first.
    moved_to            text COLLATE "C",
    PRIMARY KEY (id, place_id)
);
CREATE INDEX activities_by_time ON activities (at, id);
CREATE INDEX activities_by_place ON activities (place_id, at, id);
CREATE INDEX activities_by_resource ON activities (resource_id, at, id);
CREATE INDEX activities_by_resource_there ON activities ((resource_id || ' ' || place_id), at, id);
CREATE INDEX activities_by_identity_there ON activities ((managed_identity_id || ' ' || place_id), at, id)
    WHERE managed_identity_id IS NOT NULL;
CREATE INDEX activities_by_actor ON activities (actor, at, id);
CREATE INDEX activities_by_identity ON activities (managed_identity_id, at, id) WHERE managed_identity_id IS NOT NULL;
