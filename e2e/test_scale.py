"""More and fewer servers under load, and none for a while."""

from __future__ import annotations

import time

import pytest

from e2e.access import Access
from e2e.database import Database
from e2e.kubernetes import Kubernetes, until
from e2e.release import ROOT, Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster, show
from e2e.traffic import traffic

AUTOSCALER = ROOT / "examples" / "kubernetes" / "hpa.yaml"


@pytest.mark.timeout(900)
async def test_three_five_three(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database, access: Access
) -> None:
    await namespace.apply(cluster(database.spec), boundary("orders"))
    store = Servers(namespace, access, "store")
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=300)
    async with traffic(store) as running:
        for size in (5, 3):
            began = time.monotonic()
            await kubernetes.kubectl("scale", "orisun/store", f"--replicas={size}", "-n", namespace.name)
            await store.ready(timeout=400)
            show(f"scaled to {size}, seconds", round(time.monotonic() - began, 1))

            async def has_size(size: int = size) -> bool:
                return len(await store.pods()) == size

            await until(has_size, 60, f"{size} pods")
            assert (await store.cluster())["status"]["jetstream"]["peers"] == size
            await running.goes_on()
        removed = [event["note"] for event in await kubernetes.events(namespace.name, "PeerRemoved")]
        assert len(removed) == 2, removed


@pytest.mark.timeout(900)
async def test_one_three_one(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database, access: Access
) -> None:
    """Streams begin anew on the way up and down, nobody misses an event. The way up is the example's autoscaler's: it
    asks for its ``minReplicas`` through the scale subresource, which needs no metrics."""
    await namespace.apply(cluster(database.spec, replicas=1), boundary("orders"))
    store = Servers(namespace, access, "store")
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=300)

    async def sized(size: int) -> None:
        """Waits until that many servers are Ready and no other pod is there; a Warning tells of the streams."""

        async def is_so() -> bool:
            assert (await store.cluster())["spec"]["replicas"] == size
            return len(await store.pods()) == size

        await until(is_so, 180, f"{size} pods")
        await store.ready(timeout=300)
        warnings = [e for e in await kubernetes.events(namespace.name, "StreamsRebuilt") if e["type"] == "Warning"]
        assert any(f"with {'one' if size == 1 else size} server" in event["note"] for event in warnings), warnings

    async with traffic(store) as running:
        began = time.monotonic()
        await namespace.apply(AUTOSCALER)
        await sized(3)
        show("1 to 3 by the autoscaler, seconds", round(time.monotonic() - began, 1))
        await running.goes_on()
        scaler = await kubernetes.must("hpa", "store", namespace.name)
        able = next(one for one in scaler["status"]["conditions"] if one["type"] == "AbleToScale")
        assert able["status"] == "True", able
        await kubernetes.delete("hpa", "store", namespace=namespace.name)
        began = time.monotonic()
        await kubernetes.kubectl("scale", "orisun/store", "--replicas=1", "-n", namespace.name)
        await sized(1)
        show("3 to 1, seconds", round(time.monotonic() - began, 1))
        await running.goes_on()
    show("events, 1 to 3 to 1", "\n" + await kubernetes.kubectl("get", "events", "-n", namespace.name))


async def test_hibernate(kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access) -> None:
    await namespace.apply(cluster(EMBEDDED, replicas=1), boundary("orders"))
    store = Servers(namespace, access, "store")
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
    async with store.client("orders") as client:
        await client.save({"n": "1"})
    claims = {claim["metadata"]["uid"] for claim in await kubernetes.list("pvc", namespace.name)}
    await store.patch(hibernate=True)
    await store.none()
    await kubernetes.wait_for("orisun", "store", namespace.name, status="False", reason="Hibernated")
    await store.patch(hibernate=False)
    await store.ready()
    async with store.client("orders") as client:
        assert len(await client.log()) == 1
    assert claims <= {claim["metadata"]["uid"] for claim in await kubernetes.list("pvc", namespace.name)}
