"""Calling what a projection does: coroutine functions in the loop, plain functions in a thread."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from ..sync.background import Caller
from .errors import ProjectionError


async def call(function: Callable[..., Any], tx: Any, *arguments: Any) -> None:
    """Call ``handle``, ``setup`` or ``reset`` with what it writes to.

    A coroutine function gets ``tx`` as it is. A plain function gets a ``Connection`` where ``tx`` is one of asyncpg; it
    runs in the thread that waits in ``orisun.sync``, else in one of the loop's threads, and may block.
    """
    if inspect.iscoroutinefunction(function):
        await function(tx, *arguments)
        return
    connection = Connection(tx, asyncio.get_running_loop()) if _is_asyncpg(tx) else None

    def work() -> None:
        made = function(connection or tx, *arguments)
        if inspect.iscoroutine(made):
            made.close()
            raise ProjectionError(f"{function.__qualname__} gave a coroutine: write it as `async def`")

    if connection is None:
        # nobody can take from it what it writes to, so the transaction or the lock is not given away meanwhile
        await Caller.do_to_the_end(work)
        return
    try:
        await Caller.do(work)
    finally:
        # whoever was cancelled leaves a thread behind, which writes nothing any more: the transaction is not its own
        await connection.end()


class Connection:
    """An asyncpg connection for plain functions, inside a transaction; usable until the function returns.

    Its methods are those of ``asyncpg.Connection``, without ``await``; ``transaction()`` is a savepoint.
    """

    def __init__(self, aio: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._aio, self._loop = aio, loop
        self._ended = False
        self._current: asyncio.Task[Any] | None = None

    def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str:
        """See asyncpg: the statement's status, such as ``INSERT 0 1``."""
        return str(self._run(self._aio.execute, query, *arguments, timeout=timeout))

    def executemany(self, query: str, arguments: Any, *, timeout: float | None = None) -> None:
        """See asyncpg: the statement once for each tuple of arguments."""
        self._run(self._aio.executemany, query, arguments, timeout=timeout)

    def fetch(self, query: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        """See asyncpg: all rows."""
        rows: list[Any] = self._run(self._aio.fetch, query, *arguments, timeout=timeout)
        return rows

    def fetchrow(self, query: str, *arguments: Any, timeout: float | None = None) -> Any:
        """See asyncpg: the first row, None where there is none."""
        return self._run(self._aio.fetchrow, query, *arguments, timeout=timeout)

    def fetchval(self, query: str, *arguments: Any, column: int = 0, timeout: float | None = None) -> Any:
        """See asyncpg: a value of the first row, None where there is none."""
        return self._run(self._aio.fetchval, query, *arguments, column=column, timeout=timeout)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A savepoint: what fails inside is undone, the rest stays."""
        inner = self._aio.transaction()
        self._run(inner.start)
        try:
            yield
        except BaseException:
            self._run(inner.rollback)
            raise
        self._run(inner.commit)

    async def end(self) -> None:
        """Refuse further use; a statement under way is cancelled and awaited."""
        self._ended = True
        if self._current is not None:
            self._current.cancel()
            await asyncio.wait([self._current])

    def _run(self, method: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **options: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(self._statement(method, arguments, options), self._loop).result()
        except CancelledError:
            raise ProjectionError("the projection was cancelled during a statement of its handler") from None

    async def _statement(
        self, method: Callable[..., Coroutine[Any, Any, Any]], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        # here, in the loop, nobody can end it between the look and the statement
        if self._ended:
            raise ProjectionError("the connection of a handler was used after the handler's end")
        self._current = asyncio.current_task()
        try:
            return await method(*arguments, **options)
        finally:
            self._current = None


def _is_asyncpg(tx: object) -> bool:
    asyncpg = sys.modules.get("asyncpg")
    return asyncpg is not None and isinstance(tx, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy)
