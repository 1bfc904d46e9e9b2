"""Which boundaries this server publishes: its fair share of all, each under a lease.

A share is ceil(boundaries / live servers). One statement a second takes what is free, up to that; what is more is given
back, after its batch, when another server wants it (``appetite`` says why). A server that cannot reach NATS owns
nothing, so that one that can takes over.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

import asyncpg
import structlog
from nats.js.errors import NotFoundError

from ..errors import OrisunError
from ..observation import Watch
from ..settings import Settings
from ..storage.catalog import Boundary, Catalog
from ..storage.database import Database
from ..storage.leases import Lease, Leases
from ..storage.reads import Reader
from ..tasks import end, happens
from .appetite import Appetite
from .lookout import Lookout
from .nats import NATS_ERRORS, Nats
from .publisher import Publisher
from .signals import Signals
from .store import trim
from .stream import EventStream

log = structlog.get_logger(__name__)

KIND = "publisher"

_INTERVAL = 1.0

#: A server that stops hands its boundaries over first and leaves the others its share a moment later; and what is free
#: for longer than it takes the others to look is taken by who has its share.
_SOON, _SOON_INTERVAL = 1.5, 0.1
_TRIM_INTERVAL = 10.0

#: Seconds without NATS after which another server may publish instead.
_WITHOUT_NATS = 3.0

#: Seconds that a publisher gets to finish its batch.
_FINISH = 10.0


class Publishers:
    """The publishers of this server, and the supervisor that decides which they are."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        catalog: Catalog,
        leases: Leases,
        reader: Reader,
        nats: Nats,
        signals: Signals,
        lookout: Lookout,
        quiet_for: Callable[[], float],
        watch: Watch | None = None,
    ) -> None:
        """``quiet_for()``: seconds for which this server has appended nothing."""
        self._settings, self._database, self._reader, self._watch = settings, database, reader, watch
        self._catalog, self._leases, self._nats, self._signals = catalog, leases, nats, signals
        self._lookout, self._quiet_for = lookout, quiet_for
        self._appetite = Appetite(nats, uuid.uuid4().hex)
        self._running: dict[str, tuple[Publisher, asyncio.Task[None]]] = {}
        self._refused: set[str] = set()
        self._look = asyncio.Event()
        self._soon_until = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._nats_left_at = time.monotonic()
        self._trim_at = 0.0
        signals.on_signal(self._signalled)
        catalog.on_change(self._look.set)
        nats.on_change(self._nats_changed)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._supervise(), name="publishers")

    async def stop(self) -> None:
        """Finishes the batches and hands all boundaries over."""
        if self._task is not None:
            await end([self._task])
        await self._give_up(list(self._running))

    def committed(self, boundary: str) -> None:
        """This server committed events."""
        running = self._running.get(boundary)
        if running is not None and running[0].lease.valid:
            running[0].wake()
        else:
            self._signals.send(boundary)

    def published_here(self) -> list[str]:
        """The boundaries that this server publishes."""
        return sorted(self._running)

    def epochs(self) -> dict[str, int]:
        """The epoch of the lease of each boundary that this server publishes."""
        return {name: publisher.lease.epoch for name, (publisher, _) in sorted(self._running.items())}

    def _signalled(self, boundary: str | None) -> None:
        if not boundary:
            self._soon_until = time.monotonic() + _SOON
            self._look.set()
        for name, (publisher, _) in self._running.items():
            if boundary in (None, name):
                publisher.wake()

    def _nats_changed(self) -> None:
        if not self._nats.connected:
            self._nats_left_at = time.monotonic()
        self._look.set()
        for publisher, _ in self._running.values():
            publisher.wake()

    async def _supervise(self) -> None:
        while True:
            try:
                await self._balance()
                if self._settings.nats_max_store and time.monotonic() >= self._trim_at:
                    await trim(self._nats.connection, self._settings.nats_max_store, frozenset(self._running))
                    self._trim_at = time.monotonic() + _TRIM_INTERVAL
            except NATS_ERRORS as problem:
                log.debug("publishers could not be looked after", reason=str(problem))
            except Exception:
                log.exception("publishers could not be looked after")
            soon = time.monotonic() < self._soon_until
            await happens(self._look, _SOON_INTERVAL if soon else _INTERVAL)
            self._look.clear()

    async def _balance(self) -> None:
        for name, (_, task) in list(self._running.items()):
            if task.done():
                await self._give_up([name])
        boundaries = {boundary.name: boundary for boundary in self._catalog.active()}
        share = -(-len(boundaries) // max(1, await self._leases.live_nodes()))
        if not self._nats.connected:
            if time.monotonic() - self._nats_left_at < _WITHOUT_NATS:
                return
            await self._give_up(list(self._running))
            return
        await self._appetite.listen()
        gone = [name for name, (publisher, _) in self._running.items() if boundaries.get(name) != publisher.boundary]
        # what only this server cannot run on goes on elsewhere, and so does its stream
        refused = self._catalog.refused.keys() & gone
        await self._give_up(list(refused))
        await self._give_up([name for name in gone if name not in refused], forever=True)
        if self._appetite.others_want:
            await self._give_up(list(self._running)[share:])
        self._refused &= boundaries.keys()
        others = [name for name in boundaries if name not in self._running]
        room = min(share - len(self._running), len(others))
        if room <= 0:
            free = await self._leases.free(KIND, others) if others else []
            others = self._appetite.left_over(free)
            room = len(others)
            if free:
                self._soon_until = time.monotonic() + _SOON
        if not others:
            return
        leases = await self._leases.acquire_many(KIND, others, room)
        for lease in leases:
            self._begin(boundaries[lease.boundary], lease)
        if len(leases) < room:
            self._say_refused(set(others) - self._running.keys())
            if len(self._running) < share:
                await self._appetite.say()
        else:
            # there may be more, for which nobody has room
            self._look.set()

    def _begin(self, boundary: Boundary, lease: Lease) -> None:
        log.info(f"Successfully acquired lock for boundary: {boundary.name}")
        self._refused.discard(boundary.name)
        publisher = Publisher(
            boundary,
            lease,
            reader=self._reader,
            nats=self._nats,
            database=self._database,
            lookout=self._lookout,
            signals=self._signals,
            settings=self._settings,
            quiet_for=self._quiet_for,
            watch=self._watch,
        )
        self._running[boundary.name] = (
            publisher,
            asyncio.create_task(self._run(publisher), name=f"publisher:{boundary.name}"),
        )

    async def _run(self, publisher: Publisher) -> None:
        """Until the publisher ends; a lost lease ends it, and the supervisor looks at once."""
        lost = asyncio.create_task(publisher.lease.lost.wait())
        lost.add_done_callback(lambda _: publisher.stop())
        try:
            await publisher.run()
        except (OrisunError, asyncpg.PostgresError) as problem:
            # the tables of a boundary that was removed are gone
            log.warning("a publisher ended", boundary=publisher.boundary.name, reason=type(problem).__name__)
        finally:
            lost.cancel()
            self._look.set()

    def _say_refused(self, names: set[str]) -> None:
        for name in sorted(names - self._refused):
            log.info(f"Failed to acquire lock for boundary: {name}")
        self._refused |= names

    async def _give_up(self, names: list[str], *, forever: bool = False) -> None:
        """Lets publishers finish, then frees their leases and tells the others.

        ``forever``: the boundaries are not active any more, so their streams go too; one that comes back is made anew.
        """
        ended = [self._running.pop(name) for name in names]
        if not ended:
            return
        for publisher, _ in ended:
            publisher.stop()
        tasks = [task for _, task in ended]
        _, late = await asyncio.wait(tasks, timeout=_FINISH)
        await end(late)
        if forever:
            await asyncio.gather(*(self._delete_stream(publisher.boundary.name) for publisher, _ in ended))
        await asyncio.gather(*(publisher.lease.release() for publisher, _ in ended))
        self._signals.send("")

    async def _delete_stream(self, boundary: str) -> None:
        try:
            await EventStream(self._nats.connection, boundary, self._settings).delete()
            log.info("stream deleted", boundary=boundary)
        except NotFoundError:
            pass
        except NATS_ERRORS as problem:
            # it holds nothing any more once its events have aged
            log.warning("stream is left behind", boundary=boundary, reason=str(problem))
