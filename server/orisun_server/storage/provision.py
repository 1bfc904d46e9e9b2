"""Makes the tables of boundaries that the catalog lists as PROVISIONING, under a lease for each."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from ..errors import Unavailable
from .boundaries import EXISTING, BoundaryRecord, BoundaryStatus, CatalogSql
from .database import Database
from .leases import Lease
from .migrate import Migrator
from .migrations import Scope, ScopeStatus, boundary_scope

log = structlog.get_logger(__name__)

#: Kind of the leases; a boundary's lease is held while its tables are made.
PROVISION = "provision"


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
) -> None:
    """Make what these boundaries need and write down who is ACTIVE and who FAILED, and why.

    A boundary for which PostgreSQL could not be reached stays PROVISIONING, for whoever tries next. Raises Unavailable.
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
    failures |= await migrator.apply_each(wanted)

    done: list[tuple[str, BoundaryStatus, str, int, int]] = []
    for record, lease in work:
        failure = failures.get(scopes[record.name].name)
        if isinstance(failure, Unavailable) or not lease.valid:
            continue
        status = BoundaryStatus.FAILED if failure else BoundaryStatus.ACTIVE
        reason = (str(failure) or type(failure).__name__) if failure else ""
        done.append((record.name, status, reason, record.definition_position.commit, lease.epoch))
        if failure:
            log.warning("boundary failed", boundary=record.name, reason=reason)
    if not done:
        return
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
