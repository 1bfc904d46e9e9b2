"""A cluster of three under a continuous writer and a subscriber, while parts of it end.

The checker (tests/faults/checker.py) holds at the end: no acknowledged event lost, none skipped, one order. A client
that repeats what got no answer (UNAVAILABLE) sees no failure: ``Client.call`` raises on every other code.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator

import grpc
import pytest

from e2e import chaos
from e2e.access import Access
from e2e.conftest import tell
from e2e.database import Database
from e2e.kubernetes import Kubernetes, Object, is_ready, restarts, statuses, until
from e2e.release import Release
from e2e.stores import Namespace, Servers, boundary, cluster, pod_of, show
from e2e.traffic import BOUNDARY, traffic


@pytest.fixture(scope="module")
async def three(
    kubernetes: Kubernetes, shared_namespace: Namespace, shared_database: Database, access: Access
) -> Servers:
    """Three servers with a boundary, for all tests here."""
    began = time.monotonic()
    # a bad image has less patience here than elsewhere
    strategy = {"podTimeoutSeconds": 40}
    await shared_namespace.apply(cluster(shared_database.spec, updateStrategy=strategy), boundary(BOUNDARY))
    await kubernetes.ready(shared_namespace.name, "orisun/store", f"bnd/{BOUNDARY}", timeout=300)
    show("three servers, apply to Ready, seconds", round(time.monotonic() - began, 1))
    return Servers(shared_namespace, access, "store")


@pytest.fixture
async def store(request: pytest.FixtureRequest, operator: Release, three: Servers) -> AsyncIterator[Servers]:
    """The three, Ready."""
    await three.ready()
    yield three
    await tell(request, three.namespace, operator)


async def test_what_a_cluster_is_made_of(kubernetes: Kubernetes, store: Servers, access: Access) -> None:
    space = store.namespace.name
    for pod in await store.pods():
        assert {one["name"] for one in statuses(pod)} == {"server", "nats"}
        assert "serviceAccountToken" not in json.dumps(pod["spec"]["volumes"])
    headless = await kubernetes.must("svc", "store-headless", space)
    assert headless["spec"]["publishNotReadyAddresses"]

    async def may_lose_one() -> bool:
        return bool((await kubernetes.must("pdb", "store", space))["status"].get("disruptionsAllowed") == 1)

    await until(may_lose_one, 30, "the PodDisruptionBudget lets one of three go")

    async def copied() -> bool:
        """Streams of the boundary and of the admin boundary are there, each in three copies."""
        async with access.pod(space, "store-0", 8222) as address:
            streams = f"http://{address}/jsz?accounts=true&streams=true&config=true"
            told = json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(streams, timeout=10).read()))
        found = [one["config"] for account in told["account_details"] for one in account.get("stream_detail") or ()]
        assert [stream["num_replicas"] for stream in found] == [3, 3], found
        return True

    await until(copied, 60, "streams in three copies")


@pytest.mark.smoke
async def test_failover(kubernetes: Kubernetes, store: Servers, shared_database: Database) -> None:
    """The publisher's processes are killed where they are; then the pod of the next publisher is removed."""
    async with traffic(store) as running:
        for end in (chaos.kill, chaos.remove):
            publisher = await shared_database.publisher(BOUNDARY)
            running.begin()
            await end(kubernetes, store.namespace.name, pod_of(publisher))

            async def moved(old: str = publisher) -> bool:
                return await shared_database.publisher(BOUNDARY) != old

            await until(moved, 30, "another publisher")
            await running.goes_on(timeout=30)
            show(f"failover ({end.__name__}): seconds without appends, without live events", running.pauses())
            assert max(running.pauses()) < 15
            await store.ready()
            # what is removed runs for a moment beside its successor
            await kubernetes.wait_for("orisun", store.name, store.namespace.name, "JetStreamHealthy", timeout=60)


@pytest.mark.smoke
async def test_rolling_upgrade(kubernetes: Kubernetes, store: Servers, next_image: str) -> None:
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in await store.pods()}
    async with traffic(store) as running:
        began = time.monotonic()
        await store.patch(image=next_image)
        await store.ready(timeout=400)
        show("rolling upgrade of three, seconds", round(time.monotonic() - began, 1))
        pods = await store.pods()
        assert all(before[pod["metadata"]["name"]] != pod["metadata"]["uid"] for pod in pods)
        assert {c["image"] for pod in pods for c in pod["spec"]["containers"] if c["name"] == "server"} == {next_image}
        assert set(running.client.errors) <= {grpc.StatusCode.UNAVAILABLE}, running.client.errors


@pytest.mark.smoke
async def test_bad_image_stops_and_heals(kubernetes: Kubernetes, store: Servers, images: tuple[str, str]) -> None:
    async with traffic(store) as running:
        await store.patch(image="orisun:does-not-exist")
        name, space = store.name, store.namespace.name
        await kubernetes.wait_for("orisun", name, space, "Stalled", timeout=180)
        condition = await kubernetes.condition("orisun", name, space, "Stalled")
        show("a bad image is told so", condition["message"])
        assert "does-not-exist" in condition["message"]
        waiting = [pod for pod in await store.pods() if not is_ready(pod)]
        assert len(waiting) == 1, "more than one pod was given up for a bad image"
        await running.load.more(50)
        await store.patch(image=images[0])
        await store.ready()
        assert all(is_ready(pod) for pod in await store.pods())


async def test_all_pods_killed_at_once(kubernetes: Kubernetes, store: Servers) -> None:
    async with traffic(store) as running:
        for end in (chaos.kill, chaos.remove):
            before = await store.pods()
            running.begin()
            await end(kubernetes, store.namespace.name, *(pod["metadata"]["name"] for pod in before))

            async def others(before: list[Object] = before) -> bool:
                """Three other pods serve, or other processes in them: one that is removed serves a moment longer."""
                old = {one["containerID"] for pod in before for one in statuses(pod)}
                pods = await store.pods()
                new = {one.get("containerID", "") for pod in pods for one in statuses(pod)}
                return len(pods) == 3 and all(map(is_ready, pods)) and not old & new

            await until(others, 120, "three others")
            await running.goes_on(timeout=120)
            show(f"all pods ({end.__name__}): seconds without appends, without live events", running.pauses())
            await store.ready()


@pytest.mark.smoke
async def test_sidecars_killed(kubernetes: Kubernetes, store: Servers) -> None:
    space = store.namespace.name
    before = [restarts(pod, "server") for pod in await store.pods()]
    async with traffic(store) as running:
        first, *others = [pod["metadata"]["name"] for pod in await store.pods()]
        await chaos.kill(kubernetes, space, first, container="nats")
        await running.load.more(50)
        await chaos.kill(kubernetes, space, first, *others, container="nats")
        await running.goes_on()
    assert not running.client.errors, "appends need no NATS"
    assert [restarts(pod, "server") for pod in await store.pods()] == before


async def test_a_stream_given_up_after_a_failed_write(kubernetes: Kubernetes, store: Servers) -> None:
    """Its NATS server never takes it up by itself; and a rollout would wait for that."""
    name, space = store.name, store.namespace.name
    ill = (await store.pods())[1]["metadata"]["name"]

    async def made() -> dict[str, str]:
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in await store.pods()}

    async with traffic(store) as running:
        before = await made()
        await chaos.limit_files(kubernetes, space, ill, "nats", 1 << 16)

        async def given_up() -> bool:
            told = str((await kubernetes.condition("orisun", name, space, "JetStreamHealthy")).get("message"))
            return f"{ill}: " in told and "write error" in told

        await until(given_up, 90, "the operator sees it")
        await chaos.limit_files(kubernetes, space, ill, "nats", None)

        async def anew() -> bool:
            return (await made()).get(ill, before[ill]) != before[ill]

        await until(anew, 120, "the pod is made anew")
        await store.ready()
        await kubernetes.wait_for("orisun", name, space, "JetStreamHealthy", timeout=60)
        await running.goes_on()
    assert {pod for pod, uid in (await made()).items() if uid != before[pod]} == {ill}
    assert set(running.client.errors) <= {grpc.StatusCode.UNAVAILABLE}, running.client.errors


async def test_postgres_killed(kubernetes: Kubernetes, store: Servers) -> None:
    before = [restarts(pod, "server") for pod in await store.pods()]
    async with traffic(store) as running:
        running.begin()
        await chaos.kill(kubernetes, store.namespace.name, "db-0")
        await running.goes_on(timeout=120)
        show("PostgreSQL killed: seconds without appends, without live events", running.pauses())
        await store.ready()
    assert [restarts(pod, "server") for pod in await store.pods()] == before


async def test_eviction_heeds_the_budget(kubernetes: Kubernetes, store: Servers) -> None:
    space = store.namespace.name
    names = [pod["metadata"]["name"] for pod in await store.pods()]
    async with traffic(store):
        assert await kubernetes.evict(space, names[0]) == 201
        assert await kubernetes.evict(space, names[1]) == 429, "two of three at once"
        await store.ready()


async def test_cut_off_from_the_others(kubernetes: Kubernetes, store: Servers, shared_database: Database) -> None:
    """The publisher's pod and each other server's hear nothing of each other."""
    if not await chaos.reaches_nodes(kubernetes):
        pytest.skip("needs a node on which packets can be dropped")
    async with traffic(store) as running:
        publisher = pod_of(await shared_database.publisher(BOUNDARY))
        pods = await store.pods()
        alone = next(pod for pod in pods if pod["metadata"]["name"] == publisher)
        running.begin()
        for pod in pods:
            if pod is not alone:
                await chaos.cut(kubernetes, alone, pod)
        await running.load.more(200, timeout=60)
        await running.goes_on()
        await chaos.heal(kubernetes)
        await running.goes_on()
        show("publisher cut off from the servers: seconds without appends, without live events", running.pauses())
        await store.ready()


async def test_cut_off_from_postgres(kubernetes: Kubernetes, store: Servers, shared_database: Database) -> None:
    """The publisher's pod and PostgreSQL hear nothing of each other: another publishes, and the pod serves nobody."""
    if not await chaos.reaches_nodes(kubernetes):
        pytest.skip("needs a node on which packets can be dropped")
    publisher = await shared_database.publisher(BOUNDARY)
    alone = await kubernetes.must("pod", pod_of(publisher), store.namespace.name)
    other = next(pod for pod in await store.pods() if pod["metadata"]["uid"] != alone["metadata"]["uid"])
    # a Service takes no connection away from a pod: whose only one leads there waits as long as the cut lasts
    async with traffic(store, alone["metadata"]["name"], other["metadata"]["name"]) as running:
        running.begin()
        await chaos.cut(kubernetes, alone, await kubernetes.must("pod", "db-0", store.namespace.name))

        async def moved() -> bool:
            return await shared_database.publisher(BOUNDARY) != publisher

        await until(moved, 60, "another publisher")

        async def unready() -> bool:
            return not is_ready(await kubernetes.must("pod", pod_of(publisher), store.namespace.name))

        await until(unready, 60, "the pod leaves the Service")
        await running.goes_on()
        await chaos.heal(kubernetes)
        await store.ready()
        await running.goes_on()
        show("publisher cut off from PostgreSQL: seconds without appends, without live events", running.pauses())
