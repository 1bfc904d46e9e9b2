"""What PostgreSQL of a cluster holds: whether its schema fits, and what was made by rpc."""

from __future__ import annotations

from dataclasses import dataclass, field

from orisun_server.storage.boundaries import BoundaryStatus
from orisun_server.storage.migrations import boundary_scope

from ..kube import Object
from . import Blocked, Context


@dataclass(frozen=True)
class Schema:
    """``problem`` says why the schema does not fit yet, "" when it does; ``blocked`` why it could not be looked at."""

    problem: str = ""
    blocked: Blocked | None = None
    boundaries: int = 0
    unmanaged: list[str] = field(default_factory=list)
    #: As BOUNDARY/INDEX.
    unmanaged_indexes: list[str] = field(default_factory=list)


async def look_at_schema(context: Context, obj: Object) -> Schema:
    """Migrate the admin schema and boundaries without a resource, then see whether every scope fits.

    A boundary that a resource manages is migrated by that resource's reconcile: it may want to see a plan first.
    """
    try:
        async with context.postgres.session(obj) as session:
            records = [r for r in await session.boundaries.all() if r.name != session.admin_boundary]
            active = [r for r in records if r.status is BoundaryStatus.ACTIVE]
            unmanaged = [r for r in records if not r.managed_by]
            mine = [boundary_scope(r.name, r.namespace) for r in active if not r.managed_by]
            failures = await session.migrator.apply_each([session.migrator.admin, *mine])
            scopes = [session.migrator.admin, *(boundary_scope(r.name, r.namespace) for r in active)]
            problems = [f"{name}: {error}" for name, error in failures.items()]
            for state in await session.migrator.status(scopes):
                if state.problem and state.scope.name not in failures:
                    problems.append(state.problem)
                elif state.pending and state.scope.name not in failures:
                    problems.append(f"{state.scope.label} has migrations to come")
            indexes = await session.index_catalog.unmanaged()
            return Schema(
                "; ".join(problems[:3]),
                None,
                len(records),
                sorted(r.name for r in unmanaged),
                sorted(f"{i.boundary}/{i.definition.name}" for i in indexes if i.boundary != session.admin_boundary),
            )
    except Blocked as blocked:
        return Schema(str(blocked), blocked)
