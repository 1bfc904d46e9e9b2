"""Fields of Kubernetes' own types that are wrong: refused by the CRD's schema, or told as what a person has to mend."""

from __future__ import annotations

from typing import Any

import pytest

from orisun_operator.kube import Kube, KubeError, Object, Ref
from orisun_server.settings import Settings
from tests.operator.clusters import Stage

_DB = {"external": {"host": "db", "credentialsSecretRef": {"name": "db"}}}


async def _create(kube: Kube, namespace: str, **spec: Any) -> Object:
    """As kubectl does, which lets nothing unknown through."""
    path = f"/apis/orisun.io/v1alpha1/namespaces/{namespace}/orisunclusters"
    body = {
        "apiVersion": "orisun.io/v1alpha1",
        "kind": "OrisunCluster",
        "metadata": {"generateName": "store-", "namespace": namespace},
        "spec": {"postgres": _DB, **spec},
    }
    return await kube._server.request("POST", path, body=body, query={"fieldValidation": "Strict"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"resources": {"limts": {"cpu": 1}}}, 'unknown field "spec.resources.limts"'),
        ({"nats": {"resources": {"requests": {"cpu": "lots"}}}}, "spec.nats.resources.requests.cpu"),
        ({"env": [{"name": "A", "valueFrm": {}}]}, 'unknown field "spec.env[0].valueFrm"'),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x"}}}]}, "secretKeyRef.key: Required"),
        ({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "y"}}}]}, "exclude each other"),
        ({"scheduling": {"tolerations": [{"key": 5}]}}, "spec.scheduling.tolerations[0].key"),
        ({"scheduling": {"tolerations": [{"effect": "Never"}]}}, "spec.scheduling.tolerations[0].effect"),
        ({"networkPolicy": {"from": [{"podSelectr": {}}]}}, 'unknown field "spec.networkPolicy.from[0].podSelectr"'),
        ({"networkPolicy": {"from": [{}]}}, "spec.networkPolicy.from[0]"),
    ],
)
async def test_the_schema_refuses_it_by_the_fields_name(
    kube: Kube, namespace: str, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(KubeError) as refused:
        await _create(kube, namespace, **spec)
    assert message in str(refused.value)


async def test_the_schema_takes_what_is_right(kube: Kube, namespace: str) -> None:
    selector = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}
    spec = {
        "resources": {
            "requests": {"cpu": 0.5, "memory": "512Mi", "example.com/gpu": 1},
            "limits": {"cpu": "1500m", "memory": "1e9", "ephemeral-storage": 5000},
            "claims": [{"name": "device", "request": "one"}],
        },
        "env": [
            {"name": "A", "value": ""},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "s", "key": "k"}}},
            {"name": "D", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
            {"name": "E", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        ],
        "scheduling": {
            "tolerations": [
                {"operator": "Exists"},
                {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 60},
            ]
        },
        "networkPolicy": {
            "from": [
                {"podSelector": {}},
                {"podSelector": selector, "namespaceSelector": selector},
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
            ]
        },
    }
    made = (await _create(kube, namespace, **spec))["spec"]
    for field in ("resources", "env", "scheduling"):
        assert made[field] == spec[field]
    assert made["networkPolicy"] == {"enabled": True, **spec["networkPolicy"]}


@pytest.mark.parametrize(
    ("scheduling", "field"),
    [
        ({"affinity": {"nodeAfinity": {}}}, "affinity.nodeAfinity"),
        ({"topologySpreadConstraints": [{"maxSkew": "x"}]}, "maxSkew"),
    ],
)
async def test_what_the_api_server_does_not_understand_is_for_a_person_to_mend(
    kube: Kube, namespace: str, settings: Settings, scheduling: Object, field: str
) -> None:
    """It answers 500 to such an apply, which is no outage."""
    stage = Stage(kube, namespace, settings)
    try:
        await stage.create()
        await stage.settle()
        await stage.patch(scheduling=scheduling)
        await stage.reconcile()
        status, reason, message = await stage.condition("Stalled")
        assert (status, reason) == ("True", "Refused")
        assert field in message
        assert "correct the spec" in message
        await stage.patch(scheduling=None)
        await stage.settle()
        assert (await stage.condition("Ready"))[0] == "True"
    finally:
        await stage.close()


@pytest.mark.parametrize("change", ["other", None])
async def test_the_class_of_a_volume_stays(kube: Kube, namespace: str, change: str | None) -> None:
    made = await _create(kube, namespace, nats={"storage": {"storageClassName": "fst"}})
    # a mistake can be corrected
    await kube.patch(Ref.of(made), {"spec": {"nats": {"storage": {"storageClassName": "fast"}}}})
    await kube.patch(Ref.of(made), {"status": {"templateHash": "x"}}, subresource="status")
    with pytest.raises(KubeError, match=r"nats\.storage\.storageClassName is fixed"):
        await kube.patch(Ref.of(made), {"spec": {"nats": {"storage": {"storageClassName": change}}}})
    await kube.patch(Ref.of(made), {"spec": {"nats": {"storage": {"size": "9Gi"}}}})


async def test_the_class_of_the_embedded_postgres_volume_stays(kube: Kube, namespace: str) -> None:
    made = await _create(kube, namespace, replicas=1, postgres={"embedded": {}})
    await kube.patch(Ref.of(made), {"status": {"templateHash": "x"}}, subresource="status")
    with pytest.raises(KubeError, match=r"postgres\.embedded\.storage\.storageClassName is fixed"):
        await kube.patch(Ref.of(made), {"spec": {"postgres": {"embedded": {"storage": {"storageClassName": "fast"}}}}})
