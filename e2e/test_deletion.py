"""What deleting deletes: nothing unasked, and never for ever."""

from __future__ import annotations

import pytest

from e2e.access import Access
from e2e.kubernetes import Kubernetes, until
from e2e.release import Release
from e2e.stores import Database, Namespace, Servers, boundary, cluster, index


@pytest.fixture
async def store(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database, access: Access
) -> Servers:
    """One server on a PostgreSQL that outlives it, with a boundary for each policy and three events in each."""
    policies = ("Retain", "Archive", "Delete")
    await namespace.apply(
        cluster(database.spec, replicas=1),
        *(boundary(policy.lower(), deletionPolicy=policy) for policy in policies),
        index("n", "retain", "n"),
    )
    names = [f"bnd/{policy.lower()}" for policy in policies]
    await kubernetes.ready(namespace.name, "orisun/store", "evidx/retain-n", *names, timeout=240)
    store = Servers(namespace, access, "store")
    for policy in policies:
        async with store.client(policy.lower()) as client:
            for number in range(3):
                await client.save({"n": str(number)})
    return store


async def _tables(database: Database) -> str:
    return await database.execute(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE tablename LIKE '%es_event'"
    )


@pytest.mark.smoke
async def test_policies(kubernetes: Kubernetes, store: Servers, database: Database) -> None:
    space = store.namespace.name
    await kubernetes.delete("bnd", "retain", namespace=space)
    assert await database.execute("SELECT count(*) FROM retain.retain_orisun_es_event") == "3"
    async with store.client("retain") as client:
        await client.save({"n": "3"})
    await kubernetes.delete("bnd", "delete", namespace=space, timeout=180)
    assert "delete." not in await _tables(database)
    await kubernetes.delete("bnd", "archive", namespace=space, timeout=300)
    assert "archive." not in await _tables(database)
    claims = {claim["metadata"]["name"] for claim in await kubernetes.list("pvc", space)}
    assert "archive-archive" in claims, claims

    async def listed() -> bool:
        status = (await store.cluster())["status"]
        return "retain" in str(status.get("unmanaged") or status)

    await until(listed, 90, "the retained boundary is listed as unmanaged")


async def test_deleting_the_cluster_keeps_the_data(kubernetes: Kubernetes, store: Servers, database: Database) -> None:
    space = store.namespace.name
    before = await _tables(database)
    await kubernetes.delete("orisun", "store", namespace=space, timeout=180)

    async def no_pods() -> bool:
        return not await store.pods()

    await until(no_pods, 120, "no pods")
    assert await _tables(database) == before
    await store.namespace.apply(cluster(database.spec, replicas=1))
    await store.ready()
    async with store.client("retain") as client:
        assert len(await client.log()) == 3


async def test_a_namespace_never_hangs(kubernetes: Kubernetes, store: Servers) -> None:
    await store.namespace.delete(wait=True, timeout=180)


@pytest.mark.smoke
async def test_a_namespace_never_hangs_without_the_operator(
    kubernetes: Kubernetes, store: Servers, operator: Release
) -> None:
    await operator.uninstall()
    try:
        assert (await kubernetes.must("bnd", "archive", store.namespace.name))["metadata"].get("finalizers") is None
        assert await store.pods(), "uninstalling the operator leaves clusters"
        await store.namespace.delete(wait=True, timeout=180)
    finally:
        await operator.ensure()
