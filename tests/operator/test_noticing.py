"""What Kopf does not tell is found out, by a look at a real API server."""

from __future__ import annotations

import asyncio
from typing import Any

from orisun_operator.kube import Kube, Object, Ref
from orisun_operator.metrics import Metrics
from orisun_operator.noticing import Noticed
from orisun_operator.reconcile import Outcome
from orisun_operator.work import Key, WorkQueue
from tests.harness import eventually
from tests.operator.stores import CLUSTER, Store

_PATIENCE = 180.0


class _Scene:
    """``asked`` are the keys that are to be reconciled; ``now`` is the clock."""

    def __init__(self) -> None:
        self.asked: list[Key] = []
        self.now = 1000.0
        kinds = {"boundaries": self._reconcile, "orisunclusters": self._reconcile}
        self.queue = WorkQueue(kinds, workers=1, timer=3600, metrics=Metrics())
        self.noticed = Noticed(self.queue, _PATIENCE, lambda: self.now)

    @classmethod
    async def of(cls, store: Store) -> _Scene:
        """Kopf has told of the OrisunCluster."""
        scene = cls()
        scene.noticed.tell("orisunclusters", _event(await store.get("OrisunCluster", CLUSTER)))
        await scene.worked()
        return scene

    async def _reconcile(self, namespace: str, name: str) -> Outcome:
        self.asked.append(Key("boundaries", namespace, name))
        return Outcome()

    async def worked(self) -> list[str]:
        """The names that were asked for since the last time."""
        task = asyncio.create_task(self.queue.run())
        await eventually(lambda: not self.queue._queued and not self.queue._running)
        task.cancel()
        names = [key.name for key in self.asked]
        self.asked.clear()
        return names


def _event(obj: Object, type: str | None = "ADDED") -> dict[str, Any]:
    return {"type": type, "object": obj}


async def test_what_kopf_does_not_tell_is_reconciled_and_in_the_end_a_problem(kube: Kube, store: Store) -> None:
    scene = await _Scene.of(store)
    told = await store.boundary("told", name="told")
    scene.noticed.tell("boundaries", _event(told))
    assert await scene.worked() == ["told"]
    await scene.noticed.compare(kube, store.namespace)
    assert (await scene.worked(), scene.noticed.problem()) == ([], "")

    silent = await store.boundary("silent", name="silent")
    await scene.noticed.compare(kube, store.namespace)
    assert (await scene.worked(), scene.noticed.problem()) == (["silent"], "")
    scene.now += _PATIENCE + 1
    await scene.noticed.compare(kube, store.namespace)
    assert await scene.worked() == ["silent"]
    assert scene.noticed.problem() == f"Kopf has not told of boundaries {store.namespace}/silent for 181 s"

    # Kopf is back
    scene.noticed.tell("boundaries", _event(silent, None))
    await scene.noticed.compare(kube, store.namespace)
    assert scene.noticed.problem() == ""


async def test_a_change_and_an_end_that_kopf_does_not_tell(kube: Kube, store: Store) -> None:
    scene = await _Scene.of(store)
    scene.noticed.tell("boundaries", _event(await store.boundary("orders", name="orders")))
    await scene.worked()
    await kube.patch(store.ref("Boundary", "orders"), {"status": {"phase": "Changed"}}, subresource="status")
    await scene.noticed.compare(kube, store.namespace)
    assert await scene.worked() == []
    await store.patch("Boundary", "orders", {"description": "changed"})
    await scene.noticed.compare(kube, store.namespace)
    assert await scene.worked() == ["orders"]
    await kube.delete(store.ref("Boundary", "orders"))
    scene.now += _PATIENCE + 1
    await scene.noticed.compare(kube, store.namespace)
    # an end falls between two watches now and then, and is no sign of a hang
    assert (await scene.worked(), scene.noticed.problem()) == (["orders"], "")
    await scene.noticed.compare(kube, store.namespace)
    assert await scene.worked() == []


async def test_kopf_may_be_ahead_of_the_list(kube: Kube, store: Store) -> None:
    scene = await _Scene.of(store)
    orders = await store.boundary("orders", name="orders")
    scene.noticed.tell("boundaries", _event(orders))
    label = {"metadata": {"labels": {"team": "one"}}}
    ahead = {**orders, "metadata": {**orders["metadata"], **label["metadata"]}}
    scene.noticed.tell("boundaries", _event(ahead, "MODIFIED"))
    await scene.noticed.compare(kube, store.namespace)
    await kube.patch(store.ref("Boundary", "orders"), label)
    scene.now += _PATIENCE + 1
    await scene.noticed.compare(kube, store.namespace)
    assert scene.noticed.problem() == ""


async def test_other_namespaces_are_left_alone(kube: Kube, store: Store, namespace: str) -> None:
    scene = await _Scene.of(store)
    scene.noticed.tell("boundaries", _event(await store.boundary("orders", name="orders")))
    await scene.worked()
    other = f"{namespace}-other"
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    await scene.noticed.compare(kube, other)
    assert await scene.worked() == []
    scene.noticed.begin(other)
    await scene.noticed.compare(kube, store.namespace)
    assert await scene.worked() == []
    # Kopf begins anew and finds it again
    scene.noticed.begin(store.namespace)
    scene.noticed.tell("orisunclusters", _event(await store.get("OrisunCluster", CLUSTER), None))
    scene.noticed.tell("boundaries", _event(await store.get("Boundary", "orders"), None))
    assert await scene.worked() == [CLUSTER, "orders"]
    await kube.delete(Ref("v1", "Namespace", "", other))
