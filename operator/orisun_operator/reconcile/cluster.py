"""OrisunCluster: brings every child to what the spec wants, and the pods there step by step.

What is not about pods is applied at each look, whatever else is wrong, so that drift is always repaired. Pods change
one step at a time (``rollout``), when PostgreSQL's schema fits and JetStream's copies are current.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from ..api import API_VERSION, PREFIX
from ..api.cluster import KIND, ClusterSpec, read_spec
from ..api.conditions import set_condition
from ..jetstream import Health, JetStreamError
from ..kube import Object, Ref
from ..resources import nats, pods
from ..resources.cluster import IMAGE_ANNOTATION, INCARNATION_ANNOTATION, NATS_IMAGE_ANNOTATION, Cluster
from ..rollout import Action, Pod, Step, View, next_step, servers, stale_peers
from . import SOON, Blocked, Context, Outcome
from .cluster_children import Children
from .cluster_pods import claims_of, pods_of, revision_of
from .cluster_schema import Schema, look_at_schema
from .cluster_secrets import Secrets
from .report import Report, concluded

log = structlog.get_logger(__name__)

_AT_ONCE, _DEGRADED = 0.5, 5.0

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
        cluster = await self._resolve(spec, live)
        secrets = Secrets(self._kube, cluster, self._context.clock())
        auth, passwords = await secrets.nats()
        await self._children.around(cluster, secrets, auth)
        digests = await secrets.digests(passwords)
        cluster = replace(cluster, nats_digest=digests["nats"])
        cluster = replace(cluster, template=pods.template_hash(cluster, digests))
        schema = await self._schema(cluster, live)
        return await self._pods(cluster, live, schema, passwords)

    async def _resolve(self, spec: ClusterSpec, live: Object | None) -> Cluster:
        """The spec with what the cluster was created with: those stay when the operator is upgraded."""
        settings, status = self._context.settings, self._report.status
        kept: dict[str, str] = (live or {}).get("metadata", {}).get("annotations") or {}
        default = kept.get(IMAGE_ANNOTATION) or settings.server_image
        default_nats = kept.get(NATS_IMAGE_ANNOTATION) or settings.nats_image
        kind = "cluster" if spec.clustered else "single"
        before = kept.get(INCARNATION_ANNOTATION) or str((status.get("jetstream") or {}).get("incarnation") or "")
        kind_before, _, number = before.partition("-")
        incarnation = int(number) if number.isdigit() else 1
        if number.isdigit() and kind_before != kind and spec.replicas:
            incarnation += 1
            await self._report.event(
                "StreamsRebuilt",
                f"with {servers(spec.replicas)} JetStream begins anew; subscriptions read PostgreSQL meanwhile",
                warning=True,
            )
        marker = f"{kind}-{incarnation}"
        status["jetstream"] = {**(status.get("jetstream") or {}), "incarnation": marker}
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
            pods=live["spec"]["replicas"] if live is not None else 0,
            incarnation=incarnation,
            annotations={
                IMAGE_ANNOTATION: default,
                NATS_IMAGE_ANNOTATION: default_nats,
                INCARNATION_ANNOTATION: marker,
            },
        )
        if live is None:
            # a StatefulSet that is made anew takes over the pods that are there, and must not end them
            left = [
                pod.ordinal for pod in await pods_of(self._kube, cluster, self._context.clock()) if not pod.terminating
            ]
            cluster = replace(cluster, pods=min(max(left, default=-1) + 1, spec.replicas))
        return cluster

    # -- schema ----------------------------------------------------------------------------------------------------

    async def _schema(self, cluster: Cluster, live: Object | None) -> Schema:
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
        elif live is None and not status.get("templateHash"):
            raise schema.blocked  # no server before there is something to serve
        return schema

    # -- pods ------------------------------------------------------------------------------------------------------

    async def _pods(self, cluster: Cluster, live: Object | None, schema: Schema, passwords: dict[str, str]) -> Outcome:
        status = self._report.status
        if live is None or cluster.spec.hibernate or not schema.problem or self._is_applied(cluster, live):
            await self._children.statefulset(pods.statefulset(cluster), live)
            status["templateHash"] = cluster.template
            status["image"], status["natsImage"] = cluster.image, cluster.nats_image
        there = await pods_of(self._kube, cluster, self._context.clock())
        health, leaving = await self._jetstream(cluster, there, passwords)
        view = View(
            wanted=0 if cluster.spec.hibernate else cluster.spec.replicas,
            asked=cluster.pods,
            pods=there,
            template=cluster.template,
            streams=cluster.streams,
            jetstream=health.problem,
            leaving=leaving,
            revision=revision_of(live),
            schema=schema.problem,
            on_delete=cluster.spec.update_strategy.type == "OnDelete",
            timeout=cluster.spec.update_strategy.pod_timeout_seconds,
        )
        step = next_step(view)
        await self._take(cluster, step)
        return self._conclude(cluster, view, step, health, schema)

    def _is_applied(self, cluster: Cluster, live: Object) -> bool:
        annotations = live["spec"]["template"]["metadata"].get("annotations") or {}
        return bool(annotations.get(f"{PREFIX}template") == cluster.template)

    async def _take(self, cluster: Cluster, step: Step) -> None:
        if step.action is Action.SCALE:
            await self._kube.apply(pods.statefulset(replace(cluster, pods=step.replicas)))
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

    async def _jetstream(self, cluster: Cluster, there: list[Pod], passwords: dict[str, str]) -> tuple[Health, str]:
        mine = {p.name: p.ip for p in there if p.ip and not p.terminating and p.streams == cluster.streams}
        if not mine:
            return Health(), ""
        leaving = ""
        health = await self._context.jetstream.health(mine, clustered=cluster.spec.clustered)
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

    def _conclude(self, cluster: Cluster, view: View, step: Step, health: Health, schema: Schema) -> Outcome:
        report, status, generation = self._report, self._report.status, self._report.generation
        now = self._context.clock()
        ready = [pod for pod in view.pods if pod.ready and not pod.terminating]
        status["replicas"], status["readyReplicas"] = len(view.pods), len(ready)
        status["updatedReplicas"] = sum(pod.template == view.template for pod in view.pods)
        state, message = "Healthy", "every server's copies of the streams are current"
        if not view.pods:
            state, message = "Off", "no server runs"
        elif any(pod.streams != view.streams for pod in view.pods):
            state, message = "Rebuilding", "JetStream begins anew; subscriptions read PostgreSQL meanwhile"
        elif health.problem:
            state, message = "Degraded", health.problem
        status["jetstream"] = {
            "state": state,
            "incarnation": status["jetstream"]["incarnation"],
            **({"leader": health.leader, "peers": len(health.peers)} if health.leader and health.peers else {}),
        }
        set_condition(
            status,
            "JetStreamHealthy",
            state == "Healthy",
            state,
            message,
            generation,
            now=now,
        )
        set_condition(
            status,
            "Available",
            bool(ready),
            "Serving" if ready else "NotServing",
            f"{len(ready)} of {view.wanted} servers serve" if ready else "no server serves",
            generation,
            now=now,
        )
        if schema.blocked is not None and not step.stalled:
            report.blocked(schema.blocked)
            return Outcome(schema.blocked.retry)
        if step.stalled:
            report.stalled(step.reason, step.message)
            return Outcome(SOON)
        if step.action is not Action.NOTHING:
            report.waiting(step.reason, step.message)
            return Outcome(_AT_ONCE if step.action in (Action.SCALE, Action.REPLACE) else SOON / 2)
        if step.reason == "Ready":
            if (remark := self._children.remark) is not None:
                report.blocked(remark)
                return Outcome(remark.retry)
            report.ready("Ready", step.message)
            if health.problem:
                status["phase"] = "Degraded"
                return Outcome(_DEGRADED)
            return Outcome()
        report.resting(step.reason, step.message)
        return Outcome()


def repository_of(image: str) -> str:
    """An image's name without tag and digest; a registry may have a port."""
    place, slash, name = image.partition("@")[0].rpartition("/")
    return place + slash + name.partition(":")[0]
