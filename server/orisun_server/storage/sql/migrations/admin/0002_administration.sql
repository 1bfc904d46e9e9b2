-- oldest-server: 0.1.0
-- Users, sign-in and API tokens as projections of the events in the admin boundary, and counts of events.

-- Hashes of passwords and of API tokens, which no event holds. Written before the event that makes them count, so a row
-- alone lets nobody in.
CREATE TABLE {schema}.orisun_credential (
    credential_id text PRIMARY KEY,
    hash          text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- Built by the projection 'auth_users': with what whom the server lets in.
CREATE TABLE {schema}.orisun_authentication (
    user_id       text PRIMARY KEY,
    -- grows when the password changes; ends the sessions issued before
    auth_version  bigint NOT NULL,
    credential_id text NOT NULL,
    password_hash text NOT NULL
);

CREATE TRIGGER orisun_grow_version AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.orisun_authentication
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.orisun_grow_version('user');

-- Built by the projection 'auth_users' too.
CREATE TABLE {schema}.orisun_api_token (
    token_id    text PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    roles       text[] NOT NULL,
    credential_id text NOT NULL,
    secret_hash text NOT NULL,
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL
);

CREATE TRIGGER orisun_grow_version AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.orisun_api_token
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.orisun_grow_version('user');

-- Built by the projection 'event_count': events up to its checkpoint in {boundary}_projector_checkpoint.
CREATE TABLE {schema}.orisun_event_count (
    boundary text PRIMARY KEY,
    events   bigint NOT NULL
);

-- Users from before there were events for them keep their passwords; the server writes the events at its next start.
INSERT INTO {schema}.orisun_credential (credential_id, hash) SELECT user_id, password_hash FROM {schema}.orisun_user;
INSERT INTO {schema}.orisun_authentication (user_id, auth_version, credential_id, password_hash)
SELECT user_id, auth_version, user_id, password_hash FROM {schema}.orisun_user;
UPDATE {schema}.orisun_user SET password_hash = '';
ALTER TABLE {schema}.orisun_user ALTER COLUMN password_hash SET DEFAULT '';
