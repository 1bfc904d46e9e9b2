"""Whether the resources that a catalog names as managers are still there, and what happens to what they leave."""

from __future__ import annotations

from orisun_server.storage.index_catalog import IndexRecord

from ..api import API_VERSION
from ..api.boundary import KIND as BOUNDARY
from ..api.cluster import KIND as CLUSTER
from ..api.index import KIND as INDEX
from ..kube import Object, Ref
from . import Blocked, Context, Outcome
from .postgres import Session


async def cluster_of(context: Context, namespace: str, name: str) -> Object:
    """The OrisunCluster that a resource names. Raises Blocked when there is none, or not for long."""
    cluster = await context.kube.get(Ref(API_VERSION, CLUSTER, namespace, name))
    if cluster is None:
        raise Blocked(
            "ClusterNotFound",
            f"there is no OrisunCluster {namespace}/{name}: create it, or delete this resource and name another",
            retry=15.0,
        )
    if cluster["metadata"].get("deletionTimestamp"):
        raise Blocked("ClusterDeleting", f"OrisunCluster {namespace}/{name} is being deleted", retry=15.0)
    return cluster


async def exists(context: Context, managed_by: str) -> bool:
    """Whether the resource that a catalog names exists. A name that is none of ours counts as one that does."""
    kind, _, rest = managed_by.partition("/")
    namespace, _, name = rest.partition("/")
    if kind not in (BOUNDARY, INDEX) or not name:
        return True
    return await context.kube.get(Ref(API_VERSION, kind, namespace, name)) is not None


async def ending(context: Context, namespace: str) -> Object | None:
    """The namespace, if it is being deleted."""
    found = await context.kube.get(Ref("v1", "Namespace", "", namespace))
    return found if found is not None and found["metadata"].get("deletionTimestamp") else None


async def release_of_gone(context: Context, managed_by: str, namespace: str) -> Outcome:
    """A resource is gone: what a cluster of its namespace lists under its name is released, or (indexes) dropped."""
    for cluster in await context.kube.list(API_VERSION, CLUSTER, namespace):
        try:
            async with context.postgres.session(cluster) as session:
                await release(context, session, only=managed_by)
        except Blocked:
            # the cluster's own reconcile does the same for all, and tells what is wrong
            continue
    return Outcome()


async def release(context: Context, session: Session, *, only: str | None = None) -> None:
    """Let go of what resources that are gone managed: boundaries stay and are managed by nobody, indexes are dropped.

    An index whose Boundary is gone too, or whose namespace is being deleted, stays as well: nothing was asked of it.
    """
    gone: dict[str, bool] = {}

    async def is_gone(managed_by: str) -> bool:
        if managed_by not in gone:
            gone[managed_by] = not await exists(context, managed_by)
        return gone[managed_by]

    orphans: list[IndexRecord] = []
    for record in await session.index_catalog.managed():
        if (only is None or record.managed_by == only) and await is_gone(record.managed_by):
            orphans.append(record)
    boundaries = {record.name: record for record in await session.boundaries.all()}
    for record in orphans:
        boundary = boundaries.get(record.boundary)
        owner = boundary.managed_by if boundary is not None else ""
        namespace = record.managed_by.split("/")[1]
        if not owner or await is_gone(owner) or await ending(context, namespace) is not None:
            await session.index_catalog.manage(record, "")
        else:
            await session.index_catalog.retire(record.boundary, record.definition.name)
    for found in boundaries.values():
        if found.managed_by and only in (None, found.managed_by) and await is_gone(found.managed_by):
            await session.boundaries.manage(found, "")
    if orphans:
        await session.indexes.look()
