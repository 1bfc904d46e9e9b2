"""Checkpoints in the transactions of another driver: psycopg, SQLAlchemy, Django; exactly once, as with asyncpg.

The handler gets the connection or session that it knows, and the checkpoint is moved through a cursor of the same
transaction. Whatever has a DB-API cursor (PEP 249) with named parameters (``pyformat``) on PostgreSQL fits.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar

from ..sync.background import Caller
from .errors import ProjectionError
from .postgres import PostgresCheckpoints
from .tables import Tables

T = TypeVar("T")

_PARAMETER = re.compile(r"\$(\d+)")


class DbapiCheckpoints(PostgresCheckpoints, Generic[T]):
    """Checkpoints by transactions of your own making::

        DbapiCheckpoints(pool.connection, lambda connection: connection.cursor())              # a pool of psycopg
        DbapiCheckpoints(Session.begin, lambda session: session.connection().connection.cursor())  # SQLAlchemy

    Args:
        begin: Gives a context manager of a new transaction (read committed), which commits at its end and rolls back
            where something is raised. What it enters with is what ``handle``, ``setup`` and ``reset`` get as ``tx``. A
            connection in autocommit is refused at the first use.
        cursor: Gives a DB-API cursor inside such a transaction.

    ``handle``, ``setup`` and ``reset`` are plain functions. All of a batch happens in the thread that called
    ``orisun.sync.projections.Processor.run``; elsewhere in threads of the loop, one after the other.
    """

    def __init__(
        self, begin: Callable[[], AbstractContextManager[T]], cursor: Callable[[T], Any], tables: Tables | None = None
    ) -> None:
        super().__init__(None, tables)
        self._begin, self._cursor = begin, cursor

    @property
    def most_connections(self) -> float:
        """Whoever makes the transactions knows."""
        return float("inf")

    def given(self, tx: Any) -> Any:
        """What ``begin`` entered with."""
        return tx.own

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A transaction; the tables exist."""
        if not self._made:
            async with self._making, self._begun() as tx:
                await _check_transaction(tx)
                await self._make_tables(tx)
        async with self._begun() as tx:
            yield tx

    @asynccontextmanager
    async def _begun(self) -> AsyncIterator[_Transaction]:
        manager: AbstractContextManager[T] | None = None
        entered: list[T] = []

        def enter() -> None:
            nonlocal manager
            manager = self._begin()
            entered.append(manager.__enter__())

        def leave(*failure: Any) -> None:
            if manager is not None and entered:
                manager.__exit__(*failure or (None, None, None))

        try:
            await Caller.do_to_the_end(enter)
            yield _Transaction(entered[0], self._cursor)
        except BaseException as error:
            failure = error
            await Caller.do_to_the_end(lambda: leave(type(failure), failure, failure.__traceback__))
            raise
        await Caller.do_to_the_end(leave)


async def _check_transaction(tx: _Transaction) -> None:
    """Raises ProjectionError where each statement is committed by itself, which nothing else would show."""
    # a setting that ends with the transaction
    await tx.execute("SELECT pg_catalog.set_config('orisun.transaction', 'open', true)")
    if await tx.fetchval("SELECT pg_catalog.current_setting('orisun.transaction', true)") != "open":
        raise ProjectionError(
            "DbapiCheckpoints: `begin` gave a connection without a transaction, where each statement is committed by"
            " itself: begin one (psycopg: `connection.transaction()`), or switch autocommit off"
        )


class _Row(tuple[Any, ...]):
    """A row whose values have numbers and names."""

    names: Sequence[str] = ()

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names.index(key) if isinstance(key, str) else key)


class _Transaction:
    """A transaction with those methods of an asyncpg connection that checkpoints need."""

    def __init__(self, own: Any, cursor: Callable[[Any], Any]) -> None:
        self.own, self._cursor = own, cursor

    async def execute(self, query: str, *arguments: Any) -> None:
        await self._rows(query, arguments)

    async def fetch(self, query: str, *arguments: Any) -> list[_Row]:
        return await self._rows(query, arguments)

    async def fetchrow(self, query: str, *arguments: Any) -> _Row | None:
        rows = await self._rows(query, arguments)
        return rows[0] if rows else None

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        row = await self.fetchrow(query, *arguments)
        return row[0] if row is not None else None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """It is one already."""
        yield

    async def _rows(self, query: str, arguments: tuple[Any, ...]) -> list[_Row]:
        return await Caller.do_to_the_end(lambda: self._run(query, arguments))

    def _run(self, query: str, arguments: tuple[Any, ...]) -> list[_Row]:
        cursor = self._cursor(self.own)
        try:
            if arguments:
                named = {f"p{number}": value for number, value in enumerate(arguments, 1)}
                cursor.execute(_PARAMETER.sub(r"%(p\1)s", query), named)
            else:
                cursor.execute(query)
            if cursor.description is None:
                return []
            names, rows = [column[0] for column in cursor.description], []
            for values in cursor.fetchall():
                rows.append(row := _Row(values.values() if isinstance(values, Mapping) else values))
                row.names = names
            return rows
        finally:
            cursor.close()
