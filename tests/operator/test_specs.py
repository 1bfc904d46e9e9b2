"""What the API server says to OrisunClusters that cannot be: the CRD's schema and its CEL rules."""

from __future__ import annotations

from typing import Any

import pytest

from orisun_operator.api.cluster import ClusterSpec
from orisun_operator.kube import Kube, KubeError, Object, Ref

_DB = {"external": {"host": "db", "credentialsSecretRef": {"name": "db"}}}


def _cluster(namespace: str, name: str = "store", **spec: Any) -> Object:
    return {
        "apiVersion": "orisun.io/v1alpha1",
        "kind": "OrisunCluster",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"postgres": _DB, **spec},
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"replicas": 2}, "replicas must be 1 or 3 to 9"),
        ({"replicas": 10}, "less than or equal to 9"),
        ({"postgres": {}}, "set exactly one of postgres.external, postgres.cloudNativePG and postgres.embedded"),
        ({"postgres": {**_DB, "embedded": {}}, "replicas": 1}, "set exactly one of"),
        ({"postgres": {"embedded": {}}}, "the embedded PostgreSQL is for trying things out and serves one server"),
        ({"image": "x:1", "version": "2"}, "image and version exclude each other"),
        ({"tls": {"mode": "secret"}}, "tls.mode secret needs tls.secretName"),
        ({"tls": {"mode": "certManager"}}, "tls.mode certManager needs tls.issuerRef"),
        ({"tls": {"clientAuth": {"caSecretRef": {"name": "x"}}}}, "tls.clientAuth means nothing with tls.mode none"),
        ({"tls": {"mode": "operator", "duration": "24h"}}, "tls.renewBefore must be shorter than tls.duration"),
        ({"tls": {"mode": "operator", "dnsNames": ["bücher.example"]}}, "others in punycode"),
        (
            {"replicas": 1, "hibernate": True, "postgres": {"embedded": {"storage": {"ephemeral": True}}}},
            "all events would be lost",
        ),
        ({"env": [{"name": "ORISUN_PG_HOST", "value": "x"}]}, "use the fields postgres, nats, admin and tls"),
        ({"env": [{"name": "ORISUN_BOUNDARIES", "value": "x"}]}, "boundaries are resources of the kind Boundary"),
        ({"admin": {"boundary": "no spaces"}}, "a boundary's name has letters, digits and underscores only"),
        ({"nats": {"streamReplicas": 5}}, "nats.streamReplicas cannot exceed replicas"),
        ({"nats": {"streamReplicas": 2}}, "streamReplicas must be 1, 3 or 5"),
        ({"nats": {"storage": {"size": "2GB"}}}, "a size is a number and a unit such as Mi, Gi or Ti"),
        ({"nats": {"jetstream": {"maxAge": "5d"}}}, "a duration is numbers with the units h, m, s and ms"),
        ({"tls": {"mode": "operator", "duration": "90d"}}, "such as 720h, which is 30 days"),
        ({"image": "no image"}, "an image is NAME:TAG or NAME@sha256:DIGEST"),
        ({"postgres": {"external": {**_DB["external"], "host": "db:5432"}}}, "host is a name or an address alone"),
        ({"postgres": {"external": {**_DB["external"], "host": "postgres://db/x"}}}, "host is a name or an address"),
        ({"grpc": {"service": {"nodePort": 30000}}}, "nodePort needs type NodePort or LoadBalancer"),
        ({"postgres": {"external": {**_DB["external"], "sslMode": "verify-full"}}}, "need caSecretRef"),
    ],
)
async def test_what_cannot_be_is_refused_in_words(
    kube: Kube, namespace: str, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(KubeError, match=r"[Ii]nvalid") as refused:
        await kube.create(_cluster(namespace, **spec))
    assert message in str(refused.value)


@pytest.mark.parametrize("host", ["db", "db.example.com", "10.0.0.1", "2001:db8::1", "/run/postgresql"])
async def test_hosts(kube: Kube, namespace: str, host: str) -> None:
    assert await kube.create(_cluster(namespace, postgres={"external": {**_DB["external"], "host": host}})) is not None


@pytest.mark.parametrize("name", ["a" * 41, "with.dots", "1st"])
async def test_a_name_that_services_cannot_have_is_refused(kube: Kube, namespace: str, name: str) -> None:
    with pytest.raises(KubeError, match=r"metadata\.name must"):
        await kube.create(_cluster(namespace, name))


async def test_the_admin_boundary_stays(kube: Kube, namespace: str) -> None:
    made = await kube.create(_cluster(namespace))
    assert made is not None
    with pytest.raises(KubeError, match=r"admin\.boundary is immutable"):
        await kube.patch(Ref.of(made), {"spec": {"admin": {"boundary": "other"}}})


async def test_the_embedded_postgres_is_not_exchanged_once_servers_have_run(kube: Kube, namespace: str) -> None:
    made = await kube.create(_cluster(namespace, postgres={"embedded": {}}, replicas=1))
    assert made is not None
    # a mistake can be corrected
    await kube.patch(Ref.of(made), {"spec": {"postgres": {**_DB, "embedded": None}}})
    await kube.patch(Ref.of(made), {"spec": {"postgres": {"external": None, "embedded": {}}}})
    await kube.patch(Ref.of(made), {"status": {"templateHash": "x"}}, subresource="status")
    with pytest.raises(KubeError, match=r"ephemeral cannot change.*pg_dump"):
        await kube.patch(Ref.of(made), {"spec": {"postgres": {"embedded": {"storage": {"ephemeral": True}}}}})
    with pytest.raises(KubeError, match="cannot be exchanged"):
        await kube.patch(Ref.of(made), {"spec": {"postgres": {**_DB, "embedded": None}}})


async def test_defaults_of_the_crd_are_those_of_the_operator(kube: Kube, namespace: str) -> None:
    made = await kube.create(_cluster(namespace))
    assert made is not None
    assert made["status"] == {"observedGeneration": -1}
    assert ClusterSpec.model_validate(made["spec"]) == ClusterSpec.model_validate({"postgres": _DB})


async def test_every_field_of_the_operator_is_in_the_crd(kube: Kube, namespace: str) -> None:
    """A field that the CRD does not know would be dropped silently."""
    spec = ClusterSpec.model_validate({"postgres": _DB, "nats": {"streamReplicas": 1, "image": "n:1"}, "image": "i:1"})
    full = spec.model_dump(by_alias=True, exclude_none=True)
    full["postgres"]["external"].pop("caSecretRef", None)
    for empty in ("version", "imagePullPolicy"):
        full.pop(empty)
    full["tls"].pop("secretName")
    full["scheduling"].pop("priorityClassName")
    made = await kube.create(_cluster(namespace, **full))
    assert made is not None
    stored = ClusterSpec.model_validate(made["spec"]).model_dump()
    assert stored == spec.model_dump()
    assert set(full) <= set(made["spec"])


async def test_the_scale_subresource_reads_and_writes_replicas(kube: Kube, namespace: str) -> None:
    await kube.create(_cluster(namespace))
    path = f"/apis/orisun.io/v1alpha1/namespaces/{namespace}/orisunclusters/store/scale"
    scale = await kube._server.request("GET", path)
    assert scale["spec"]["replicas"] == 3
    await kube._server.request("PATCH", path, body={"spec": {"replicas": 5}}, content="application/merge-patch+json")
    assert (await kube._server.request("GET", path))["spec"]["replicas"] == 5
    with pytest.raises(KubeError, match="replicas must be 1 or 3 to 9"):
        await kube._server.request(
            "PATCH", path, body={"spec": {"replicas": 2}}, content="application/merge-patch+json"
        )
