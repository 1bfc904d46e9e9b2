"""OrisunClusters: resources on a real API server, their catalog in a real PostgreSQL."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest

from orisun_operator.kube import Kube, Object
from orisun_server.settings import Settings
from tests.operator.clusters import NAME, Stage


@pytest.fixture
async def stage(kube: Kube, namespace: str, settings: Settings) -> AsyncIterator[Stage]:
    stage = Stage(kube, namespace, settings)
    yield stage
    await stage.close()


async def test_a_cluster_gets_all_its_children_and_is_ready_when_its_pods_are(stage: Stage) -> None:
    await stage.create()
    await stage.reconcile()
    await stage.reconcile()
    for api_version, kind, name in (
        ("apps/v1", "StatefulSet", NAME),
        ("v1", "Service", NAME),
        ("v1", "Service", f"{NAME}-headless"),
        ("v1", "Service", f"{NAME}-admin"),
        ("v1", "ServiceAccount", NAME),
        ("v1", "ConfigMap", f"{NAME}-nats"),
        ("v1", "Secret", f"{NAME}-nats-auth"),
        ("v1", "Secret", f"{NAME}-admin"),
        ("policy/v1", "PodDisruptionBudget", NAME),
        ("networking.k8s.io/v1", "NetworkPolicy", NAME),
    ):
        assert await stage.get(api_version, kind, name) is not None, (kind, name)
    assert (await stage.statefulset())["spec"]["replicas"] == 3
    assert (await stage.condition("Ready"))[:2] == ("False", "AwaitingPods")
    assert (await stage.condition("SchemaReady"))[0] == "True"
    assert await stage.follow() == ["store-0", "store-1", "store-2"]
    for name in await stage.pods():
        await stage.ready(name)
    assert (await stage.reconcile()).requeue is None
    assert (await stage.condition("Ready"))[:2] == ("True", "Ready")
    status = await stage.status()
    assert status["observedGeneration"] == 1
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (3, 3, 3)
    assert status["phase"] == "Ready"
    admin = await stage.get("v1", "Secret", f"{NAME}-admin")
    assert admin is not None
    assert len(_value(admin, "password")) > 20


def _value(secret: Object, key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()
