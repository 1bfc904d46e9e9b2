"""What stands around the pods of a cluster: Secrets, Services, configuration, policies, the embedded PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

from ..api.conditions import timestamp
from ..drift import contains
from ..kube import Applied, KindMissing, Kube, KubeError, NotOurs, Object, Ref
from ..resources import applied, nats, postgres, services
from ..resources.cluster import PASSWORD_ANNOTATION, TEMPLATE_ANNOTATION, Cluster
from ..resources.connection import connection
from . import SOON, Blocked
from .cluster_leftovers import drop_certificates
from .cluster_pods import claims_of
from .cluster_secrets import Secrets
from .report import Report

#: Seconds until a StatefulSet that is being made anew is looked at again.
_AT_ONCE = 0.5


class Children:
    """Applies objects of one cluster, and tells of drift that it repairs."""

    def __init__(self, kube: Kube, obj: Object, report: Report) -> None:
        self._kube, self._obj, self._report = kube, obj, report
        self._namespace = str(obj["metadata"]["namespace"])
        #: Whether the embedded PostgreSQL's pod is not ready yet.
        self.postgres_starts = False
        #: Of the embedded PostgreSQL.
        self._image = ""
        #: What somebody has to mend and servers can do without.
        self.remark: Blocked | None = None
        # what is missing now was there before, when the spec is the same and a whole look has succeeded
        self._complete = report.before.get("observedGeneration") == report.generation and bool(
            report.before.get("templateHash")
        )

    async def around(self, cluster: Cluster, secrets: Secrets, auth: Object) -> Blocked | None:
        """Everything but the servers; the answer is what keeps their template from being changed."""
        problem: Blocked | None = None
        await asyncio.gather(
            *(
                self._apply(obj)
                for obj in (
                    services.service_account(cluster),
                    services.headless(cluster),
                    services.client(cluster),
                    services.admin(cluster),
                    auth,
                    nats.configuration(cluster),
                )
            )
        )
        if cluster.spec.postgres.embedded is not None:
            await self._embedded(cluster, secrets)
        try:
            if (admin := await secrets.admin()) is not None:
                await self._apply(admin)
            await drop_certificates(self._kube, cluster, [(self._report.before.get("tls") or {}).get("secret")])
            certificates, ends = await secrets.tls()
            for obj in certificates:
                await self._apply(obj)
            await self._tell_tls(cluster, ends)
        except KindMissing as missing:
            problem = Blocked(
                "CertManagerMissing", f"spec.tls.mode is certManager, and {missing}: install cert-manager, or change it"
            )
        except NotOurs as error:
            problem = Blocked("NameTaken", str(error), retry=SOON)
        except Blocked as blocked:
            problem = blocked
        policies = {policy["metadata"]["name"]: policy for policy in services.network_policies(cluster)}
        await asyncio.gather(
            self._optional("policy/v1", "PodDisruptionBudget", cluster.name, services.disruption_budget(cluster)),
            *(
                self._optional("networking.k8s.io/v1", "NetworkPolicy", name, policies.get(name))
                for name in (cluster.name, cluster.postgres)
            ),
        )
        try:
            await self._optional("monitoring.coreos.com/v1", "PodMonitor", cluster.name, services.pod_monitor(cluster))
        except KindMissing as missing:
            self.remark = Blocked(
                "PodMonitorMissing", f"spec.monitoring.podMonitor is on, and {missing}: install the Prometheus operator"
            )
        self._tell(cluster)
        return problem

    async def _embedded(self, cluster: Cluster, secrets: Secrets) -> None:
        ref = Ref("apps/v1", "StatefulSet", cluster.namespace, cluster.postgres)
        live = await self._kube.get(ref)
        self.postgres_starts = not (live or {}).get("status", {}).get("readyReplicas")
        secret, password = await secrets.postgres()
        await self._apply(secret)
        await self._apply(postgres.service(cluster))
        if cluster.spec.hibernate and cluster.pods:
            return  # servers first
        pod = await self._kube.get(Ref("v1", "Pod", cluster.namespace, f"{cluster.postgres}-0"))
        if pod is not None and "deletionTimestamp" in pod["metadata"]:
            pod = None
        image = self._postgres_image(live, pod, asleep=cluster.spec.hibernate) or cluster.image
        self._image = image
        await self.statefulset(postgres.statefulset(cluster, image, password), live)
        await self._own_claim(cluster)
        if pod is None:
            return
        made_from = pod["metadata"].get("annotations") or {}
        # it sets its user's password at its start; an older operator's pod does not tell which
        is_current = made_from.get(TEMPLATE_ANNOTATION) == postgres.template_hash(cluster, image)
        if not is_current or made_from.get(PASSWORD_ANNOTATION, password) != password:
            await self._kube.delete(Ref.of(pod), precondition_uid=pod["metadata"]["uid"])
            await self._report.event(
                "PostgresRestarted", "the embedded PostgreSQL is made anew as the spec and its Secret want it"
            )
            self.postgres_starts = True

    def _postgres_image(self, live: Object | None, pod: Object | None, *, asleep: bool) -> str:
        """The image that it was created with; "" for a new one, and for one whose StatefulSet and pod were deleted.

        A StatefulSet is also deleted to have larger volumes: its pod lives on then without an owner, if it is not
        asleep. One that still has an owner ends with it.
        """
        if live is not None:
            return str(live["spec"]["template"]["spec"]["containers"][0]["image"])
        if pod is not None and not pod["metadata"].get("ownerReferences"):
            return str(pod["spec"]["containers"][0]["image"])
        return str((self._report.before.get("postgres") or {}).get("image") or "") if asleep else ""

    async def _own_claim(self, cluster: Cluster) -> None:
        """With deletionPolicy Delete the events go with the OrisunCluster, and with nothing less."""
        claim = await self._kube.get(
            Ref("v1", "PersistentVolumeClaim", cluster.namespace, postgres.claim_name(cluster))
        )
        if claim is None:
            return
        metadata = claim["metadata"]
        owners = metadata.get("ownerReferences") or []
        others = [owner for owner in owners if owner["uid"] != cluster.uid]
        # no controller: the claim is the StatefulSet's to use
        mine = {key: value for key, value in cluster.owner().items() if key in ("apiVersion", "kind", "name", "uid")}
        wanted = [*others, mine] if cluster.spec.deletion_policy == "Delete" else others
        if len(wanted) != len(owners):
            patch = {"metadata": {"ownerReferences": wanted, "resourceVersion": metadata["resourceVersion"]}}
            await self._kube.patch(Ref.of(claim), patch)

    async def _optional(self, api_version: str, kind: str, name: str, wanted: Object | None) -> None:
        if wanted is not None:
            await self._apply(wanted)
            return
        ref = Ref(api_version, kind, self._namespace, name)
        there = await self._kube.get(ref)
        owners = {owner["uid"] for owner in (there or {}).get("metadata", {}).get("ownerReferences") or ()}
        if there is not None and self._obj["metadata"]["uid"] in owners:
            await self._kube.delete(ref, precondition_uid=there["metadata"]["uid"])

    async def _apply(self, obj: Object) -> Applied:
        done = await self._kube.apply(obj)
        if done.repaired:
            fields = ", ".join(done.repaired[:5])
            await self._report.event("DriftRepaired", f"{Ref.of(obj)} was changed by somebody: {fields} put back")
        elif done.created and self._complete:
            await self._report.event("DriftRepaired", f"{Ref.of(obj)} was missing and is made again")
        return done

    async def servers(self, cluster: Cluster, statefulset: Object, live: Object | None, key: bytes) -> None:
        """The StatefulSet of the servers, and the memory of it, sealed with ``key``.

        It is remembered when the API server has taken it; one that is made anew goes, so before that.
        """
        memory = applied.memory(cluster, statefulset, key)
        if live is not None and _is_made_anew(statefulset, live):
            await self._apply(memory)
        await self.statefulset(statefulset, live)
        await self._apply(memory)

    async def statefulset(self, obj: Object, live: Object | None) -> None:
        """Apply; where Kubernetes does not let a field change, the StatefulSet is made anew around its pods."""
        if live is not None and _is_made_anew(obj, live):
            for claim in await claims_of(self._kube, obj):
                try:
                    await self._kube.patch(claim.ref, {"spec": {"resources": {"requests": {"storage": claim.size}}}})
                except KubeError as error:
                    if error.is_passing:
                        raise
                    # the claim stays as large as it is; new ones get the new size
                    await self._report.event("VolumeNotResized", f"{claim.ref}: {error}", warning=True)
            await self._kube.delete(Ref.of(obj), propagation="Orphan", precondition_uid=live["metadata"]["uid"])
            await self._report.event("StatefulSetRecreated", f"{Ref.of(obj)}: its volumes changed; pods are left alone")
            raise Blocked("RecreatingStatefulSet", "a StatefulSet is made anew", stalled=False, retry=_AT_ONCE)
        await self._apply(obj)

    def _tell(self, cluster: Cluster) -> None:
        status: dict[str, Any] = self._report.status
        status["selector"] = ",".join(f"{key}={value}" for key, value in cluster.selector().items())
        status["endpoints"] = {
            "grpc": f"{cluster.grpc_host}:5005",
            "admin": f"{cluster.web_scheme.lower()}://{cluster.admin_service}.{cluster.namespace}.svc:8991",
        }
        status["adminSecret"] = cluster.admin_secret
        for count in ("replicas", "readyReplicas", "updatedReplicas"):
            status.setdefault(count, 0)
        mode = cluster.spec.postgres.mode
        status["postgres"] = {"mode": mode, "secret": connection(cluster).secret}
        if (embedded := cluster.spec.postgres.embedded) is not None:
            claim = f"claim {postgres.claim_name(cluster)}"
            lives = f"pod {cluster.postgres}-0, whenever that ends" if embedded.storage.ephemeral else claim
            if image := self._image or (self._report.before.get("postgres") or {}).get("image"):
                status["postgres"]["image"] = image
            status["postgres"]["note"] = f"for trying things out: the data goes with the {lives}"

    async def _tell_tls(self, cluster: Cluster, ends: str) -> None:
        status: dict[str, Any] = self._report.status
        if not cluster.spec.tls.enabled:
            status.pop("tls", None)
            return
        before = (status.get("tls") or {}).get("notAfter")
        status["tls"] = {"secret": cluster.tls_secret, **({"notAfter": ends} if ends else {})}
        if before and ends and before != ends:
            await self._report.event(
                "CertificateRenewed", f"the certificate in {cluster.tls_secret} lasts until {ends}"
            )
        if ends and ends <= timestamp(self._report.context.clock()):
            self.remark = Blocked(
                "CertificateExpired",
                f"the certificate in {cluster.tls_secret} ended {ends}, and clients refuse it: renew it",
                retry=10.0,
            )
        if not ends:
            said = await self._said_by_cert_manager(cluster)
            raise Blocked(
                "AwaitingCertificate",
                f"waiting for cert-manager to write {cluster.tls_secret}" + (f"; it says: {said}" if said else ""),
                stalled=False,
                retry=3.0,
            )

    async def _said_by_cert_manager(self, cluster: Cluster) -> str:
        """Why the certificate is not ready, "" while it says nothing."""
        found = await self._kube.get(Ref("cert-manager.io/v1", "Certificate", cluster.namespace, cluster.tls_secret))
        conditions = ((found or {}).get("status") or {}).get("conditions") or ()
        return next((str(c.get("message") or "") for c in conditions if c["type"] == "Ready"), "")


def _is_made_anew(statefulset: Object, live: Object) -> bool:
    """Whether a field differs that Kubernetes does not let change."""
    wanted = statefulset["spec"].get("volumeClaimTemplates") or []
    return not contains(wanted, live["spec"].get("volumeClaimTemplates") or [])
