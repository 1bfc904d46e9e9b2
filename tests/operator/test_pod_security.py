"""Every pod passes the "restricted" standard, by the judgement of Kubernetes' own admission."""

from __future__ import annotations

from typing import Any

import pytest

from orisun_operator.api.boundary import BoundarySpec
from orisun_operator.api.cluster import ClusterSpec
from orisun_operator.kube import Kube, KubeError, Object, Ref
from orisun_operator.resources import archive, pods, postgres
from orisun_operator.resources.cluster import Cluster
from tests.operator.helm import OPERATOR
from tests.operator.test_charts import rendered
from tests.operator.test_documents import offer


@pytest.fixture
async def restricted(kube: Kube, namespace: str) -> str:
    """The namespace, where nothing else is let in."""
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await kube.patch(Ref("v1", "Namespace", "", namespace), labels)
    return namespace


def _cluster(**spec: Any) -> Cluster:
    return Cluster("shop", "store", "uid", ClusterSpec.model_validate(spec), "orisun:1", "orisun-nats:1", pods=1)


def _of_clusters() -> dict[str, Object]:
    external = {"host": "db", "credentialsSecretRef": {"name": "db"}, "caSecretRef": {"name": "ca"}}
    embedded = _cluster(replicas=1, postgres={"embedded": {}})
    tls = {"mode": "secret", "secretName": "cert", "clientAuth": {"caSecretRef": {"name": "clients"}}}
    full = _cluster(postgres={"external": external}, tls=tls, nats={"storage": {"ephemeral": True}})
    boundary = BoundarySpec.model_validate({"clusterRef": {"name": "store"}, "name": "orders", "schema": "orders"})
    owner = {"metadata": {"name": "orders", "namespace": "shop", "uid": "0" * 36}}
    return {
        "server": pods.statefulset(embedded),
        "server with TLS": pods.statefulset(full),
        "embedded PostgreSQL": postgres.statefulset(embedded, "orisun:1", ""),
        "archive": archive.job(owner, boundary, full),
    }


def _pod(obj: Object) -> Object:
    """As its controller makes it; volumes of claims are there, and no Service account is."""
    template = obj["spec"]["template"] if obj["kind"] != "Pod" else obj
    spec = {key: value for key, value in template["spec"].items() if key not in ("serviceAccountName", "nodeName")}
    claims = [one["metadata"]["name"] for one in obj["spec"].get("volumeClaimTemplates") or ()]
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
    metadata = {"name": obj["metadata"]["name"], "labels": template["metadata"].get("labels") or {}}
    spec["volumes"] = [*(spec.get("volumes") or ()), *volumes]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def test_pods_of_clusters(kube: Kube, restricted: str) -> None:
    for obj in _of_clusters().values():
        await offer(kube, restricted, _pod(obj))


async def test_pods_of_the_chart(kube: Kube, restricted: str) -> None:
    made = [one for one in await rendered(OPERATOR) if one["kind"] in ("Deployment", "Job", "Pod")]
    # the operator, the hook before an uninstall, helm test
    assert len(made) == 3
    for obj in made:
        await offer(kube, restricted, _pod(obj))


async def test_others_are_refused(kube: Kube, restricted: str) -> None:
    pod = _pod(_of_clusters()["server"])
    del pod["spec"]["containers"][1]["securityContext"]["capabilities"]
    with pytest.raises(KubeError, match=r'violates PodSecurity "restricted.*container "nats" must set'):
        await offer(kube, restricted, pod)
