"""What the chart's hook does before an uninstall: the operator ends first, then its finalizers come off."""

from __future__ import annotations

import asyncio

import pytest

from orisun_operator.kube import Kube, Object, Ref
from orisun_operator.uninstall import StillRunning, uninstall
from tests.harness import eventually
from tests.operator.stores import Store

_LABELS = {"app": "operator"}
_NAME = "orisun-operator"


@pytest.fixture
async def deployment(kube: Kube, namespace: str) -> Ref:
    """The operator's, with a pod; no controller does anything about it."""
    spec = {"containers": [{"name": "operator", "image": "orisun:1"}]}
    template = {"metadata": {"labels": _LABELS}, "spec": spec}
    made: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": _NAME, "namespace": namespace},
        "spec": {"replicas": 2, "selector": {"matchLabels": _LABELS}, "template": template},
    }
    metadata = {"name": "operator-1", "namespace": namespace, "labels": _LABELS}
    await kube.create(made)
    await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return Ref.of(made)


async def _finalizers(store: Store) -> list[str]:
    found: list[str] = (await store.get("Boundary", "orders"))["metadata"].get("finalizers") or []
    return found


async def test_the_operator_ends_first_and_then_its_finalizers_go(
    kube: Kube, namespace: str, store: Store, deployment: Ref
) -> None:
    await store.boundary("orders", deletionPolicy="Delete")
    await store.settled("orders")
    await store.append("orders", 3)
    await kube.patch(
        store.ref("Boundary", "orders"), {"metadata": {"finalizers": ["orisun.io/boundary-data", "x.y/z"]}}
    )
    said: list[str] = []
    work = asyncio.create_task(uninstall(kube, [namespace], namespace, _NAME, say=said.append))

    async def scaled() -> bool:
        return bool((await kube.get(deployment) or {})["spec"]["replicas"] == 0)

    await eventually(scaled, 30, 0.05)
    # while a pod of it runs it would put them on again
    assert "orisun.io/boundary-data" in await _finalizers(store)
    pod = Ref("v1", "Pod", namespace, "operator-1")
    await kube._server.request("DELETE", await kube._server.path(pod), body={"gracePeriodSeconds": 0})
    assert await asyncio.wait_for(work, 30) == 1
    assert await _finalizers(store) == ["x.y/z"]
    assert any("its data stays" in line for line in said)
    # nobody looks any more: the resource goes at once, and its events stay
    await kube.patch(store.ref("Boundary", "orders"), {"metadata": {"finalizers": []}})
    await kube.delete(store.ref("Boundary", "orders"))
    async with await store.session() as session:
        found = await session.boundaries.find("orders")
    assert found is not None
    assert found.status.value == "ACTIVE"
    # again, when nothing is left to do
    assert await uninstall(kube, [namespace], namespace, _NAME, say=said.append) == 0


async def test_pods_that_do_not_end_are_named(kube: Kube, namespace: str, store: Store, deployment: Ref) -> None:
    await store.boundary("orders", deletionPolicy="Archive")
    await store.settled("orders")
    with pytest.raises(StillRunning, match="operator-1 did not end within 1 s; delete them and try again"):
        await uninstall(kube, [namespace], namespace, _NAME, timeout=1)
    assert await _finalizers(store) == ["orisun.io/boundary-data"]
