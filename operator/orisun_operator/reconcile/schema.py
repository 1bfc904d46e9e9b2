"""What an OrisunCluster's reconcile asks of its store: is the schema ready for a new image, and what is unmanaged.

Servers of a cluster only verify the schema, so the operator migrates what no Boundary looks after too: boundaries that
were made by rpc. A Boundary's own tables are left to its reconcile, which may have to wait for an approval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orisun_server.storage.boundaries import BoundaryStatus
from orisun_server.storage.migrations import boundary_scope

from ..api.manager import parse
from . import Context
from .managers import release
from .postgres import Session

#: Problems that a message names.
_NAMED = 3


@dataclass(frozen=True)
class Unmanaged:
    """What was made by rpc and no resource manages: boundaries by name, indexes as ``boundary/index``; sorted."""

    boundaries: tuple[str, ...]
    indexes: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """``ready`` is whether servers of this release can run on all of the schema; ``message`` says what is missing."""

    ready: bool
    message: str
    #: How many the catalog lists, the admin boundary apart.
    boundaries: int
    unmanaged: Unmanaged


async def survey(context: Context, cluster: Mapping[str, Any]) -> Survey:
    """Migrate what is unmanaged, release what resources left behind, and say where the schema stands.

    Raises Blocked: PostgreSQL cannot be reached or used, or the admin schema does not fit.
    """
    async with context.postgres.session(cluster) as session:
        await release(context, session, cluster["metadata"]["namespace"])
        records = await session.boundaries.all()
        active = {record.name: record for record in records if record.status is BoundaryStatus.ACTIVE}
        scopes = {name: boundary_scope(name, record.namespace) for name, record in active.items()}
        free = [scopes[name] for name, record in active.items() if not record.managed_by]
        failures = await session.migrator.apply_each([session.migrator.admin, *free])
        missing = {name: f"{name}: {error}" for name, error in failures.items()}
        for state in await session.migrator.status([session.migrator.admin, *scopes.values()]):
            if state.problem:
                missing[state.scope.name] = state.problem
            elif state.pending and state.scope.name not in missing:
                missing[state.scope.name] = f"{state.scope.label} has migrations to come"
        for name, scope in scopes.items():
            if scope.name in missing and (manager := parse(active[name].managed_by)):
                missing[scope.name] += f" (see {manager.kind} {manager.namespace}/{manager.name})"
        problems = [missing[name] for name in sorted(missing)]
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        return Survey(
            not problems,
            "; ".join(problems[:_NAMED]) + more,
            sum(record.name != session.admin_boundary for record in records),
            await unmanaged(session),
        )


async def unmanaged(session: Session) -> Unmanaged:
    """What no resource manages; the admin boundary is the cluster's own. Raises Unavailable."""
    boundaries = [
        record.name
        for record in await session.boundaries.all()
        if not record.managed_by and record.name != session.admin_boundary
    ]
    indexes = [
        f"{record.boundary}/{record.definition.name}"
        for record in await session.index_catalog.unmanaged()
        if record.boundary != session.admin_boundary
    ]
    return Unmanaged(tuple(sorted(boundaries)), tuple(sorted(indexes)))
