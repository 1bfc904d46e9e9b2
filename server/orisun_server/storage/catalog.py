"""The catalog of boundaries: a table in the admin schema that every server follows.

A boundary is data, not a restart: whoever adds one writes a row, one server makes its tables under a lease, and all
servers see it with their next poll. The settings seed the catalog.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from ..errors import AlreadyExists, BoundaryNotActive, FailedPrecondition, NotFound, SchemaMismatch, Unavailable
from ..tasks import end
from .boundaries import (
    BACKEND,
    Boundary,
    BoundaryRecord,
    BoundaryStatus,
    CatalogSql,
    check_name,
    check_placement,
    record_of,
)
from .database import Database
from .leases import Leases
from .migrate import Migrator
from .migrations import ScopeStatus, boundary_scope
from .provision import Provisioner, existing_tables

__all__ = ["Boundary", "BoundaryRecord", "BoundaryStatus", "Catalog"]

log = structlog.get_logger(__name__)

#: Seconds that a boundary's migration waits for what somebody's open transaction holds, before the next poll.
_LOCK_PATIENCE = 0.5
#: How long ``create`` waits for the boundary to be ready before it answers PROVISIONING.
_CREATE_PATIENCE = 1.5


class Catalog:
    """The boundaries, cached; a poll of one statement notices changes within ``poll_interval`` seconds.

    ``seeds`` are (name, description, schema); the admin schema must be migrated before ``start``. With ``migrate``
    false an existing boundary whose schema does not fit is refused instead of migrated.
    """

    def __init__(
        self,
        database: Database,
        leases: Leases,
        migrator: Migrator,
        seeds: Iterable[tuple[str, str, str]] = (),
        *,
        migrate: bool = True,
        poll_interval: float = 0.5,
    ) -> None:
        self._database, self._migrator = database, migrator
        self._sql = CatalogSql.for_schema(migrator.admin.schema)
        self._seeds, self._migrate, self._interval = list(seeds), migrate, poll_interval
        self._version = -1
        self._records: dict[str, BoundaryRecord] = {}
        self._active: dict[str, Boundary] = {}
        self._refused: dict[str, str] = {}
        #: Whether some of them only wait for somebody's transaction.
        self._locked = False
        self._callbacks: list[Callable[[], None]] = []
        self._changed = asyncio.Condition()
        self._refreshing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        # what it waits for in PostgreSQL must not keep the catalog from being read
        self._provisioner = Provisioner(database, leases, migrator, self._sql, self._wake.set)

    # -- what others ask -------------------------------------------------------------------------------------------

    def get(self, name: str) -> Boundary:
        """The active boundary of that name, from the cache. Raises BoundaryNotActive."""
        boundary = self._active.get(name)
        if boundary is None:
            raise BoundaryNotActive(name)
        return boundary

    def active(self) -> Sequence[Boundary]:
        """Every active boundary, from the cache, by name."""
        return tuple(self._active.values())

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back after the cache has changed."""
        self._callbacks.append(callback)

    @property
    def refused(self) -> dict[str, str]:
        """Boundaries that are active elsewhere and not here, because their schema does not fit; name to reason."""
        return dict(self._refused)

    async def list(self) -> list[BoundaryRecord]:
        """Every boundary as the catalog has it now, by name. Raises Unavailable."""
        await self._refresh()
        return [*self._records.values()]

    async def find(self, name: str) -> BoundaryRecord:
        """The boundary as the catalog has it now. Raises NotFound, Unavailable."""
        await self._refresh()
        record = self._records.get(name)
        if record is None:
            raise NotFound(f'boundary "{name}" not found')
        return record

    async def create(
        self, name: str, description: str, backend: str | None, namespace: str | None, existed_before_catalog: bool
    ) -> BoundaryRecord:
        """Add a boundary and wait a moment for it; it may come back PROVISIONING or FAILED (with the reason).

        ``backend`` and ``namespace`` are None when the request has no placement.

        Raises:
            InvalidArgument: The name, the backend or the namespace (schema) cannot be.
            AlreadyExists: There is one of that name that has not failed.
            FailedPrecondition: A resource in a cluster manages the one of that name, and it has failed or is another.
            Unavailable: PostgreSQL cannot be reached.
        """
        check_name(name)
        schema = check_placement(backend, namespace)
        with self._database.guard():
            row = await self._database.admin.fetchrow(
                self._sql.create, name, description, BACKEND, schema, existed_before_catalog
            )
        if row is None:
            await self._refuse_change(name, description, schema)
            raise AlreadyExists(f'boundary "{name}" already exists')
        log.info("boundary added", boundary=name, schema=schema)
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CREATE_PATIENCE):
                await self._settled([name], record_of(row).definition_position.commit)
        return await self.find(name)

    async def _refuse_change(self, name: str, description: str, schema: str) -> None:
        """Raise FailedPrecondition if asking for this would change a boundary that a resource manages."""
        await self._refresh()
        found = self._records.get(name)
        if found is None or not found.managed_by:
            return
        failed = found.status is BoundaryStatus.FAILED
        if failed or (found.description, found.namespace) != (description, schema):
            raise FailedPrecondition(
                f'boundary "{name}" is managed by {found.managed_by}: change that resource instead'
                + (f" (it failed: {found.last_error})" if failed else "")
            )

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Seed the catalog, make or migrate what the boundaries need, and follow it from then on.

        What somebody's open transaction holds is waited for, however long.

        Raises:
            FailedPrecondition: A seed contradicts the catalog, or its tables could not be made.
            SchemaMismatch: A boundary's schema does not fit this server.
            Unavailable: PostgreSQL cannot be reached.
        """
        await self._seed()
        await self._refresh()
        while self._locked:
            await asyncio.sleep(self._interval)
            await self._admit_again()
        for name, _, schema in self._seeds:
            if (found := self._records[name].namespace) != schema:
                raise FailedPrecondition(
                    f'boundary "{name}": ORISUN_PG_SCHEMAS puts it into schema "{schema}", and the catalog has it in'
                    f' "{found}": write {name}:{found}, or choose another boundary name'
                )
        if self._refused:
            raise SchemaMismatch(next(iter(self._refused.values())))
        self._task = asyncio.create_task(self._follow(), name="catalog-poll")
        try:
            names = [name for name, _, _ in self._seeds]
            await self._settled(names)
            for name in names:
                record = self._records.get(name)
                if record is not None and record.status is BoundaryStatus.FAILED:
                    raise FailedPrecondition(f'boundary "{name}" could not be made: {record.last_error}')
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop following; a boundary in the making is left to another server, or to the next start."""
        if self._task is not None:
            await end([self._task])
            self._task = None
        await self._provisioner.stop()

    async def _seed(self) -> None:
        names, descriptions, schemas = ([seed[field] for seed in self._seeds] for field in range(3))
        scopes = [boundary_scope(name, schema) for name, _, schema in self._seeds]
        exist = await existing_tables(self._database, scopes)
        # the settings name the boundary themselves, so tables from before (of a lost catalog, say) are no accident
        existed = [scope in exist for scope in scopes]
        with self._database.guard():
            await self._database.admin.execute(self._sql.seed, names, descriptions, schemas, existed, BACKEND)

    async def _follow(self) -> None:
        failing = False
        while True:
            self._wake.clear()
            try:
                await self._refresh()
                if self._refused:
                    # somebody may have migrated it; the catalog's version says nothing about that
                    await self._admit_again()
                await self._provisioner.dispatch(self._records.values())
                failing = False
            except Exception as error:  # the poll goes on, whatever happens
                if not failing:
                    log.warning("the catalog cannot be followed", reason=str(error) or type(error).__name__)
                failing = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()

    async def _refresh(self) -> None:
        """Bring the cache up to the catalog's version: one statement when nothing has changed."""
        async with self._refreshing:
            with self._database.guard():
                rows = await self._database.admin.fetch(self._sql.changes, self._version)
            # one row at least, the version; it comes alone when the catalog is empty or as old as the cache
            if not rows or rows[0]["version"] == self._version:
                return
            records = {row["name"]: record_of(row) for row in rows if row["name"] is not None}
            await self._admit(records)
            self._records, self._version = records, rows[0]["version"]
        await self._tell()

    async def _admit_again(self) -> None:
        async with self._refreshing:
            before = self._refused
            await self._admit(self._records)
        if self._refused.keys() != before.keys():
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                log.exception("a listener of the catalog failed")

    async def _admit(self, records: Mapping[str, BoundaryRecord]) -> None:
        """Of the boundaries that are active in the catalog, take those whose schema fits this server."""
        active: dict[str, Boundary] = {}
        unknown = []
        for name, record in records.items():
            if record.status is BoundaryStatus.ACTIVE:
                known = self._active.get(name)
                if known is not None and known.schema == record.namespace:
                    active[name] = known
                else:
                    unknown.append(boundary_scope(name, record.namespace))
        unfit = await self._unfit(await self._migrator.status(unknown)) if unknown else {}
        self._locked = any(isinstance(error, Unavailable) for error in unfit.values())
        refused = {name: str(error) for name, error in unfit.items()}
        for name in sorted({scope.name.partition(":")[2] for scope in unknown} - refused.keys()):
            active[name] = Boundary.at(name, records[name].namespace)
        for name in refused.keys() - self._refused.keys():
            log.error("boundary refused", boundary=name, reason=refused[name])
        self._active, self._refused = dict(sorted(active.items())), refused

    async def _unfit(self, states: Sequence[ScopeStatus]) -> dict[str, Exception]:
        """Boundary to reason, for those that this server cannot run on even after it has added what is missing."""
        failures: dict[str, Exception] = {}
        if self._migrate:
            pending = [state.scope for state in states if state.pending]
            failures = await self._migrator.apply_each(pending, _LOCK_PATIENCE)
            states = [state for state in states if not state.pending]
        for state in states:
            try:
                self._migrator.check(state)
            except SchemaMismatch as error:
                failures[state.scope.name] = error
        return {name.partition(":")[2]: error for name, error in failures.items()}

    async def _settled(self, names: Sequence[str], version: int = 0) -> None:
        """Wait until none of the boundaries is PROVISIONING, in the cache at that version or a later one."""

        def settled() -> bool:
            statuses = {self._records[name].status for name in names if name in self._records}
            return self._version >= version and BoundaryStatus.PROVISIONING not in statuses

        async with self._changed:
            await self._changed.wait_for(settled)
