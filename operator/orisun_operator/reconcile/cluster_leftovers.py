"""What an earlier spec of a cluster wanted and this one does not: it goes, unless it belongs to somebody else."""

from __future__ import annotations

from collections.abc import Iterable

from ..kube import Kube, Object, Ref
from ..resources.cluster import Cluster


async def drop_certificates(kube: Kube, cluster: Cluster, known: Iterable[str | None]) -> None:
    """Certificates of cert-manager's, at once: as long as they are there it writes their Secrets, which stay."""
    wanted = {cluster.tls_secret} if cluster.spec.tls.mode == "certManager" else set()
    for name in {f"{cluster.name}-tls", *filter(None, known)} - wanted:
        found = await kube.get(Ref("cert-manager.io/v1", "Certificate", cluster.namespace, name))
        if found is not None:
            await _drop(kube, cluster, found)


async def drop_secrets(kube: Kube, cluster: Cluster) -> None:
    """Passwords and keys that no server reads any more: to be called when every pod is as the spec wants it."""
    tls, authority = cluster.spec.tls, f"{cluster.name}-ca"
    wanted = {cluster.nats_secret, cluster.admin_secret}
    wanted |= {cluster.tls_secret} if tls.enabled else set()
    wanted |= {authority} if tls.mode == "operator" else set()
    for found in await kube.list("v1", "Secret", cluster.namespace, cluster.labels()):
        if found["metadata"]["name"] not in wanted:
            await _drop(kube, cluster, found)
    if tls.mode != "operator":
        trust = await kube.get(Ref("v1", "ConfigMap", cluster.namespace, authority))
        if trust is not None:
            await _drop(kube, cluster, trust)


async def _drop(kube: Kube, cluster: Cluster, found: Object) -> None:
    metadata = found["metadata"]
    if cluster.uid in {owner["uid"] for owner in metadata.get("ownerReferences") or ()}:
        await kube.delete(Ref.of(found), precondition_uid=metadata["uid"])
