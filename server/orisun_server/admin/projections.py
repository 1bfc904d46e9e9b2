"""The projections of the admin boundary: who there is (``users``) and who is let in (``auth_users``)."""

from __future__ import annotations

from ..core.audit import (
    PASSWORD_CHANGED,
    TOKEN_CREATED,
    TOKEN_REVOKED,
    USER_CREATED,
    USER_DELETED,
    USER_ROLES_CHANGED,
)
from .projector import Projection

_NOT_STARTED = "Failed to start user projection (likely due to lock contention)"
_ROLES = "ARRAY(SELECT pg_catalog.jsonb_array_elements_text(d.data->'roles'))"

USERS = Projection(
    "users",
    "User projector started",
    _NOT_STARTED,
    {
        USER_CREATED: f"""
            INSERT INTO {{schema}}.orisun_user (user_id, name, username, roles, created_at, updated_at)
            SELECT d.data->>'user_id', d.data->>'name', d.data->>'username', {_ROLES}, d.at, d.at FROM d
            ON CONFLICT (user_id) DO UPDATE SET name = excluded.name, username = excluded.username,
                roles = excluded.roles, updated_at = excluded.updated_at""",
        USER_ROLES_CHANGED: f"""
            UPDATE {{schema}}.orisun_user AS u SET roles = {_ROLES}, updated_at = d.at
            FROM d WHERE u.user_id = d.data->>'user_id'""",
        PASSWORD_CHANGED: """
            UPDATE {schema}.orisun_user AS u SET updated_at = d.at FROM d WHERE u.user_id = d.data->>'user_id'""",
        USER_DELETED: """
            DELETE FROM {schema}.orisun_user AS u USING d WHERE u.user_id = d.data->>'user_id'""",
    },
)

# An event names its credential; the one that it replaces is forgotten with it.
_NEW_HASH = """,
hash AS (
    SELECT d.data->>'user_id' AS user_id, (d.data->>'auth_version')::bigint AS version, c.credential_id, c.hash
    FROM d JOIN {schema}.orisun_credential AS c ON c.credential_id = d.data->>'credential_id'
),
forgotten AS (
    DELETE FROM {schema}.orisun_credential AS c USING hash, {schema}.orisun_authentication AS a
    WHERE a.user_id = hash.user_id AND c.credential_id = a.credential_id AND a.credential_id <> hash.credential_id
)
INSERT INTO {schema}.orisun_authentication (user_id, auth_version, credential_id, password_hash)
SELECT hash.user_id, hash.version, hash.credential_id, hash.hash FROM hash
ON CONFLICT (user_id) DO UPDATE SET auth_version = excluded.auth_version, credential_id = excluded.credential_id,
    password_hash = excluded.password_hash
"""

_FORGET = """,
gone AS (DELETE FROM {{schema}}.{table} AS t USING d WHERE t.{key} = d.data->>'{key}' RETURNING t.credential_id)
DELETE FROM {{schema}}.orisun_credential AS c USING gone WHERE c.credential_id = gone.credential_id
"""

AUTH_USERS = Projection(
    "auth_users",
    "Auth user projector started",
    _NOT_STARTED,
    {
        USER_CREATED: _NEW_HASH,
        PASSWORD_CHANGED: _NEW_HASH,
        USER_DELETED: _FORGET.format(table="orisun_authentication", key="user_id"),
        TOKEN_CREATED: f"""
            INSERT INTO {{schema}}.orisun_api_token
                (token_id, name, roles, credential_id, secret_hash, created_by, created_at, expires_at)
            SELECT d.data->>'token_id', d.data->>'name', {_ROLES}, c.credential_id, c.hash, d.data->>'created_by', d.at,
                   (d.data->>'expires_at')::timestamptz
            FROM d JOIN {{schema}}.orisun_credential AS c ON c.credential_id = d.data->>'credential_id'
            ON CONFLICT (token_id) DO NOTHING""",
        TOKEN_REVOKED: _FORGET.format(table="orisun_api_token", key="token_id"),
    },
)
