"""The administration of one server, put together: users, sign-in, audit log and the projections."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from ..core.criteria import EVENT_TYPE
from ..errors import AlreadyExists, FailedPrecondition
from ..storage.catalog import Boundary, Catalog
from ..storage.counts import NAME as EVENT_COUNT
from ..storage.counts import EventCounts
from ..storage.database import Database
from ..storage.group_commit import Appender
from ..storage.index_sql import IndexDefinition, IndexField
from ..storage.indexes import Indexes
from ..storage.leases import Leases
from ..storage.reads import Reader
from .accounts import Accounts
from .audit import Audit
from .bootstrap import bootstrap, warn_of_default_password
from .logins import Logins
from .passwords import Passwords
from .projections import AUTH_USERS, USERS
from .projector import Projector, RunningProjection
from .sessions import Sessions
from .users import Users

if TYPE_CHECKING:
    from ..settings import Settings

#: Seconds after which the counts of all boundaries are brought up to date, also of those that others append to.
_SWEEP = 10.0
_COUNT_AT_ONCE = 4
#: Seconds between two looks for accounts that changed without a signal: their server died before it projected them.
_LOOK = 2.0
#: Name of the index over the types of the admin boundary's events.
_TYPE_INDEX = "orisun_event_type"


class Administration:
    """``start``, then use the parts; ``stop`` may be called twice."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        catalog: Catalog,
        leases: Leases,
        indexes: Indexes,
        reader: Reader,
        appender: Appender,
    ) -> None:
        schema, self._admin_boundary = settings.admin_schema, settings.admin_boundary
        self._settings, self._database, self._catalog, self._leases = settings, database, catalog, leases
        self._indexes, self._reader, self._schema = indexes, reader, schema
        self._passwords = Passwords()
        #: How many events each boundary has.
        self.counts = EventCounts(database, schema)
        #: Who did what.
        self.audit = Audit(appender, catalog, self._admin_boundary)
        #: Who there is.
        self.users = Users(database, schema, self._passwords)
        #: Checks passwords, not too often.
        self.logins = Logins(self.users, on_failure=self.audit.login_failed)
        #: Authenticates calls.
        self.sessions = Sessions(database, schema, self.users, self.logins, certificates=settings.certificate_users)
        self._dirty: set[str] = set()
        self._swept = float("-inf")
        self._counting: RunningProjection | None = None
        self._projections: list[RunningProjection] = []
        self._running: list[Users | Audit | RunningProjection] = []
        appender.on_commit(self.committed)

    @property
    def accounts(self) -> Accounts:
        """Changes of users and API tokens; after ``start``."""
        return self._accounts

    async def start(self) -> None:
        """Brings the projections up to date, makes sure of an administrator, and starts what runs in the background.

        Raises Unavailable without PostgreSQL.
        """
        boundary = self._catalog.get(self._admin_boundary)
        await self._index_types(boundary)
        projectors = [
            Projector(projection, self._database, self._reader, boundary, self._schema)
            for projection in (USERS, AUTH_USERS)
        ]
        self._accounts = Accounts(
            self._database,
            self._schema,
            catalog=self._catalog,
            admin_boundary=self._admin_boundary,
            reader=self._reader,
            users=self.users,
            logins=self.logins,
            passwords=self._passwords,
            audit=self.audit,
            projectors=projectors,
        )
        await self._accounts.start()
        await self._start(self.users)
        await bootstrap(self._accounts, self._settings)
        await warn_of_default_password(self.users, self._settings)
        await self.sessions.start()
        await self._start(self.audit)
        for projector in projectors:
            started, not_started = projector.projection.started, projector.projection.not_started
            await self._start(
                RunningProjection(
                    projector.projection.name, boundary.name, self._leases, projector.catch_up,
                    started=started, not_started=not_started, poll=_LOOK,
                )
            )  # fmt: skip
        self._counting = RunningProjection(
            EVENT_COUNT, boundary.name, self._leases, self._count,
            started="Event count projector started",
            not_started="Failed to start event count projection (likely due to lock contention)",
            pause=0.5,
        )  # fmt: skip
        await self._start(self._counting)

    async def stop(self) -> None:
        running, self._running = self._running[::-1], []
        for part in running:
            await part.stop()
        self._passwords.close()

    def committed(self, boundary: str | None) -> None:
        """Events were appended to a boundary, here or elsewhere; None when to any."""
        if boundary is None:
            self._dirty.update(known.name for known in self._catalog.active())
        elif boundary:
            self._dirty.add(boundary)
        if self._counting is not None:
            self._counting.wake()
        if boundary in (None, self._admin_boundary):
            for projection in self._projections:
                projection.wake()

    async def _index_types(self, boundary: Boundary) -> None:
        """The audit log grows for ever, and every change of an account looks for the latest of its kind."""
        index = IndexDefinition(_TYPE_INDEX, (IndexField(EVENT_TYPE),))
        if not any(known.definition.name == index.name for known in await self._indexes.list(boundary)):
            # another server may be making the same one, or somebody another one of that name
            with contextlib.suppress(AlreadyExists, FailedPrecondition):
                await self._indexes.create(boundary, index)

    async def _start(self, part: Users | Audit | RunningProjection) -> None:
        self._running.append(part)
        if isinstance(part, RunningProjection):
            self._projections.append(part)
        await part.start()

    async def _count(self) -> None:
        """Brings the counts up to date of the boundaries that changed."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._swept >= _SWEEP:
            self._swept = loop.time()
            self._dirty.update(await self.counts.behind(self._catalog.active()))
        dirty, self._dirty = self._dirty, set()
        slots = asyncio.Semaphore(_COUNT_AT_ONCE)

        async def count(name: str) -> None:
            async with slots:
                await self.counts.advance(active[name])

        active = {boundary.name: boundary for boundary in self._catalog.active()}
        await asyncio.gather(*(count(name) for name in dirty if name in active))
