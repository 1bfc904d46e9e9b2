"""LISTEN/NOTIFY between the servers: "look now". A signal may be lost; whoever waits for one also polls.

NOTIFY takes an instance-wide lock until its transaction ends, so it is never sent with an append: it follows the
commit in a statement of its own, and many commits share one (design.md, 2).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import asyncpg
import structlog

from ..errors import OrisunError
from ..storage.database import Database
from ..tasks import end, happens

log = structlog.get_logger(__name__)

CHANNEL = "orisun_events"
_CHECK_INTERVAL = 15.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_SEND = "SELECT pg_catalog.pg_notify($1, payload) FROM unnest($2::text[]) AS payload"


class Signals:
    """Says and hears which boundary has new events; ``""`` means that a lease is free.

    Payloads are ``<admin schema>:<boundary>``: stores that share a database do not wake each other.
    """

    def __init__(self, database: Database, admin_schema: str, *, enabled: bool) -> None:
        self._database, self._prefix = database, f"{admin_schema}:"
        self._enabled = enabled and database.can_listen
        self._listeners: list[Callable[[str | None], None]] = []
        self._waiting: set[str] = set()
        self._heard_of = False
        self._something = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def on_signal(self, listener: Callable[[str | None], None]) -> None:
        """Calls ``listener(boundary)``; with None after a time in which signals may have been missed."""
        self._listeners.append(listener)

    @property
    def heard(self) -> bool:
        """Whether signals of other servers arrive now, as far as is known."""
        return self._heard_of

    def send(self, boundary: str) -> None:
        """Signals the other servers soon; costs nothing when one is on its way."""
        if self._enabled:
            self._waiting.add(boundary)
            self._something.set()

    async def start(self) -> None:
        if self._enabled:
            self._tasks = [
                asyncio.create_task(self._listen(), name="signals-listen"),
                asyncio.create_task(self._send_all(), name="signals-send"),
            ]

    async def stop(self) -> None:
        await end(self._tasks)
        if self._waiting and self._tasks:
            with contextlib.suppress(TimeoutError, OrisunError, asyncpg.PostgresError):
                async with asyncio.timeout(1):
                    await self._send_waiting()

    async def _send_all(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                await self._send_waiting()
            except Exception as problem:  # the others look by themselves; what they are told later is as good
                if not isinstance(problem, OrisunError):
                    log.warning("NOTIFY failed; it is tried again", reason=type(problem).__name__)
                self._something.set()
                await asyncio.sleep(_FIRST_PAUSE)

    async def _send_waiting(self) -> None:
        sending, self._waiting = self._waiting, set()
        try:
            with self._database.guard():
                await self._database.admin.execute(_SEND, CHANNEL, [self._prefix + boundary for boundary in sending])
        except BaseException:
            self._waiting |= sending
            raise

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                await self._listen_once()
            except OrisunError as problem:
                log.debug("LISTEN was interrupted; polling goes on", reason=str(problem))
            except Exception as problem:  # polling and the next attempt go on, whatever happens
                log.warning("LISTEN failed; polling goes on", reason=type(problem).__name__)
            lasted = time.monotonic() - began > _LONGEST_PAUSE
            pause = _FIRST_PAUSE if lasted else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _listen_once(self) -> None:
        connection = await self._database.listen_connection()
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            with self._database.guard():
                await connection.add_listener(CHANNEL, self._heard)
                self._heard_of = True
                self._tell(None)
                while not await happens(lost, _CHECK_INTERVAL):
                    await connection.execute("SELECT 1", timeout=5)
        finally:
            self._heard_of = False
            connection.terminate()

    def _heard(self, _connection: asyncpg.Connection, _pid: int, _channel: str, payload: object) -> None:
        if isinstance(payload, str) and payload.startswith(self._prefix):
            self._tell(payload[len(self._prefix) :])

    def _tell(self, boundary: str | None) -> None:
        for listener in self._listeners:
            listener(boundary)
