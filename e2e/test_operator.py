"""The operator itself: it repairs, it rests, it is replaced, and clusters do not need it to serve."""

from __future__ import annotations

import asyncio
import json

import pytest

from e2e.access import Access
from e2e.kubernetes import Kubernetes, Object, until
from e2e.release import Release
from e2e.stores import EMBEDDED, Database, Namespace, Servers, boundary, cluster, index, show


@pytest.fixture
async def store(kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access) -> Servers:
    """One server with its own PostgreSQL, a boundary and an index, Ready."""
    await namespace.apply(cluster(EMBEDDED, replicas=1), boundary("orders"), index("account", "orders", "account"))
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", "evidx/orders-account", timeout=240)
    return Servers(namespace, access, "store")


async def _versions(kubernetes: Kubernetes, namespace: str) -> dict[str, str]:
    """resourceVersion of everything that the operator writes in a namespace."""
    kinds = ("orisun", "bnd", "evidx", "sts", "svc", "cm", "secret", "sa", "pdb", "pvc")
    found = await asyncio.gather(*(kubernetes.list(kind, namespace) for kind in kinds))
    objects: list[Object] = [one for many in found for one in many]
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["resourceVersion"] for one in objects}


async def test_rests_when_nothing_changes(kubernetes: Kubernetes, store: Servers, operator: Release) -> None:
    space = store.namespace.name

    async def quiet() -> dict[str, str]:
        """The versions, once they have stood still over three timers (the chart is installed with 10 s)."""
        before = await _versions(kubernetes, space)
        await asyncio.sleep(32)
        after = await _versions(kubernetes, space)
        changed = {name: (before.get(name), version) for name, version in after.items() if before.get(name) != version}
        # moving figures may be written once a minute
        moving = {name for name in changed if name.startswith(("Boundary/", "EventIndex/", "OrisunCluster/"))}
        assert not changed.keys() - moving, f"written without need: {changed}"
        return after

    await until(quiet, 120, "no writes")


@pytest.mark.smoke
async def test_drift_is_repaired(kubernetes: Kubernetes, store: Servers) -> None:
    space = store.namespace.name
    service = await kubernetes.must("svc", "store", space)
    await kubernetes.patch("svc", "store", {"spec": {"selector": {"app.kubernetes.io/instance": "nobody"}}}, space)

    async def selects_again() -> bool:
        found = await kubernetes.must("svc", "store", space)
        return bool(found["spec"]["selector"] == service["spec"]["selector"])

    await until(selects_again, 60, "the Service selects its pods")
    await kubernetes.delete("svc", "store-headless", namespace=space)
    await kubernetes.delete("cm", "store-nats", namespace=space)

    async def there_again() -> bool:
        found = [await kubernetes.get("svc", "store-headless", space), await kubernetes.get("cm", "store-nats", space)]
        return all(found)

    await until(there_again, 60, "Service and ConfigMap")
    await store.ready()
    events = await kubernetes.events(space)
    assert any("store" in event["note"] and event["regarding"]["kind"] == "OrisunCluster" for event in events), events


@pytest.mark.smoke
async def test_survives_its_leader(kubernetes: Kubernetes, operator: Release, namespace: Namespace) -> None:
    leader = await operator.leader()
    many = [boundary(f"b{number}") for number in range(8)]
    await namespace.apply(cluster(EMBEDDED, replicas=1), *many)

    async def under_way() -> bool:
        """PostgreSQL runs, so boundaries are being made."""
        found = await kubernetes.list("bnd", namespace.name)
        return any((one.get("status") or {}).get("observedGeneration", -1) >= 0 for one in found)

    await until(under_way, 120, "work under way")
    await kubernetes.kill(operator.namespace, leader)
    wanted = ["orisun/store", *(f"bnd/b{number}" for number in range(8))]
    await kubernetes.ready(namespace.name, *wanted, timeout=300)
    assert await operator.leader() != leader


async def test_data_path_does_not_need_it(kubernetes: Kubernetes, store: Servers, operator: Release) -> None:
    await operator.scale(0)
    try:
        async with store.client("orders") as client:
            await client.save({"account": "a"})
            pod = (await store.pods())[0]
            await kubernetes.kill(store.namespace.name, pod["metadata"]["name"])

            async def back() -> bool:
                pods = await store.pods()
                return bool(pods) and pods[0]["metadata"]["uid"] != pod["metadata"]["uid"]

            await until(back, 60, "the pod again")
            await client.save({"account": "b"})
            assert len(await client.log()) == 2
    finally:
        await operator.scale(2)
    await store.ready()


async def test_status_tells_what_is_wrong_and_heals(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database
) -> None:
    external = {"external": {"host": "nowhere", "database": "orisun", "credentialsSecretRef": {"name": "missing"}}}
    await namespace.apply(cluster(external, replicas=1), boundary("orders"), index("x", "ordres", "x"))
    space = namespace.name

    async def says(kind: str, name: str, word: str) -> bool:
        condition = await kubernetes.condition(kind, name, space)
        assert condition.get("status") == "False", condition
        assert word in condition["message"], condition
        return True

    async def secret(password: str) -> None:
        data = {"username": "postgres", "password": password}
        await namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "missing"}, "stringData": data}
        )

    await until(lambda: says("orisun", "store", "missing"), 60, "the missing Secret is named")
    await until(lambda: says("bnd", "orders", "missing"), 60, "by the Boundary too")
    await until(lambda: says("evidx", "ordres-x", "ordres"), 60, "the missing Boundary is named")
    show("status of mistakes", "\n" + await kubernetes.kubectl("get", "orisun,bnd,evidx", "-o", "wide", "-n", space))
    await secret("wrong")
    await until(lambda: says("orisun", "store", "nowhere"), 90, "the host that is not there is named")
    await kubernetes.patch("orisun", "store", {"spec": {"postgres": {"external": {"host": "db"}}}}, space)
    await until(lambda: says("orisun", "store", "password"), 90, "the wrong password is told")
    assert "wrong" not in (await kubernetes.condition("orisun", "store", space))["message"].replace(
        "wrong password", ""
    )
    await secret(database.PASSWORD)
    await kubernetes.ready(space, "orisun/store", "bnd/orders", timeout=240)


async def test_metrics(kubernetes: Kubernetes, operator: Release, access: Access) -> None:
    leader = await operator.leader()
    async with access.pod(operator.namespace, leader, 8080) as address:
        import urllib.request

        url = f"http://{address}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    assert "orisun_operator_" in text
    names = sorted({line.split("{")[0].split(" ")[0] for line in text.splitlines() if line.startswith("orisun_op")})
    show("metrics", json.dumps(names))
