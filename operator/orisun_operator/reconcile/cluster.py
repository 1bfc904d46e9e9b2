"""OrisunCluster: brings every child to what the spec wants, and the pods there step by step.

What is not about pods is applied at each look, whatever else is wrong, so that drift is always repaired. Pods change
one step at a time (``rollout``), when PostgreSQL's schema fits and JetStream's copies are current.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from ..api import API_VERSION
from ..api.cluster import KIND, ClusterSpec, read_spec
from ..api.conditions import set_condition, timestamp
from ..jetstream import Health, JetStreamError
from ..kube import Object, Ref
from ..resources import applied, nats, pods
from ..resources.cluster import IMAGE_ANNOTATION, INCARNATION_ANNOTATION, NATS_IMAGE_ANNOTATION, Cluster
from ..rollout import LEADERLESS, Action, Pod, Step, View, next_step, servers, stale_peers
from . import SOON, Blocked, Context, Outcome
from .cluster_children import Children
from .cluster_leftovers import drop_secrets
from .cluster_pods import claims_of, pods_of, revision_of
from .cluster_schema import Schema, look_at_schema
from .cluster_secrets import REFUSED_ADMIN, Secrets, sealing_key
from .cluster_status import begun_anew, is_leaderless, restarts, seconds, since, tell_of_servers
from .report import Report, concluded

log = structlog.get_logger(__name__)

_AT_ONCE, _DEGRADED = 0.5, 5.0
#: Seconds after which JetStream's cluster, all servers of which are well, is taken to have lost its majority for good.
LOST_AFTER = 300.0

#: What the operator does to servers that are well.
_PLANNED = frozenset(
    {"RollingOut", "Growing", "Shrinking", "AwaitingPods", "RemovingPeers", "Hibernating", "Hibernated", "Paused"}
)


async def reconcile(context: Context, namespace: str, name: str) -> Outcome:
    """One look at an OrisunCluster, and the next step."""
    obj = await context.kube.get(Ref(API_VERSION, KIND, namespace, name))
    if obj is None or obj["metadata"].get("deletionTimestamp"):
        # its children go with it; what may stay says so itself (persistentVolumeClaimRetentionPolicy)
        await context.postgres.forget(namespace, name)
        return Outcome(gone=obj is None)
    report = Report(context, obj)
    report.planned |= _PLANNED
    return await concluded(report, _Work(context, obj, report).run())


class _Work:
    """One reconcile."""

    def __init__(self, context: Context, obj: Object, report: Report) -> None:
        self._context, self._kube, self._obj, self._report = context, context.kube, obj, report
        metadata = obj["metadata"]
        self._namespace, self._name = str(metadata["namespace"]), str(metadata["name"])
        self._children = Children(self._kube, obj, report)

    async def run(self) -> Outcome:
        try:
            spec = read_spec(self._obj)
        except ValueError as error:
            raise Blocked("InvalidSpec", f"{error}: correct the spec") from None
        if spec.paused:
            # the session builds indexes by itself
            await self._context.postgres.forget(self._namespace, self._name)
            text = "spec.paused is set: nothing is changed, here or in its PostgreSQL, until it is false"
            self._report.resting("Paused", text)
            return Outcome()
        live = await self._kube.get(Ref("apps/v1", "StatefulSet", self._namespace, self._name))
        memory = await self._kube.get(Ref("v1", "ConfigMap", self._namespace, applied.name_of(self._name)))
        key = await sealing_key(self._kube, self._namespace, self._name)
        before = applied.in_force(memory, live, uid=self._obj["metadata"]["uid"], key=key)
        cluster = await self._resolve(spec, live, before)
        secrets = Secrets(self._kube, cluster, self._context.clock())
        auth, passwords = await secrets.nats()
        held = await self._children.around(cluster, secrets, auth)
        digests = await secrets.digests(passwords)
        cluster = replace(cluster, nats_digest=digests["nats"])
        cluster = replace(cluster, template=pods.template_hash(cluster, digests))
        schema = await self._schema(cluster)
        held = held or schema.blocked
        if before is None and held is not None:
            raise held  # no server before there is something to serve
        return await self._pods(cluster, live, before, schema.problem, held, passwords)

    async def _resolve(self, spec: ClusterSpec, live: Object | None, before: Object | None) -> Cluster:
        """The spec with what the cluster was created with: those stay when the operator is upgraded."""
        settings, status = self._context.settings, self._report.status
        kept: dict[str, str] = (before or {}).get("metadata", {}).get("annotations") or {}
        default = kept.get(IMAGE_ANNOTATION) or settings.server_image
        default_nats = kept.get(NATS_IMAGE_ANNOTATION) or settings.nats_image
        kind = "cluster" if spec.clustered else "single"
        told = str((status.get("jetstream") or {}).get("incarnation") or "")
        known = applied.incarnation_of(before) or told
        # the status is ahead where JetStream has to begin anew
        incarnation = max(applied.number_of(known), applied.number_of(told))
        if known and known.partition("-")[0] != kind:
            incarnation += 1
        tagged = f"{repository_of(settings.server_image)}:{spec.version}" if spec.version else ""
        cluster = Cluster(
            namespace=self._namespace,
            name=self._name,
            uid=self._obj["metadata"]["uid"],
            spec=spec,
            image=spec.image or tagged or default,
            nats_image=spec.nats.image or default_nats,
            pull_policy=spec.image_pull_policy or settings.image_pull_policy,
            domain=settings.cluster_domain,
            operator_namespace=settings.namespace,
            pods=(live or before or {"spec": {"replicas": 0}})["spec"]["replicas"],
            incarnation=incarnation,
            annotations={
                IMAGE_ANNOTATION: default,
                NATS_IMAGE_ANNOTATION: default_nats,
                INCARNATION_ANNOTATION: f"{kind}-{incarnation}",
            },
        )
        if live is None and before is None:
            # a StatefulSet that is made anew takes over the pods that are there, and must not end them
            left = [
                pod.ordinal for pod in await pods_of(self._kube, cluster, self._context.clock()) if not pod.terminating
            ]
            cluster = replace(cluster, pods=max(left, default=-1) + 1)
        return cluster

    # -- schema ----------------------------------------------------------------------------------------------------

    async def _schema(self, cluster: Cluster) -> Schema:
        if cluster.spec.hibernate:
            return Schema("the cluster hibernates")
        if self._children.postgres_starts:
            waiting = Blocked("AwaitingPostgres", "waiting for the embedded PostgreSQL", stalled=False, retry=SOON)
            schema = Schema(str(waiting), waiting)
        else:
            schema = await look_at_schema(self._context, self._obj)
        status, generation = self._report.status, self._report.generation
        reason = schema.blocked.reason if schema.blocked else "SchemaPending" if schema.problem else "SchemaReady"
        set_condition(
            status, "SchemaReady", not schema.problem, reason, schema.problem or "the tables fit", generation,
            now=self._context.clock(),
        )  # fmt: skip
        if schema.blocked is None:
            status["boundaries"] = schema.boundaries
            status["unmanaged"] = schema.shown()
        return schema

    # -- pods ------------------------------------------------------------------------------------------------------

    async def _pods(  # noqa: PLR0917 - what was found so far
        self,
        cluster: Cluster,
        live: Object | None,
        before: Object | None,
        misfit: str,
        held: Blocked | None,
        passwords: dict[str, str],
    ) -> Outcome:
        status, spec = self._report.status, cluster.spec
        problem = str(held) if held is not None else misfit
        current = wanted = pods.statefulset(cluster)
        if before is not None and problem and applied.template_of(before) != cluster.template:
            current = applied.restored(cluster, before)
        waits = current is not wanted
        if not waits:
            await self._tell_of_new_streams(cluster, before)
        current = applied.asking(current, cluster.pods)
        await self._children.servers(cluster, current, live, passwords[nats.ROUTE_PASSWORD].encode())
        if not waits:
            status["templateHash"] = cluster.template
            status["image"], status["natsImage"] = cluster.image, cluster.nats_image
        now = self._context.clock()
        there = await pods_of(self._kube, cluster, now)
        health, leaving = await self._jetstream(cluster, current, there, passwords)
        rebuilding = any(pod.streams != applied.streams_of(current) for pod in there)
        moments = since(
            self._report.before,
            now,
            illSince=bool(health.problem) and not rebuilding,
            leaderlessSince=applied.is_clustered(current) and is_leaderless(cluster, there, health) and not rebuilding,
            leavingSince=bool(leaving),
        )
        restarted = restarts(self._report.before, now)
        view = View(
            wanted=applied.reachable(cluster, current),
            asked=cluster.pods,
            pods=there,
            template=applied.template_of(current),
            streams=applied.streams_of(current),
            jetstream=health.problem,
            ill=seconds(moments, "illSince", now),
            ailing=health.ailing,
            stopped=health.stopped,
            restarted={pod: seconds(restarted, pod, now) for pod in restarted},
            leaving=leaving,
            leaving_for=seconds(moments, "leavingSince", now),
            revision=revision_of(live),
            schema=problem,
            waits=waits,
            on_delete=spec.update_strategy.type == "OnDelete",
            timeout=spec.update_strategy.pod_timeout_seconds,
        )
        step = next_step(view)
        incarnation = applied.incarnation_of(current)
        begun = begun_anew(self._report.before, incarnation, health)
        if seconds(moments, "leaderlessSince", now) > LOST_AFTER:
            if begun:
                # what ails it is nothing that a new beginning mends, and each costs a rollout
                step = step if step.action in (Action.SCALE, Action.REPLACE) else LEADERLESS
            else:
                incarnation = begun = f"cluster-{applied.number_of(incarnation) + 1}"
        if step.replicas > cluster.pods and held is not None and held.reason in REFUSED_ADMIN:
            # its password would be everybody's: pods read the Secret itself
            step = Step(Action.WAIT, held.reason, str(held))
        await self._take(cluster, current, step)
        if step.reason == "RestartingNats" and step.pod is not None:
            restarted[step.pod.name] = timestamp(now)
        if step.reason == "Ready" and not waits:
            await drop_secrets(self._kube, cluster)
        tell_of_servers(
            self._report,
            view,
            health,
            template=cluster.template,
            incarnation=incarnation,
            moments=moments | ({"begunAnew": begun} if begun else {}) | ({"restarted": restarted} if restarted else {}),
        )
        return self._conclude(step, health, None if spec.hibernate else held)

    async def _tell_of_new_streams(self, cluster: Cluster, before: Object | None) -> None:
        known, wanted = applied.incarnation_of(before), cluster.annotations[INCARNATION_ANNOTATION]
        if not known or known == wanted:
            return
        why = f"with {servers(cluster.spec.replicas)}"
        if known.partition("-")[0] == wanted.partition("-")[0]:
            why = "after five minutes without a leader"
        text = f"{why} JetStream begins anew; subscriptions read PostgreSQL meanwhile"
        await self._report.event("StreamsRebuilt", text, warning=True)

    async def _take(self, cluster: Cluster, current: Object, step: Step) -> None:
        if step.action is Action.SCALE:
            await self._kube.apply(applied.asking(current, step.replicas))
            await self._report.event(step.reason, step.message)
        elif step.action is Action.REPLACE and step.pod is not None:
            ref = Ref("v1", "Pod", cluster.namespace, step.pod.name)
            await self._kube.delete(ref, precondition_uid=step.pod.uid)
            await self._report.event(step.reason, step.message)
        elif step.action is Action.NOTHING and not cluster.spec.hibernate:
            await self._drop_claims(cluster)

    async def _drop_claims(self, cluster: Cluster) -> None:
        """Volumes of pods that were scaled away: a server that comes back begins with none of its old state."""
        for claim in await claims_of(self._kube, pods.statefulset(cluster)):
            if claim.ordinal >= max(cluster.pods, cluster.spec.replicas):
                await self._kube.delete(claim.ref)

    async def _jetstream(
        self, cluster: Cluster, current: Object, there: list[Pod], passwords: dict[str, str]
    ) -> tuple[Health, str]:
        streams = applied.streams_of(current)
        mine = {p.name: p.ip for p in there if p.ip and not p.terminating and p.streams == streams}
        if not mine:
            return Health(), ""
        leaving = ""
        health = await self._context.jetstream.health(mine, clustered=applied.is_clustered(current))
        names = {pod.ordinal: health.names[pod.name] for pod in there if pod.name in health.names}
        for peer in stale_peers(cluster.name, [p.name for p in health.peers], names, there, cluster.pods):
            try:
                await self._context.jetstream.remove(mine.values(), "system", passwords[nats.SYSTEM_PASSWORD], peer)
                await self._report.event("PeerRemoved", f"{peer} is no member of JetStream's cluster any more")
            except JetStreamError as error:
                log.warning("a peer could not be removed", peer=peer, error=str(error))
            leaving = peer
        return health, leaving

    # -- status ----------------------------------------------------------------------------------------------------

    def _conclude(self, step: Step, health: Health, held: Blocked | None) -> Outcome:
        report = self._report
        moves = step.action in (Action.SCALE, Action.REPLACE)
        if held is not None:
            # rather than what servers suffer from it
            report.blocked(held)
            return Outcome(_AT_ONCE if moves else held.retry)
        if step.stalled:
            report.stalled(step.reason, step.message)
            return Outcome(SOON)
        if step.action is not Action.NOTHING:
            report.waiting(step.reason, step.message)
            return Outcome(_AT_ONCE if moves else SOON / 2)
        if step.reason == "Ready":
            if (remark := self._children.remark) is not None:
                report.blocked(remark)
                return Outcome(remark.retry)
            report.ready("Ready", step.message)
            if health.problem:
                report.status["phase"] = "Degraded"
                return Outcome(_DEGRADED)
            return Outcome()
        report.resting(step.reason, step.message)
        return Outcome()


def repository_of(image: str) -> str:
    """An image's name without tag and digest; a registry may have a port."""
    place, slash, name = image.partition("@")[0].rpartition("/")
    return place + slash + name.partition(":")[0]
