"""Whether the resources that a catalog names as managers are still there, and what happens to what they leave."""

from __future__ import annotations

from collections.abc import Callable

from ..api import API_VERSION, PREFIX
from ..api.boundary import KIND as BOUNDARY
from ..api.cluster import KIND as CLUSTER
from ..api.index import KIND as INDEX
from ..api.manager import Manager, parse
from ..kube import KubeError, Object, Ref
from . import Blocked, Context, Outcome, Paused
from .postgres import Session
from .report import PAUSED

#: On an OrisunCluster: the Kubernetes cluster whose resources are gone for good, so that ours take their place.
TAKE_OVER = f"{PREFIX}take-over"
#: Seconds after which an index whose resource is missing is dropped, though nobody saw it being deleted.
_STAYS_AWAY = 120.0


async def cluster_of(context: Context, namespace: str, name: str) -> Object:
    """The OrisunCluster that a resource names. Raises Blocked when there is none, or not for long, or it is paused."""
    cluster = await context.kube.get(Ref(API_VERSION, CLUSTER, namespace, name))
    if cluster is None:
        raise Blocked(
            "ClusterNotFound",
            f"there is no OrisunCluster {namespace}/{name}: create it, or delete this resource and name another",
            retry=15.0,
        )
    if cluster["metadata"].get("deletionTimestamp"):
        raise Blocked("ClusterDeleting", f"OrisunCluster {namespace}/{name} is being deleted", retry=15.0)
    if is_paused(cluster):
        raise paused(cluster)
    return cluster


def is_paused(cluster: Object) -> bool:
    """Whether the spec keeps the operator away from everything that is the cluster's, its PostgreSQL included."""
    return bool(cluster["spec"].get("paused"))


def paused(cluster: Object, what: str = "nothing is changed") -> Paused:
    """To be raised where a paused cluster's PostgreSQL would have to be asked."""
    metadata = cluster["metadata"]
    text = f"OrisunCluster {metadata['namespace']}/{metadata['name']} is paused: {what} until its spec.paused is false"
    return Paused(PAUSED, text, stalled=False, retry=15.0)


async def manager_of(context: Context, kind: str, namespace: str, name: str) -> Manager:
    """How a catalog names one of our resources."""
    return Manager(kind, namespace, name, await context.kube.identity())


async def exists(context: Context, managed_by: str) -> bool:
    """Whether the resource that a catalog names exists. One that cannot be looked up counts as one that does."""
    manager = parse(managed_by)
    if manager is None or manager.kind not in (BOUNDARY, INDEX):
        return True
    if manager.is_foreign(manager._replace(kubernetes=await context.kube.identity())):
        return True
    try:
        ref = Ref(API_VERSION, manager.kind, manager.namespace, manager.name)
        return await context.kube.get(ref) is not None
    except KubeError as error:
        if error.status == 403:  # of a namespace that is another operator's
            return True
        raise


async def check_free(context: Context, cluster: Object, managed_by: str, what: str) -> None:
    """Whether a resource may take over what ``managed_by`` has managed. Raises Blocked when that resource is there."""
    if not managed_by or not await exists(context, managed_by):
        return
    manager = parse(managed_by)
    if manager is not None and manager.is_foreign(manager._replace(kubernetes=await context.kube.identity())):
        if (cluster["metadata"].get("annotations") or {}).get(TAKE_OVER) == manager.kubernetes:
            return
        raise Blocked(
            "NameTaken",
            f"{what} is managed by {managed_by} already, a resource of another Kubernetes cluster: create this one with"
            " another spec.name, or use another database; if that cluster is gone for good, annotate OrisunCluster"
            f" {cluster['metadata']['name']} with {TAKE_OVER}={manager.kubernetes}",
        )
    raise Blocked(
        "NameTaken",
        f"{what} is managed by {managed_by} already: delete one of the two, or create this one with another spec.name",
    )


async def ending(context: Context, namespace: str) -> Object | None:
    """The namespace, if it is being deleted."""
    found = await context.kube.get(Ref("v1", "Namespace", "", namespace))
    return found if found is not None and found["metadata"].get("deletionTimestamp") else None


async def release_of_gone(context: Context, kind: str, namespace: str, name: str) -> Outcome:
    """A resource is gone: what a cluster of its namespace lists under its name is released, or (indexes) dropped."""
    manager = await manager_of(context, kind, namespace, name)
    try:
        clusters = await context.kube.list(API_VERSION, CLUSTER, namespace)
    except KubeError as error:
        # a namespace that was deleted took our Role with it
        if error.status != 403:
            raise
        clusters = []
    for cluster in clusters:
        if is_paused(cluster):
            continue
        try:
            async with context.postgres.session(cluster) as session:
                await _release(context, session, manager.is_called, at_once=True)
        except Blocked:
            # the cluster's own reconcile does the same for all, and tells what is wrong
            continue
    return Outcome(gone=True)


async def release(context: Context, session: Session, namespace: str) -> None:
    """Let go of what resources that are gone managed: boundaries stay and are managed by nobody, indexes are dropped.

    An index whose Boundary is gone too, or whose namespace is being deleted, stays as well: nothing was asked of it.
    One whose deletion nobody saw is dropped only when its resource stays away, since a whole namespace may be on its
    way back, boundaries before indexes.
    """
    there = [
        await manager_of(context, kind, namespace, one["metadata"]["name"])
        for kind in (BOUNDARY, INDEX)
        for one in await context.kube.list(API_VERSION, kind, namespace)
    ]
    await _release(context, session, lambda text: not any(one.is_called(text) for one in there), at_once=False)


async def _release(context: Context, session: Session, may_be_gone: Callable[[str], bool], *, at_once: bool) -> None:
    gone: dict[str, bool] = {}

    async def is_gone(managed_by: str) -> bool:
        if managed_by not in gone:
            gone[managed_by] = may_be_gone(managed_by) and not await exists(context, managed_by)
        return gone[managed_by]

    boundaries = {record.name: record for record in await session.boundaries.all()}
    orphans = [one for one in await session.index_catalog.managed() if await is_gone(one.managed_by)]
    for record in orphans:
        boundary = boundaries.get(record.boundary)
        owner = boundary.managed_by if boundary is not None else ""
        if not owner or not await exists(context, owner) or await _is_ending(context, record.managed_by):
            await session.index_catalog.manage(record, "")
        elif at_once or _has_stayed_away(context, session, record.managed_by):
            await session.index_catalog.retire(record)
    for known in session.missing.keys() - {record.managed_by for record in orphans}:
        if not at_once:
            del session.missing[known]
    for found in boundaries.values():
        if found.managed_by and await is_gone(found.managed_by):
            await session.boundaries.manage(found, "")
    if orphans:
        await session.indexes.look()


async def _is_ending(context: Context, managed_by: str) -> bool:
    manager = parse(managed_by)
    return manager is not None and await ending(context, manager.namespace) is not None


def _has_stayed_away(context: Context, session: Session, managed_by: str) -> bool:
    since = session.missing.setdefault(managed_by, context.clock())
    return (context.clock() - since).total_seconds() >= _STAYS_AWAY
