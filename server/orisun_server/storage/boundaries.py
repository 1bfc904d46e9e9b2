"""What the catalog says about a boundary, what may be written there, and the statements over its table."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..core.position import Position
from ..errors import InvalidArgument
from .names import BoundaryNames, is_identifier, quote

#: The one storage backend.
BACKEND = "postgres"

_RULE = "must be 1 to 63 letters, digits and underscores, the first no digit"


class BoundaryStatus(enum.Enum):
    """How far a boundary has come; only an active one takes events."""

    PROVISIONING = "PROVISIONING"
    ACTIVE = "ACTIVE"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Boundary:
    """An active boundary: its name, its PostgreSQL schema and the names of its objects there."""

    name: str
    schema: str
    names: BoundaryNames

    @classmethod
    def at(cls, name: str, schema: str) -> Boundary:
        """The boundary of that name in that schema."""
        return cls(name, schema, BoundaryNames(schema, name))


@dataclass(frozen=True)
class BoundaryRecord:
    """A boundary as the catalog has it, whatever its status; ``namespace`` is its PostgreSQL schema.

    The positions are the catalog's own: when the boundary was defined and when its status last changed.
    """

    name: str
    description: str
    backend: str
    namespace: str
    status: BoundaryStatus
    existed_before_catalog: bool
    last_error: str
    definition_position: Position
    status_position: Position
    created_at: datetime
    #: The resource that manages it in a cluster, "" for none.
    managed_by: str = ""


def record_of(row: Mapping[str, Any]) -> BoundaryRecord:
    """A row of the table as a record."""
    return BoundaryRecord(
        name=row["name"],
        description=row["description"],
        backend=row["backend"],
        namespace=row["namespace"],
        status=BoundaryStatus(row["status"]),
        existed_before_catalog=row["existed_before_catalog"],
        last_error=row["last_error"],
        definition_position=_position(row["definition_version"]),
        status_position=_position(row["status_version"]),
        created_at=row["created_at"],
        managed_by=row["managed_by"],
    )


def _position(version: int) -> Position:
    """A version of the catalog (from 1) as the position that the event of the change would have (contract.md)."""
    return Position(version, version - 1)


def check_name(name: str) -> None:
    """Raise InvalidArgument unless a boundary may be called that (contract.md, Boundaries)."""
    if not is_identifier(name):
        raise InvalidArgument(f'invalid boundary "{name}": {_RULE}')


def check_placement(backend: str | None, namespace: str | None) -> str:
    """The schema of a placement. Raises InvalidArgument when it is missing or cannot be."""
    if not backend and not namespace:
        raise InvalidArgument("boundary placement is required")
    if backend != BACKEND:
        raise InvalidArgument(f'unknown backend "{backend or ""}": must be "{BACKEND}"')
    schema = namespace or ""
    if not is_identifier(schema):
        raise InvalidArgument(f'invalid namespace "{schema}": {_RULE}')
    if schema.startswith("pg_") or schema == "information_schema":
        raise InvalidArgument(f'invalid namespace "{schema}": the schema belongs to PostgreSQL')
    return schema


# $1 the version that the caller knows; its own row when nothing has changed. <>, because a restore goes back.
_CHANGES = """
SELECT v.version, b.* FROM {schema}.orisun_version AS v
LEFT JOIN {schema}.orisun_boundary AS b ON v.version <> $1
WHERE v.topic = 'boundary' ORDER BY b.name COLLATE "C"
"""

#: Whoever writes grows the version first: its row is the lock that keeps writers from waiting in a circle.
GROWN = "UPDATE {schema}.orisun_version SET version = version + 1 WHERE topic = 'boundary'"

_AGAIN = """
ON CONFLICT (name) DO UPDATE SET
    description = excluded.description, backend = excluded.backend, namespace = excluded.namespace,
    status = 'PROVISIONING', existed_before_catalog = excluded.existed_before_catalog, last_error = '',
    definition_version = excluded.definition_version, status_version = excluded.status_version
WHERE b.status = 'FAILED' AND b.managed_by = ''
"""

# $1 name, $2 description, $3 backend, $4 schema, $5 existed; no row when there is one that has not failed or is managed
_CREATE = f"""
WITH v AS ({GROWN} RETURNING version)
INSERT INTO {{schema}}.orisun_boundary AS b (name, description, backend, namespace, status, existed_before_catalog,
                                             definition_version, status_version)
SELECT $1, $2, $3, $4, 'PROVISIONING', $5::boolean, v.version, v.version FROM v
{_AGAIN} RETURNING *
"""

# $1 names, $2 descriptions, $3 schemas, $4 whether the tables exist, $5 backend; changes nothing when all are there
_SEED = f"""
WITH wanted AS MATERIALIZED (
    SELECT w.* FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[]) AS w (name, description, schema, existed)
    LEFT JOIN {{schema}}.orisun_boundary AS b ON b.name = w.name
    WHERE b.name IS NULL OR b.status = 'FAILED' AND b.namespace = w.schema AND b.managed_by = ''
),
v AS ({GROWN} AND EXISTS (SELECT FROM wanted) RETURNING version)
INSERT INTO {{schema}}.orisun_boundary AS b (name, description, backend, namespace, status, existed_before_catalog,
                                             definition_version, status_version)
SELECT w.name, w.description, $5, w.schema, 'PROVISIONING', w.existed, v.version, v.version FROM v, wanted AS w
{_AGAIN}
"""

# $1 names, $2 statuses, $3 errors, $4 definition versions, $5 epochs, item by item; $6 kind of lease, $7 node. Changes
# what is still the boundary that was provisioned, and under a lease that still holds.
_SETTLE = f"""
WITH v AS ({GROWN} RETURNING version)
UPDATE {{schema}}.orisun_boundary AS b
SET status = r.status, last_error = r.error, status_version = v.version
FROM v, unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
    AS r (name, status, error, defined, epoch)
WHERE b.name = r.name AND b.status = 'PROVISIONING' AND b.definition_version = r.defined AND EXISTS (
    SELECT FROM {{schema}}.orisun_lease AS l
    WHERE l.kind = $6 AND l.boundary = b.name AND l.name = '' AND l.node_id = $7 AND l.epoch = r.epoch
)
"""

#: $1 schemas, $2 tables, item by item: the numbers (from 1) of those that exist.
EXISTING = """
SELECT t.n FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (schema, name, n)
JOIN pg_catalog.pg_namespace AS s ON s.nspname = t.schema
JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relname = t.name
"""


@dataclass(frozen=True)
class CatalogSql:
    """The statements, for one admin schema."""

    changes: str
    create: str
    seed: str
    settle: str

    @classmethod
    def for_schema(cls, admin_schema: str) -> CatalogSql:
        """The statements over the tables of that schema."""
        texts = (_CHANGES, _CREATE, _SEED, _SETTLE)
        return cls(*(text.replace("{schema}", quote(admin_schema)) for text in texts))
