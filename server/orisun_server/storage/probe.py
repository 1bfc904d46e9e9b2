"""Whether PostgreSQL answers at all, asked over a connection that nothing else uses.

It asks for nothing that can wait for locks, disks or a pool, so what is merely busy answers. Only silence counts: no
answer on the connection that answered before, for as long as it takes to ask over a new one too. Then what waits for an
answer waits in vain, and is given up (``Connector.give_up``): also where the new connection does answer, because it led
to another machine (a failover), and what was open before leads to one that is gone.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import asyncpg
import structlog

from ..tasks import end
from .connector import Connector, open_connection

log = structlog.get_logger(__name__)

#: Seconds for an answer until a new connection is tried, and as many again until PostgreSQL counts as silent. A pooler
#: that has lent all of its sessions lets a question wait; it gets longer.
_PATIENCE, _PATIENCE_OF_POOLER = 2.0, 10.0
#: A connection that answered before needs no more than that; where there is none, what is asked first is a login, which
#: may wait for other machines (LDAP, RADIUS, DNS).
_PATIENCE_OF_LOGIN = 5.0
#: Patience is counted in so many parts: when this process or its machine was stopped for a while, one of them passes.
_PARTS = 8
#: The network's own word that nothing answers, beside time-outs.
_NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)


_Question = asyncio.Task[asyncpg.Connection]


class Probe:
    """Asks when ``ask`` is called, and tells the connector whether PostgreSQL is silent."""

    def __init__(self, connector: Connector, options: dict[str, Any], *, pooled: bool) -> None:
        """``options`` are asyncpg's, of a new connection."""
        self._connector, self._options = connector, options
        self._patience = _PATIENCE_OF_POOLER if pooled else _PATIENCE
        #: The one that answered last.
        self._connection: asyncpg.Connection | None = None

    async def ask(self) -> None:
        """Returns when PostgreSQL has answered. Raises StorageSilent, or what refused or ended the connection."""
        patience = self._patience if self._connection is not None else max(self._patience, _PATIENCE_OF_LOGIN)
        asked = [asyncio.create_task(self._question(self._connection), name="postgres-probe")]
        try:
            await _patiently(asked[0], patience)
            if not _is_answered(asked[0]):
                asked.append(asyncio.create_task(self._question(None), name="postgres-probe-anew"))
                await _patiently(asked[asked[0].done()], patience)
            answered = next(filter(_is_answered, asked), None)
            self._judge(asked[0], answered)
            self._connection = answered.result() if answered is not None else None
        finally:
            await end(asked)
            for question in asked:
                if _is_answered(question) and question.result() is not self._connection:
                    question.result().terminate()
        if answered is None:
            if self._connector.silent:
                raise self._connector.silence()
            last = asked[-1]
            raise (None if last.cancelled() else last.exception()) or TimeoutError()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _judge(self, first: _Question, answered: _Question | None) -> None:
        if not _is_silent(first):
            self._connector.silent = False
        elif answered is None:
            if not self._connector.silent:
                self._connector.give_up(silent=True)
        else:
            self._connector.silent = False
            if self._connection is not None:
                log.warning("connections to PostgreSQL are given up: they are silent, while a new one is answered")
                self._connector.give_up(silent=False)

    async def _question(self, connection: asyncpg.Connection | None) -> asyncpg.Connection:
        """The connection, or a new one for None, once PostgreSQL has answered on it."""
        if connection is None:
            connection = await open_connection(**self._options)
        try:
            await connection.execute("SELECT 1")
        except BaseException:
            connection.terminate()
            raise
        return connection


async def _patiently(question: _Question, seconds: float) -> None:
    for _ in range(_PARTS):
        if (await asyncio.wait([question], timeout=seconds / _PARTS))[0]:
            return


def _is_answered(question: _Question) -> bool:
    return question.done() and not question.cancelled() and question.exception() is None


def _is_silent(question: _Question) -> bool:
    if not question.done():
        return True
    problem = question.exception()
    return isinstance(problem, TimeoutError) or (isinstance(problem, OSError) and problem.errno in _NO_WAY)
