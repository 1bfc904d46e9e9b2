"""The catalog of indexes: the table orisun_index in the admin schema."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgument
from .database import Database
from .index_sql import OPERATORS, IndexCondition, IndexDefinition, IndexField, ValueType
from .names import BoundaryNames, quote

BUILDING, READY, DROPPING = "BUILDING", "READY", "DROPPING"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}", re.ASCII)
#: Begins the name of an index that is built to take the place of another; in no name that users give.
_BESIDE = "~"
_VISIBLE = f"left(i.name, 1) <> '{_BESIDE}'"
_MAX_FIELDS = 16
_MAX_CONDITIONS = 16
_MAX_KEY = 255
_MAX_VALUE = 1_000


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """An index as the catalog has it."""

    boundary: str
    schema: str
    definition: IndexDefinition
    pg_name: str
    #: BUILDING or READY; DROPPING while the index in PostgreSQL outlives the one that users see.
    state: str
    #: What went wrong with the last attempt to build it, "" for nothing.
    last_error: str = ""
    #: The resource that manages it in a cluster, "" for none.
    managed_by: str = ""

    @property
    def names(self) -> BoundaryNames:
        return BoundaryNames(self.schema, self.boundary)


class IndexCatalog:
    """Reads and writes the catalog; each method is one statement. All raise Unavailable."""

    def __init__(self, database: Database, admin_schema: str) -> None:
        self._database = database
        schema = quote(admin_schema)
        self._table, self._boundaries, self._versions = (
            f"{schema}.{table}" for table in ("orisun_index", "orisun_boundary", "orisun_version")
        )
        self._valid = (
            "EXISTS (SELECT FROM pg_catalog.pg_index AS x JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE c.relname = i.pg_name::name AND n.nspname = b.namespace::name AND x.indisvalid)"
        )

    async def version(self) -> tuple[int, bool]:
        """The catalog's version, and whether a READY index is missing in PostgreSQL or invalid there."""
        with self._database.guard():
            row = await self._database.admin.fetchrow(
                f"SELECT v.version, EXISTS (SELECT FROM {self._table} AS i JOIN {self._boundaries} AS b "
                f"ON b.name = i.boundary WHERE i.state = 'READY' AND b.status = 'ACTIVE' AND NOT {self._valid}) "
                f"FROM {self._versions} AS v WHERE v.topic = 'index'"
            )
        return (row[0], row[1]) if row else (0, False)

    async def all(self) -> list[IndexRecord]:
        """Every index of every active boundary."""
        return await self._records("b.status = 'ACTIVE'")

    async def of(self, boundary: str) -> list[IndexRecord]:
        """The indexes of a boundary that are neither being dropped nor built to take another's place, by name."""
        return await self._records(f"i.boundary = $1 AND i.state <> 'DROPPING' AND {_VISIBLE}", boundary)

    async def find(self, boundary: str, name: str) -> IndexRecord | None:
        found = await self._records("i.boundary = $1 AND i.name = $2 AND i.state <> 'DROPPING'", boundary, name)
        return found[0] if found else None

    async def managed(self, boundary: str | None = None) -> list[IndexRecord]:
        """The indexes that resources manage, also of boundaries that are not active; of one boundary, or of all."""
        return await self._records("i.managed_by <> '' AND i.boundary = coalesce($1, i.boundary)", boundary)

    async def unmanaged(self) -> list[IndexRecord]:
        """The indexes that no resource manages, but for those that are being dropped."""
        return await self._records(f"i.managed_by = '' AND i.state <> 'DROPPING' AND {_VISIBLE}")

    async def add(
        self, names: BoundaryNames, definition: IndexDefinition, *, managed_by: str = "", beside: bool = False
    ) -> bool:
        """Whether it was added; False when there is one of that name.

        ``beside`` another of that name it is built under a name that users do not see, until ``swap``.
        """
        fields = [{"key": field.key, "type": field.value_type.name} for field in definition.fields]
        conditions = [{"key": c.key, "operator": c.operator, "value": c.value} for c in definition.conditions]
        with self._database.guard():
            return bool(
                await self._database.admin.fetchval(
                    f"INSERT INTO {self._table} "
                    "(boundary, name, fields, conditions, combinator, pg_name, state, managed_by) "
                    "VALUES ($1, $2, $3::text::jsonb, $4::text::jsonb, $5, $6, 'BUILDING', $7) "
                    "ON CONFLICT DO NOTHING RETURNING true",
                    names.boundary,
                    beside_name(definition.name) if beside else definition.name,
                    json.dumps(fields),
                    json.dumps(conditions),
                    definition.combinator,
                    definition.pg_name(names, secrets.token_hex(4)),
                    managed_by,
                )
            )

    async def manage(self, record: IndexRecord, managed_by: str) -> bool:
        """Hand an index over to a resource, or to none (""); whether it was still managed as ``record`` says."""
        return await self._update(
            "managed_by = $3 WHERE i.managed_by = $4 AND i.state <> 'DROPPING'", record, managed_by, record.managed_by
        )

    async def swap(self, boundary: str, name: str) -> bool:
        """Put the index that was built beside another in its place once it is READY; the other is dropped.

        The old one's name is free before it is taken: the update of the new one starts from what the other gave back.
        """
        with self._database.guard():
            return bool(
                await self._database.admin.fetchval(
                    f"WITH built AS (SELECT FROM {self._table} WHERE boundary = $1 AND name = $3 AND state = 'READY'), "
                    f"retired AS (UPDATE {self._table} SET state = 'DROPPING', name = '+' || pg_name, managed_by = '' "
                    "WHERE boundary = $1 AND name = $2 AND EXISTS (SELECT FROM built) RETURNING 1) "
                    f"UPDATE {self._table} AS i SET name = $2 FROM (SELECT count(*) FROM retired) AS r "
                    "WHERE i.boundary = $1 AND i.name = $3 AND i.state = 'READY' RETURNING true",
                    boundary,
                    name,
                    beside_name(name),
                )
            )

    async def retire(self, record: IndexRecord) -> bool:
        """Mark an index as to be dropped, and free its name at once: ``+`` is in no name that users give.

        Whether it was still there and managed as ``record`` says; else it was adopted or retired meanwhile.
        """
        return await self._update(
            "state = 'DROPPING', name = '+' || pg_name, managed_by = '' "
            "WHERE i.managed_by = $3 AND i.state <> 'DROPPING'",
            record,
            record.managed_by,
        )

    async def built(self, record: IndexRecord) -> bool:
        """Make it READY if PostgreSQL says that it is valid; whether it is."""
        return await self._update(
            f"state = 'READY', last_error = '' FROM {self._boundaries} AS b WHERE b.name = i.boundary "
            f"AND i.state = 'BUILDING' AND {self._valid}",
            record,
        )

    async def failed(self, record: IndexRecord, error: str) -> None:
        await self._update("last_error = $3 WHERE i.state <> 'DROPPING' AND i.last_error <> $3", record, error)

    async def broken(self) -> list[IndexRecord]:
        """READY indexes that are missing or invalid in PostgreSQL."""
        return await self._records(f"i.state = 'READY' AND b.status = 'ACTIVE' AND NOT {self._valid}")

    async def rebuild(self, record: IndexRecord) -> None:
        """Back to BUILDING."""
        await self._update(
            f"state = 'BUILDING' FROM {self._boundaries} AS b WHERE b.name = i.boundary "
            f"AND i.state = 'READY' AND NOT {self._valid}",
            record,
        )

    async def forget(self, record: IndexRecord) -> None:
        """Remove what has been dropped."""
        with self._database.guard():
            await self._database.admin.execute(
                f"DELETE FROM {self._table} WHERE boundary = $1 AND pg_name = $2 AND state = 'DROPPING'",
                record.boundary,
                record.pg_name,
            )

    async def _update(self, change: str, record: IndexRecord, *arguments: object) -> bool:
        with self._database.guard():
            return bool(
                await self._database.admin.fetchval(
                    f"UPDATE {self._table} AS i SET {change} AND i.boundary = $1 AND i.pg_name = $2 RETURNING true",
                    record.boundary,
                    record.pg_name,
                    *arguments,
                )
            )

    async def _records(self, where: str, *arguments: object) -> list[IndexRecord]:
        with self._database.guard():
            rows = await self._database.admin.fetch(
                "SELECT i.boundary, b.namespace, i.name, i.fields::text, i.conditions::text, i.combinator, i.pg_name, "
                "i.state, i.last_error, i.managed_by "
                f"FROM {self._table} AS i JOIN {self._boundaries} AS b ON b.name = i.boundary "
                f"WHERE {where} ORDER BY i.boundary, i.name",
                *arguments,
            )
        return [_record(row) for row in rows]


def beside_name(name: str) -> str:
    """The name that the catalog has for an index that is built beside the one of that name."""
    return _BESIDE + name


def check(definition: IndexDefinition) -> None:
    """Raises InvalidArgument where a definition cannot be (contract.md, Indexes)."""
    if not definition.name or not definition.fields:
        raise InvalidArgument("boundary, name, and at least one field are required")
    if not all(field.key for field in definition.fields):
        raise InvalidArgument("each field must have a json_key")
    if not all(condition.key for condition in definition.conditions):
        raise InvalidArgument("each condition must have a key")
    for condition in definition.conditions:
        if condition.operator not in OPERATORS:
            raise InvalidArgument(f'invalid operator "{condition.operator}": must be one of {", ".join(OPERATORS)}')
    if not _NAME.fullmatch(definition.name):
        raise InvalidArgument(
            f'invalid index name "{definition.name}": must be 1 to 63 letters, digits, underscores, dots and dashes'
        )
    if len(definition.fields) > _MAX_FIELDS or len(definition.conditions) > _MAX_CONDITIONS:
        raise InvalidArgument(f"an index has at most {_MAX_FIELDS} fields and {_MAX_CONDITIONS} conditions")
    _check_texts("field {}: json_key", [field.key for field in definition.fields], _MAX_KEY)
    _check_texts("condition {}: key", [condition.key for condition in definition.conditions], _MAX_KEY)
    _check_texts("condition {}: value", [condition.value for condition in definition.conditions], _MAX_VALUE)
    keys = [field.key for field in definition.fields]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise InvalidArgument(f'field {number}: json_key "{key}" is given twice')


def _check_texts(what: str, texts: Sequence[str], longest: int) -> None:
    for number, text in enumerate(texts):
        if len(text) > longest or "\0" in text:
            raise InvalidArgument(f"{what.format(number)} must have at most {longest} characters and no NUL")


def _record(row: Any) -> IndexRecord:
    boundary, schema, name, fields, conditions, combinator, pg_name, state, last_error, managed_by = row
    definition = IndexDefinition(
        name,
        tuple(IndexField(field["key"], ValueType[field["type"]]) for field in json.loads(fields)),
        tuple(IndexCondition(c["key"], c["operator"], c["value"]) for c in json.loads(conditions)),
        combinator,
    )
    return IndexRecord(boundary, schema, definition, pg_name, state, last_error, managed_by)
