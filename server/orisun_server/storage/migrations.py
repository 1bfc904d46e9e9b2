"""Migrations as they stand in files, and what they apply to. Pure: no database here.

A migration is a file ``NNNN_name.sql`` whose first line is ``-- oldest-server: X.Y.Z``, the oldest server that can run
on the schema that it leaves (expand first, contract a release later). Names in braces stand for quoted names of
PostgreSQL objects.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.resources.abc import Traversable
from typing import NamedTuple

from .names import BoundaryNames, quote

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_HEADER = re.compile(r"-- oldest-server: (\d+\.\d+\.\d+)\s*")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True)
class Migration:
    """One numbered file; ``checksum`` is the SHA-256 of its text, names in braces not replaced."""

    version: int
    name: str
    sql: str
    checksum: str
    oldest_server: str


@dataclass(frozen=True)
class Sources:
    """The migrations that a server brings along, ascending without gaps from 1."""

    admin: tuple[Migration, ...]
    boundary: tuple[Migration, ...]

    @classmethod
    def packaged(cls) -> Sources:
        """Those in this package."""
        return cls.load(importlib.resources.files("orisun_server.storage") / "sql" / "migrations")

    @classmethod
    def load(cls, directory: Traversable) -> Sources:
        """Those in ``directory/admin`` and ``directory/boundary``. Raises ValueError on a file that does not fit."""
        return cls(_load(directory / "admin"), _load(directory / "boundary"))


@dataclass(frozen=True)
class Scope:
    """What is migrated by itself: the admin schema, or the objects of one boundary."""

    schema: str
    names: BoundaryNames | None = None

    @property
    def name(self) -> str:
        """``admin`` or ``boundary:<name>``, as in the ledger."""
        return "admin" if self.names is None else f"boundary:{self.names.boundary}"

    @property
    def label(self) -> str:
        """For messages: the scope and its schema."""
        kind = "the admin schema" if self.names is None else f'boundary "{self.names.boundary}" in schema'
        return f'{kind} "{self.schema}"'

    @cached_property
    def _values(self) -> Mapping[str, str]:
        values = {"schema": quote(self.schema)}
        if (names := self.names) is not None:
            for name in ("events", "sequence", "published", "checkpoints", "commands", "append", "event_id_index"):
                values[name] = quote(getattr(names, name))
                values["q_" + name] = names.qualified(getattr(names, name))
            values["lock_key"] = str(names.lock_key)
        return values

    def render(self, sql: str) -> str:
        """The SQL with the known names in braces replaced; other braces stay."""
        for name, value in self._values.items():
            sql = sql.replace("{" + name + "}", value)
        return sql


class Applied(NamedTuple):
    """A row of the ledger."""

    version: int
    name: str
    checksum: str
    oldest_server: str
    #: By PostgreSQL's clock.
    applied_at: datetime
    applied_by: str


class ScopeStatus(NamedTuple):
    """Where a scope stands; ``problem`` says why this server cannot run on it, "" when it can or a migration helps."""

    scope: Scope
    applied: tuple[Applied, ...]
    pending: tuple[Migration, ...]
    problem: str

    @property
    def version(self) -> int:
        """What the scope is at; 0 before the first migration."""
        return max((row.version for row in self.applied), default=0)


def boundary_scope(name: str, schema: str) -> Scope:
    """The scope of a boundary."""
    return Scope(schema, BoundaryNames(schema, name))


def release(version: str) -> tuple[int, ...]:
    """``0.10.1rc2`` as (0, 10, 1): what versions compare by."""
    found = _RELEASE.match(version)
    numbers = [int(part) for part in found.group().split(".")] if found else []
    return tuple([*numbers, 0, 0, 0][: max(3, len(numbers))])


def newest(migrations: Sequence[Migration]) -> int:
    """The version that the migrations lead to."""
    return migrations[-1].version if migrations else 0


def judge(scope: Scope, sources: Sources, applied: Sequence[Applied], server_version: str) -> ScopeStatus:
    """Where a scope stands, for a server of that version that brings these migrations along."""
    known = sources.admin if scope.names is None else sources.boundary
    by_version = {row.version: row for row in applied}
    pending = tuple(migration for migration in known if migration.version not in by_version)
    return ScopeStatus(scope, tuple(applied), pending, _problem(scope, known, by_version, server_version))


def _problem(scope: Scope, known: Sequence[Migration], applied: Mapping[int, Applied], server_version: str) -> str:
    for migration in known:
        row = applied.get(migration.version)
        if row is None and migration.version < max(applied, default=0):
            return (
                f"{scope.label}: migration {migration.version} ({migration.name}) is missing below version"
                f" {max(applied)}: the ledger orisun_migration was edited; restore its row"
            )
        if row is not None and row.checksum != migration.checksum:
            return (
                f"{scope.label}: migration {migration.version} was altered: {row.name} with checksum"
                f" {row.checksum[:12]} was applied, and server {server_version} has {migration.name} with"
                f" {migration.checksum[:12]}: run the release that applied it, or a later one"
            )
    for row in applied.values():
        if row.version > newest(known) and release(row.oldest_server) > release(server_version):
            return (
                f"{scope.label} is at version {row.version} ({row.name}), which needs server {row.oldest_server} or"
                f" newer; this is server {server_version} and knows version {newest(known)}: run a newer release"
            )
    return ""


def _load(directory: Traversable) -> tuple[Migration, ...]:
    migrations: list[Migration] = []
    for file in sorted(directory.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        named = _FILE.fullmatch(file.name)
        if named is None or int(named[1]) != len(migrations) + 1:
            raise ValueError(f"{directory.name}/{file.name}: migrations are NNNN_name.sql, from 0001 without gaps")
        # a checkout on Windows must not change the checksum
        sql = file.read_text(encoding="utf-8").replace("\r\n", "\n")
        header = _HEADER.fullmatch(sql.partition("\n")[0])
        if header is None:
            raise ValueError(f"{directory.name}/{file.name}: the first line must be -- oldest-server: X.Y.Z")
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        migrations.append(Migration(int(named[1]), named[2], sql, checksum, header[1]))
    return tuple(migrations)
