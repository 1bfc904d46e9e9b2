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

from . import Context
from .managers import release
from .postgres import Session

_NAMED = 20


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
    unmanaged: Unmanaged


async def survey(context: Context, cluster: Mapping[str, Any]) -> Survey:
    """Migrate what is unmanaged, release what resources left behind, and say where the schema stands.

    Raises Blocked: PostgreSQL cannot be reached or used, or the admin schema does not fit.
    """
    async with context.postgres.session(cluster) as session:
        await release(context, session)
        records = await session.boundaries.all()
        active = [record for record in records if record.status is BoundaryStatus.ACTIVE]
        free = [boundary_scope(record.name, record.namespace) for record in active if not record.managed_by]
        failures = await session.migrator.apply_each(free) if free else {}
        missing = {name.partition(":")[2]: str(error) for name, error in failures.items()}
        managers = {record.name: record.managed_by for record in active}
        scopes = [boundary_scope(record.name, record.namespace) for record in active]
        for state in await session.migrator.status(scopes):
            name = state.scope.name.partition(":")[2]
            if state.problem:
                missing[name] = state.problem
            elif state.pending and name not in missing:
                missing[name] = (
                    f'boundary "{name}" waits for its migrations, which {managers[name] or "nobody"} manages'
                )
        problems = sorted(missing.values())
        text = "; ".join(problems[:_NAMED]) or f"{len(active)} boundaries fit"
        return Survey(not problems, text, await unmanaged(session))


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
