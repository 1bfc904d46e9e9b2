"""The operator that leads is killed in the middle of its work: the next takes it up, nothing is lost, nothing twice."""

from __future__ import annotations

import time

import pytest

from e2e import chaos
from e2e.access import Access
from e2e.database import Database
from e2e.kubernetes import Kubernetes, restarts, until
from e2e.release import Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster, index, show


@pytest.fixture(scope="module")
async def one(
    kubernetes: Kubernetes, shared_namespace: Namespace, shared_database: Database, access: Access
) -> Servers:
    """A server on a PostgreSQL in which a test may hold things up, with a boundary and three events."""
    await shared_namespace.apply(cluster(shared_database.spec, replicas=1), boundary("orders"))
    await kubernetes.ready(shared_namespace.name, "orisun/store", "bnd/orders", timeout=240)
    store = Servers(shared_namespace, access, "store")
    async with store.client("orders") as client:
        for number in range(3):
            await client.save({"account": str(number)})
    return store


async def _killed(kubernetes: Kubernetes, operator: Release) -> None:
    """The leader is killed, and another process leads."""
    holder = await operator.holder()
    await chaos.kill(kubernetes, operator.namespace, await operator.leader())
    await operator.another(holder)


@pytest.mark.smoke
async def test_while_boundaries_are_made(kubernetes: Kubernetes, operator: Release, namespace: Namespace) -> None:
    names = [f"b{number}" for number in range(8)]
    await namespace.apply(cluster(EMBEDDED, replicas=1), *(boundary(name) for name in names))

    async def under_way() -> bool:
        """PostgreSQL runs, so boundaries are being made."""
        found = await kubernetes.list("bnd", namespace.name)
        return any((one.get("status") or {}).get("observedGeneration", -1) >= 0 for one in found)

    await until(under_way, 120, "work under way")
    await _killed(kubernetes, operator)
    await kubernetes.ready(namespace.name, "orisun/store", *(f"bnd/{name}" for name in names), timeout=300)


async def test_stuck(kubernetes: Kubernetes, operator: Release, one: Servers) -> None:
    """A leader that hangs is not waited for: another works as soon as its Lease is over, the kubelet starts it anew."""
    if not await chaos.reaches_nodes(kubernetes):
        pytest.skip("needs a node on which processes can be stopped")
    space, holder, stuck = one.namespace.name, await operator.holder(), await operator.leader()
    before = restarts(await kubernetes.must("pod", stuck, operator.namespace), "operator")
    began = time.monotonic()
    await chaos.stop(kubernetes, operator.namespace, stuck)
    await one.namespace.apply(boundary("meanwhile"))
    await kubernetes.ready(space, "bnd/meanwhile", timeout=60)
    show("leader stuck, seconds until another has made a boundary", round(time.monotonic() - began, 1))
    assert stuck not in await operator.holder(), "the pod was started anew before another could work"

    async def restarted() -> bool:
        return restarts(await kubernetes.must("pod", stuck, operator.namespace), "operator") > before

    await until(restarted, 120, "the kubelet starts it anew")
    show("leader stuck, seconds until it was started anew", round(time.monotonic() - began, 1))
    events = [event["note"] for event in await kubernetes.events(operator.namespace, "Unhealthy")]
    assert any("Liveness probe failed" in note for note in events), events
    assert await operator.another(holder) != stuck
    await operator.scale(2)


async def test_while_an_index_is_built(
    kubernetes: Kubernetes, operator: Release, one: Servers, shared_database: Database
) -> None:
    """The build that PostgreSQL still runs is adopted: it is the same one to its end."""
    space = one.namespace.name
    # no server: they build too
    await one.patch(hibernate=True)
    await one.none()

    async def builds() -> str:
        return await shared_database.execute(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'CREATE INDEX CONC%'"
        )

    async with shared_database.held("LOCK TABLE orders.orders_orisun_es_event IN ROW EXCLUSIVE MODE"):
        await one.namespace.apply(index("account", "orders", "account"))
        build = await until(builds, 60, "a build")
        await kubernetes.wait_for("evidx", "orders-account", space, "BlockedByTransaction")
        blocked = await kubernetes.condition("evidx", "orders-account", space, "BlockedByTransaction")
        show("a build that waits", blocked["message"])
        builder = await shared_database.holder("index-build", "orders")
        assert builder
        await _killed(kubernetes, operator)

        async def adopted() -> bool:
            return await shared_database.holder("index-build", "orders") not in ("", builder)

        await until(adopted, 90, "the next leader takes over the lease of the build")
        assert await builds() == build, "a second build, or none"
    await kubernetes.ready(space, "evidx/orders-account")
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid::regclass::text LIKE '%account%'"
    assert await shared_database.execute(valid) == "t"
    await one.patch(hibernate=False)
    await one.ready()
    async with one.client("orders") as client:
        await client.save({"account": "3"})
        assert [event.tags["account"] for event in await client.log()] == ["0", "1", "2", "3"]


async def test_while_tables_are_migrated(
    kubernetes: Kubernetes, operator: Release, one: Servers, shared_database: Database
) -> None:
    """The next leader goes on with what the one before waited for; each migration is applied once."""
    space = one.namespace.name

    async def waiting(since: str = "-infinity") -> int:
        """Connections made since then that wait for a lock now; each does so for two seconds at a time."""
        wait = "wait_event_type = 'Lock' AND query LIKE '%orisun_migration%'"
        wait += f" AND backend_start > '{since}'"
        return int(await shared_database.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {wait}"))

    await shared_database.execute("CREATE SCHEMA late")
    async with shared_database.held("CREATE TABLE late.late_orisun_es_event ()"):
        await one.namespace.apply(boundary("late"))
        await until(waiting, 60, "a migration under way")
        moment = await shared_database.execute("SELECT now()")
        await _killed(kubernetes, operator)
        await until(lambda: waiting(moment), 90, "the next leader is at it")
    await kubernetes.ready(space, "bnd/late", "orisun/store")
    schema = await shared_database.admin_schema()
    applied = await shared_database.execute(
        f"SELECT string_agg(version::text, ',' ORDER BY version) FROM {schema}.orisun_migration"
        " WHERE scope = 'boundary:late'"
    )
    newest = (await kubernetes.must("bnd", "late", space))["status"]["schemaVersion"]
    assert applied == ",".join(str(version) for version in range(1, newest + 1))
    async with one.client("late") as client:
        await client.save({"n": "1"})
        assert len(await client.log()) == 1
