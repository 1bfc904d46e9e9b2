"""More and fewer servers under load, and none for a while."""

from __future__ import annotations

import time

import pytest

from e2e.access import Access
from e2e.kubernetes import Kubernetes, until
from e2e.release import Release
from e2e.stores import EMBEDDED, Database, Namespace, Servers, boundary, cluster, show
from e2e.test_availability import traffic


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
            await running.load.more(100)


async def test_hibernate(kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access) -> None:
    await namespace.apply(cluster(EMBEDDED, replicas=1), boundary("orders"))
    store = Servers(namespace, access, "store")
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
    async with store.client("orders") as client:
        await client.save({"n": "1"})
    claims = {claim["metadata"]["uid"] for claim in await kubernetes.list("pvc", namespace.name)}
    await store.patch(hibernate=True)

    async def asleep() -> bool:
        return not await store.pods()

    await until(asleep, 120, "no pods")
    await store.patch(hibernate=False)
    await store.ready()
    async with store.client("orders") as client:
        assert len(await client.log()) == 1
    assert claims <= {claim["metadata"]["uid"] for claim in await kubernetes.list("pvc", namespace.name)}
