"""Makes the tables of boundaries that the catalog lists as PROVISIONING, under a lease for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence, Set

import structlog

from ..errors import Unavailable
from ..tasks import end
from .boundaries import EXISTING, BoundaryRecord, BoundaryStatus, CatalogSql
from .database import Database
from .leases import Lease, Leases
from .migrate import Migrator
from .migrations import Scope, ScopeStatus, boundary_scope

log = structlog.get_logger(__name__)

#: Kind of the leases; a boundary's lease is held while its tables are made.
PROVISION = "provision"

#: Seconds that a boundary waits for what somebody's open transaction holds, the schema say, before the next has its
#: turn: they wait on connections of a pool that the catalog, the leases and the users need too.
_LOCK_PATIENCE = 0.2
#: Boundaries that are tried again at a time: together they wait for less than a new one may.
_TRIED_AT_ONCE = 6


class Provisioner:
    """Makes in the background what is PROVISIONING and what no other server is at; ``made`` is called when some is."""

    def __init__(
        self, database: Database, leases: Leases, migrator: Migrator, sql: CatalogSql, made: Callable[[], None]
    ) -> None:
        self._database, self._leases, self._migrator, self._sql, self._made = database, leases, migrator, sql, made
        self._task: asyncio.Task[None] | None = None
        #: What was tried and is still PROVISIONING, the longest ago first.
        self._tried: dict[str, None] = {}

    async def dispatch(self, records: Iterable[BoundaryRecord]) -> None:
        """Begin with some, unless at it; what is new goes alone, since what was tried may have to wait again.

        Raises Unavailable.
        """
        pending = {record.name: record for record in records if record.status is BoundaryStatus.PROVISIONING}
        if not pending or (self._task is not None and not self._task.done()):
            return
        tried = [name for name in self._tried if name in pending]
        new = pending.keys() - tried
        names = new or set(tried[:_TRIED_AT_ONCE])
        self._tried = dict.fromkeys([*(name for name in tried if name not in names), *names])
        if leases := await self._leases.acquire_many(PROVISION, names, len(names)):
            work = [(pending[lease.boundary], lease) for lease in leases]
            self._task = asyncio.create_task(self._work(work, new), name="catalog-provision")

    async def stop(self) -> None:
        """A boundary in the making is left to another server, or to the next start."""
        if self._task is not None:
            await end([self._task])

    async def _work(self, work: Sequence[tuple[BoundaryRecord, Lease]], new: Set[str]) -> None:
        try:
            left = await provision(self._database, self._migrator, self._sql, work)
        except Exception as error:  # the next poll tries again
            log.warning("boundaries could not be made", reason=str(error) or type(error).__name__)
            return
        finally:
            await asyncio.gather(*(lease.release() for _, lease in work))
        for name in left.keys() & new:
            log.warning("boundary is not made yet", boundary=name, reason=left[name])
        if len(left) < len(work):
            self._made()


async def existing_tables(database: Database, scopes: Sequence[Scope]) -> set[Scope]:
    """Those boundaries whose table of events exists, by one query. Raises Unavailable."""
    names = [scope.names for scope in scopes if scope.names is not None]
    with database.guard():
        rows = await database.admin.fetch(EXISTING, [scope.schema for scope in scopes], [name.events for name in names])
    return {scopes[row["n"] - 1] for row in rows}


async def provision(
    database: Database,
    migrator: Migrator,
    sql: CatalogSql,
    work: Sequence[tuple[BoundaryRecord, Lease]],
) -> dict[str, str]:
    """Make what these boundaries need and write down who is ACTIVE and who FAILED, and why.

    A boundary stays PROVISIONING, for whoever tries next, when PostgreSQL could not be reached for it, when somebody's
    transaction held what it needs, or when its lease was lost: the answer has the names of these, and why.

    Raises Unavailable.
    """
    scopes = {record.name: boundary_scope(record.name, record.namespace) for record, _ in work}
    exist = await existing_tables(database, list(scopes.values()))
    failures: dict[str, Exception] = {}
    wanted = []
    for (record, _), state in zip(work, await migrator.status(scopes.values()), strict=True):
        obstacle = _obstacle(record, state, exists=state.scope in exist)
        if obstacle:
            failures[state.scope.name] = ValueError(obstacle)
        else:
            wanted.append(state.scope)
    await migrator.forget([scope for scope in wanted if scope not in exist])
    failures |= await migrator.apply_each(wanted, _LOCK_PATIENCE)

    done: list[tuple[str, BoundaryStatus, str, int, int]] = []
    left: dict[str, str] = {}
    for record, lease in work:
        failure = failures.get(scopes[record.name].name)
        if isinstance(failure, Unavailable) or not lease.valid:
            left[record.name] = str(failure or "the lease was lost")
            continue
        status = BoundaryStatus.FAILED if failure else BoundaryStatus.ACTIVE
        reason = (str(failure) or type(failure).__name__) if failure else ""
        done.append((record.name, status, reason, record.definition_position.commit, lease.epoch))
        if failure:
            log.warning("boundary failed", boundary=record.name, reason=reason)
    if not done:
        return left
    names, statuses, reasons, defined, epochs = zip(*done, strict=True)
    with database.guard():
        await database.admin.execute(
            sql.settle,
            names,
            [status.value for status in statuses],
            reasons,
            defined,
            epochs,
            PROVISION,
            work[0][1].node_id,
        )
    log.info("boundaries provisioned", count=sum(status is BoundaryStatus.ACTIVE for status in statuses))
    return left


def _obstacle(record: BoundaryRecord, state: ScopeStatus, *, exists: bool) -> str:
    """Why the boundary cannot be made, "" when it can. Nobody's events may turn up in a boundary by accident."""
    names = state.scope.names
    table = f'"{names.schema}"."{names.events}"' if names else ""
    if exists and not state.applied:
        return f"table {table} exists already, and the ledger of migrations does not know it: drop it or move it away"
    if exists and not record.existed_before_catalog and state.applied[0].applied_at < record.created_at:
        return (
            f"table {table} exists already, from before this boundary: create the boundary with"
            " existed_before_catalog=true to go on with its events, or drop the table"
        )
    if not exists and record.existed_before_catalog:
        return f"existed_before_catalog is true, and there is no table {table}"
    return ""
