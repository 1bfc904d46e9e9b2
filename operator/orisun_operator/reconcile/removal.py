"""A Boundary that is being deleted with a deletionPolicy other than Retain: its events are archived, dropped, or kept.

Only what the catalog lists under this resource is touched, and only while the namespace is to stay. Nothing here makes
a deletion hang for good: without its cluster, or in a namespace that ends, the events stay where they are.
"""

from __future__ import annotations

from orisun_server.storage.archive import summary
from orisun_server.storage.boundaries import Boundary, BoundaryStatus

from ..api import API_VERSION
from ..api.boundary import FINALIZER, KIND, BoundarySpec
from ..api.cluster import KIND as CLUSTER
from ..api.manager import Manager
from ..kube import KubeError, Object, Ref
from . import Blocked, Context, Outcome
from .archiving import Archived, archive
from .managers import ending, is_paused, manager_of, paused
from .postgres import Session
from .report import Report, position

#: Seconds until a removal that waits for somebody is looked at again.
_AGAIN = 2.0


async def remove(context: Context, obj: Object, spec: BoundarySpec, report: Report) -> Outcome:
    """One step of a deletion; the finalizer goes with the last one. Raises Blocked."""
    if FINALIZER not in (obj["metadata"].get("finalizers") or ()):
        report.over = True
        return Outcome()
    namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
    policy = spec.deletion_policy
    if policy != "Retain" and (place := await ending(context, namespace)) is not None:
        # nothing can be written into such a namespace any more, Events neither: this one is the namespace's own
        text = _kept(policy, "the namespace is being deleted")
        await context.kube.event(place, "Warning", "EventsRetained", f"Boundary {name}: {text}")
        policy = "Retain"
    cluster = await context.kube.get(Ref(API_VERSION, CLUSTER, namespace, spec.cluster_ref.name))
    if cluster is None or cluster["metadata"].get("deletionTimestamp"):
        if policy != "Retain":
            text = _kept(policy, f"OrisunCluster {spec.cluster_ref.name} is gone")
            await report.event("EventsRetained", text, warning=True)
        return await _let_go(obj, report)
    if policy == "Retain":
        if not is_paused(cluster):
            await _release(context, cluster, spec, await manager_of(context, KIND, namespace, name))
        return await _let_go(obj, report)
    if is_paused(cluster):
        raise paused(cluster, f"deletionPolicy {policy} waits")
    try:
        async with context.postgres.session(cluster) as session:
            return await _remove(session, obj, spec, cluster, report)
    except Blocked as problem:
        text = f"{problem}; to let this resource go and keep the events, set spec.deletionPolicy: Retain"
        raise Blocked(problem.reason, text, stalled=problem.stalled, retry=problem.retry) from None


async def _remove(session: Session, obj: Object, spec: BoundarySpec, cluster: Object, report: Report) -> Outcome:
    manager = await manager_of(report.context, KIND, obj["metadata"]["namespace"], obj["metadata"]["name"])
    record = await session.boundaries.find(spec.name)
    if record is None or not manager.is_called(record.managed_by) or spec.name == session.admin_boundary:
        # never ours, or dropped already
        return await _let_go(obj, report)
    me = record.managed_by
    boundary = Boundary.at(record.name, record.namespace)
    if not await session.boundaries.has_tables(boundary):
        await session.boundaries.remove(boundary, me)
        return await _let_go(obj, report)
    await session.boundaries.close(boundary, me, _reason(me))
    if spec.deletion_policy == "Archive":
        archived = await archive(obj, spec, cluster, report)
        if archived is None:
            report.waiting("Archiving", f'a Job writes the events of boundary "{spec.name}", and checks them')
            return Outcome(_AGAIN)
        await _verify(session, boundary, archived)
        report.status["archive"] = archived.shown()
        report.waiting("Dropping", f'the events of boundary "{spec.name}" are archived, and dropped now')
        await report.send()
        await report.event(
            "Archived",
            f"{archived.count} events are in {archived.file} of PersistentVolumeClaim {archived.claim_name},"
            f" up to position ({archived.last['commitPosition']}, {archived.last['preparePosition']})",
        )
    events = (await session.boundaries.figures(boundary)).events
    if not await session.boundaries.remove(boundary, me):
        return Outcome(_AGAIN)
    await session.indexes.look()
    await report.event("EventsDeleted", f'boundary "{spec.name}" and its {events} events were dropped')
    return await _let_go(obj, report)


async def _release(context: Context, cluster: Object, spec: BoundarySpec, me: Manager) -> None:
    """At once where that is possible, a moment later by the cluster's reconcile where not."""
    try:
        async with context.postgres.session(cluster) as session:
            await _retain(session, spec, me)
    except Blocked:
        pass
    except KubeError as error:
        # the namespace's Role may go before its Boundaries: no Secret can be read any more
        if error.status != 403:
            raise


async def _retain(session: Session, spec: BoundarySpec, manager: Manager) -> None:
    """Nobody's from now on; made active again if an earlier step of another policy had closed it."""
    record = await session.boundaries.find(spec.name)
    if record is None or not manager.is_called(record.managed_by):
        return
    me = record.managed_by
    if record.status is BoundaryStatus.FAILED and record.last_error == _reason(me):
        await session.boundaries.reopen(Boundary.at(record.name, record.namespace))
        again = await session.boundaries.register(record.name, record.description, record.namespace, me)
        record = await session.boundaries.provision(again or record)
    if record is not None:
        await session.boundaries.manage(record, "")


async def _verify(session: Session, boundary: Boundary, archived: Archived) -> None:
    """The last look before the drop. Raises Blocked where the archive is not what PostgreSQL holds."""
    count, last = await summary(session.database, boundary)
    if (archived.count, archived.last) != (count, position(last)):
        raise Blocked(
            "ArchiveDiffers",
            f"the archive has {archived.count} events up to {archived.last}, and the boundary {count} up to"
            f" {position(last)}: nothing is dropped; delete the archive's Job to have it written again",
        )


def _kept(policy: str, why: str) -> str:
    return f"deletionPolicy {policy} is taken for Retain, since {why}: the events stay"


async def _let_go(obj: Object, report: Report) -> Outcome:
    await report.context.kube.remove_finalizer(obj, FINALIZER)
    report.over = True
    return Outcome()


def _reason(me: str) -> str:
    return f"it is being removed with {me}"
