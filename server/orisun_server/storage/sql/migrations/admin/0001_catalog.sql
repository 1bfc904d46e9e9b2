-- oldest-server: 0.1.0
-- Everything that servers share beside the events: boundaries, nodes, leases, indexes, users.

-- Grows with every change of a topic, in the transaction of the change, so that a poll is one comparison and misses
-- nothing. (A sequence would not do: its new value is seen before the change is committed, and a poll in between would
-- take the old state for the new one.)
CREATE TABLE {schema}.orisun_version (
    topic   text PRIMARY KEY,
    version bigint NOT NULL
);
INSERT INTO {schema}.orisun_version VALUES ('boundary', 0), ('index', 0), ('user', 0);

-- For topics whose changes need not know the version; the topic is the trigger's argument.
CREATE FUNCTION {schema}.orisun_grow_version() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    UPDATE {schema}.orisun_version SET version = version + 1 WHERE topic = TG_ARGV[0];
    RETURN NULL;
END
$$;

CREATE TABLE {schema}.orisun_boundary (
    name                   text PRIMARY KEY,
    description            text NOT NULL DEFAULT '',
    backend                text NOT NULL DEFAULT 'postgres',
    namespace              text NOT NULL,
    status                 text NOT NULL CHECK (status IN ('PROVISIONING', 'ACTIVE', 'FAILED')),
    existed_before_catalog boolean NOT NULL DEFAULT false,
    last_error             text NOT NULL DEFAULT '',
    -- versions of the topic 'boundary' at which the boundary was defined and last changed its status; whoever writes
    -- this table grows the version first, in the same statement
    definition_version     bigint NOT NULL,
    status_version         bigint NOT NULL,
    -- the resource that manages the boundary in a cluster, "" for none
    managed_by             text NOT NULL DEFAULT '',
    created_at             timestamptz NOT NULL DEFAULT now()
);

-- A running server (or operator). It lives for as long as its row is here: it moves expires_at on while that has not
-- passed, and whoever sees it passed (by PostgreSQL's clock) may delete the row. A node_id is never used again.
CREATE TABLE {schema}.orisun_node (
    node_id    text PRIMARY KEY,
    kind       text NOT NULL DEFAULT 'server',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);

-- Who does what alone: publishers (one a boundary), subscribers (one a name), builders, migrations.
-- A lease holds while its node lives ('' is nobody); the epoch grows with every holder and fences the ones before.
CREATE TABLE {schema}.orisun_lease (
    kind        text NOT NULL,
    boundary    text NOT NULL,
    name        text NOT NULL DEFAULT '',
    node_id     text NOT NULL,
    epoch       bigint NOT NULL DEFAULT 1,
    -- the holder's own number of this acquisition, by which it gives back what it does not know that it got
    token       bigint NOT NULL DEFAULT 0,
    acquired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, boundary, name)
);

CREATE INDEX orisun_lease_node_id_idx ON {schema}.orisun_lease (node_id);

CREATE TABLE {schema}.orisun_index (
    boundary   text NOT NULL,
    name       text NOT NULL,
    fields     jsonb NOT NULL,
    conditions jsonb NOT NULL,
    combinator text NOT NULL CHECK (combinator IN ('AND', 'OR')),
    -- the real name in PostgreSQL, unique for boundary, name and shape
    pg_name    text NOT NULL,
    state      text NOT NULL CHECK (state IN ('BUILDING', 'READY', 'DROPPING')),
    last_error text NOT NULL DEFAULT '',
    managed_by text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (boundary, name)
);

CREATE TRIGGER orisun_grow_version AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.orisun_index
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.orisun_grow_version('index');

CREATE TABLE {schema}.orisun_user (
    user_id       text PRIMARY KEY,
    name          text NOT NULL,
    username      text NOT NULL UNIQUE,
    password_hash text NOT NULL,
    roles         text[] NOT NULL,
    -- grows when the password or the roles change; ends the sessions issued before
    auth_version  bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TRIGGER orisun_grow_version AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.orisun_user
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.orisun_grow_version('user');

-- Keys that all servers of a cluster share (signing of session tokens).
CREATE TABLE {schema}.orisun_secret (
    name       text PRIMARY KEY,
    value      bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
