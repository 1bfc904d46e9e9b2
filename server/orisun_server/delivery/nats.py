"""The connection to NATS: made again for as long as the server runs, and never in the way of appends and reads.

nats-py's own reconnection ends for good at some errors of the server (a refused credential, a payload too large), and
sends what it had buffered to a stream that has moved on. So each connection lives once here, and everything that needs
NATS starts over with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import structlog
from nats.aio.client import Client
from nats.errors import Error
from nats.js import JetStreamContext

from ..errors import OrisunError, Unavailable
from ..settings import MIN_PAYLOAD
from ..tasks import end

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: What anything that talks to NATS may raise when NATS is down, restarts or moves a leader.
NATS_ERRORS = (Error, OSError, TimeoutError, Unavailable)

STREAM_PREFIX = "ORISUN_EVENTS_"
SUBJECT_PREFIX = "orisun.events."

CONNECT_TIMEOUT = 5.0
REQUEST_TIMEOUT = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class UnfitNats(OrisunError):
    """NATS does not let through what delivery sends."""


class Connection:
    """One life of a connection; ``lost`` is set at its end."""

    def __init__(self, client: Client, lost: asyncio.Event, store: str = "") -> None:
        self.client, self.lost = client, lost
        #: What the names of the store's streams begin with, and the subjects of their messages.
        self.stream_prefix, self.subject_prefix = STREAM_PREFIX, SUBJECT_PREFIX
        if store:
            self.stream_prefix, self.subject_prefix = f"{STREAM_PREFIX}{store}_", f"{SUBJECT_PREFIX}{store}."
        self.jetstream: JetStreamContext = client.jetstream(timeout=REQUEST_TIMEOUT)

    @property
    def max_payload(self) -> int:
        """Most bytes of a message's headers and body together."""
        return self.client.max_payload

    async def send(self, frames: Sequence[bytes]) -> None:
        """Sends messages that ``frame`` made, in order, without waiting for an answer. Raises Unavailable.

        nats-py's own ``publish`` takes 12 microseconds for a message with headers, most of what publishing an event
        costs; so these go past it, into its buffer, by the two functions that it uses itself.
        """
        if not frames:
            return
        if self.lost.is_set() or not self.client.is_connected:
            raise Unavailable("the connection to NATS was lost")
        await self.client._send_command(b"".join(frames))
        await self.client._flush_pending()

    async def answer(self, request: Awaitable[T]) -> T:
        """The result of a request, or Unavailable as soon as the connection is lost (nats-py waits for a timeout)."""
        task = asyncio.ensure_future(request)
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Unavailable("the connection to NATS was lost")
            return task.result()
        finally:
            lost.cancel()
            if not task.done():
                task.cancel()


def frame(subject: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A message as NATS's protocol writes it (HPUB, without a reply subject); headers are printable ASCII."""
    head = "".join(["NATS/1.0\r\n", *(f"{key}: {value}\r\n" for key, value in headers.items()), "\r\n"])
    size = len(head)
    return f"HPUB {subject} {size} {size + len(body)}\r\n{head}".encode("ascii") + body + b"\r\n"


class Nats:
    """Keeps a connection to one of ``urls`` (``nats://user:password@host:port``) or a server that they tell of.

    ``store`` tells this store's streams from those of other stores on the same NATS (storage/identity.py).
    """

    def __init__(
        self, urls: Sequence[str], *, user: str = "", password: str = "", name: str = "orisun", store: str = ""
    ) -> None:
        self.store = store
        self._servers: dict[str, None] = {}
        self._user, self._password, self._name = user, password, name
        for url in urls:
            parts = urlsplit(url if "://" in url else f"nats://{url}")
            if parts.username:
                self._user, self._password = unquote(parts.username), unquote(parts.password or "")
            self._servers[f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"] = None
        self._connection: Connection | None = None
        self._listeners: list[Callable[[], None]] = []
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to connect; does not wait for it, since the server is of use without NATS."""
        self._task = asyncio.create_task(self._run(), name="nats")

    async def stop(self) -> None:
        if self._task is not None:
            await end([self._task])

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def connection(self) -> Connection:
        """The connection of now; raises Unavailable when there is none."""
        if self._connection is None:
            raise Unavailable("NATS cannot be reached now; try again")
        return self._connection

    async def wait_connected(self) -> Connection:
        """The connection of now, or the next one."""
        while self._connection is None:
            await self._up.wait()
        return self._connection

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls ``listener()`` after the connection was made or lost."""
        self._listeners.append(listener)

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        told = False
        while True:
            lost = asyncio.Event()
            client = Client()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await self._connect(client, lost)
                _check_fitness(client)
                pause, told = _FIRST_PAUSE, False
                await self._live(client, lost)
            except UnfitNats as problem:
                if not told:
                    log.error("NATS cannot be used; live delivery polls PostgreSQL", reason=str(problem))  # noqa: TRY400
                    told = True
            except Exception as problem:
                if not told:
                    log.warning("NATS cannot be reached; live delivery polls PostgreSQL", reason=type(problem).__name__)
                    told = True
            finally:
                await _close(client)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _live(self, client: Client, lost: asyncio.Event) -> None:
        # a server of a cluster tells of the others; they are there when this one is not
        for uri in client.discovered_servers:
            self._servers[f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}"] = None
        version = str(client.connected_server_version).removeprefix("<nats server v").removesuffix(">")
        log.info("connected to NATS", version=version)
        self._connection = Connection(client, lost, self.store)
        self._up.set()
        try:
            self._changed()
            await _end(client, lost)
            log.warning("the connection to NATS was lost")
        finally:
            self._connection = None
            self._up.clear()
            lost.set()
            self._changed()

    async def _connect(self, client: Client, lost: asyncio.Event) -> None:
        async def ended() -> None:
            lost.set()

        await client.connect(
            list(self._servers),
            name=self._name,
            user=self._user or None,
            password=self._password or None,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=2,
            # a connection that answers nothing is given up after 15 seconds
            ping_interval=5,
            max_outstanding_pings=2,
            # a batch of the publisher never waits for nats-py's forced flush, which swallows cancellation
            pending_size=64 * 1024 * 1024,
            error_cb=_report,
            disconnected_cb=ended,
            closed_cb=ended,
        )

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


def _check_fitness(client: Client) -> None:
    """An event that it refuses would end every connection that publishes it."""
    if client.max_payload < MIN_PAYLOAD:
        raise UnfitNats(f"its max_payload is {client.max_payload} bytes; set it to {MIN_PAYLOAD} at least")


async def _end(client: Client, lost: asyncio.Event) -> None:
    """Waits until the connection is lost, also where nats-py does not say so.

    Its ``_close`` calls no callback when what is unsent cannot be sent (the connection was reset under load) or is
    never taken (a server that hangs). Its task that reads ends in any case.
    """
    reading = client._reading_task
    if reading is None:
        return
    told = asyncio.create_task(lost.wait())
    try:
        await asyncio.wait((told, reading), return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        # what they fail with is the end itself, which the log has in a line
        for task in filter(None, (reading, client._flusher_task, client._ping_interval_task)):
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def _report(problem: Exception) -> None:
    log.debug("NATS reports a problem", reason=type(problem).__name__)


async def _close(client: Client) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1):
            await client.close()
