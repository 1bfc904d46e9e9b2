"""A cluster of three under a continuous writer and a subscriber, while parts of it end.

The checker (tests/faults/checker.py) holds at the end: no acknowledged event lost, none skipped, one order. A client
that repeats what got no answer (UNAVAILABLE) sees no failure: ``Client.call`` raises on every other code.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from e2e.access import Access
from e2e.conftest import tell
from e2e.kubernetes import Kubernetes, is_ready, restarts, until
from e2e.release import Release
from e2e.stores import Database, Namespace, Servers, boundary, cluster, pod_of, show
from tests.faults.checker import Stored
from tests.faults.clients import Client, Follower, Load

BOUNDARY = "orders"


@dataclass
class Traffic:
    """Writers and a subscriber on one boundary; ``pause`` is the longest time without an acknowledged event."""

    client: Client
    load: Load
    follower: Follower

    async def gap(self, seconds: float) -> float:
        """Seconds from now until events are acknowledged again and have stayed so, at most ``seconds``."""
        began = time.monotonic()
        await self.load.more(20, timeout=seconds)
        return time.monotonic() - began


class Pauses:
    """The longest time between two events that a subscriber got."""

    def __init__(self) -> None:
        self.last, self.longest = time.monotonic(), 0.0

    def __call__(self, _: Stored) -> None:
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now

    def begin(self) -> None:
        self.last, self.longest = time.monotonic(), 0.0


@contextlib.asynccontextmanager
async def traffic(servers: Servers, pauses: Pauses | None = None) -> AsyncIterator[Traffic]:
    """At its end everything is checked: the log against what was acknowledged, the subscriber against the log."""
    async with servers.client(BOUNDARY) as client:
        head = await client.page(1, desc=True)
        follower = Follower(client, after=head[0].position if head else None, on_event=pauses)
        async with follower:
            async with client.load(4, pause=0.02, timeout=15) as load:
                await load.more(50)
                yield Traffic(client, load, follower)
                await load.more(50)
            log = await client.log()
            log = [event for event in log if not head or event.position > head[0].position]
            client.history.check(log)
            await follower.has(len(log), timeout=60)
            seen = Counter(event.event_id for event in follower.events)
            assert [event.position for event in {e.event_id: e for e in follower.events}.values()] == [
                event.position for event in log
            ], "skipped, or out of order"
            show(
                "events, delivered twice, errors",
                (len(log), seen.total() - len(seen), {code.name: count for code, count in client.errors.items()}),
            )


@pytest.fixture(scope="module")
async def database(shared_namespace: Namespace, images: tuple[str, str]) -> Database:
    database = Database(shared_namespace, images[0])
    await database.start()
    return database


@pytest.fixture(scope="module")
async def three(kubernetes: Kubernetes, shared_namespace: Namespace, database: Database, access: Access) -> Servers:
    """Three servers with a boundary, for all tests here."""
    began = time.monotonic()
    # a bad image has less patience here than elsewhere
    strategy = {"podTimeoutSeconds": 40}
    await shared_namespace.apply(cluster(database.spec, updateStrategy=strategy), boundary(BOUNDARY))
    await kubernetes.ready(shared_namespace.name, "orisun/store", f"bnd/{BOUNDARY}", timeout=300)
    show("three servers, apply to Ready, seconds", round(time.monotonic() - began, 1))
    return Servers(shared_namespace, access, "store")


@pytest.fixture
async def store(request: pytest.FixtureRequest, operator: Release, three: Servers) -> AsyncIterator[Servers]:
    """The three, Ready."""
    await three.ready()
    yield three
    await tell(request, three.namespace, operator)


@pytest.mark.smoke
async def test_failover(kubernetes: Kubernetes, store: Servers, database: Database) -> None:
    pauses = Pauses()
    async with traffic(store, pauses) as running:
        for _ in range(2):
            publisher = await database.publisher(BOUNDARY)
            pauses.begin()
            await kubernetes.kill(store.namespace.name, pod_of(publisher))
            appends = await running.gap(30)

            async def moved(old: str = publisher) -> bool:
                return await database.publisher(BOUNDARY) != old

            await until(moved, 30, "another publisher")
            count = len(running.follower.events)
            await running.follower.has(count + 50, timeout=30)
            seconds = (round(appends, 1), round(pauses.longest, 1))
            show("failover: seconds without appends, without live events", seconds)
            assert pauses.longest < 15
            await store.ready()


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


@pytest.mark.smoke
async def test_sidecars_killed(kubernetes: Kubernetes, store: Servers) -> None:
    space = store.namespace.name
    before = [restarts(pod, "server") for pod in await store.pods()]
    async with traffic(store) as running:
        first, *others = [pod["metadata"]["name"] for pod in await store.pods()]
        await kubernetes.crash(space, first, "nats")
        await running.load.more(50)
        await asyncio.gather(*(kubernetes.crash(space, name, "nats") for name in (first, *others)))
        await running.load.more(50)
        count = len(running.follower.events)
        await running.follower.has(count + 50, timeout=60)
    assert not running.client.errors, "appends need no NATS"
    assert [restarts(pod, "server") for pod in await store.pods()] == before


async def test_all_pods_killed_at_once(kubernetes: Kubernetes, store: Servers) -> None:
    async with traffic(store) as running:
        began = time.monotonic()
        await kubernetes.kill(store.namespace.name, *(pod["metadata"]["name"] for pod in await store.pods()))
        await running.load.more(50, timeout=120)
        show("all pods killed: seconds until 50 more events", round(time.monotonic() - began, 1))
        await store.ready()


async def test_postgres_restarts(kubernetes: Kubernetes, store: Servers) -> None:
    before = [restarts(pod, "server") for pod in await store.pods()]
    async with traffic(store) as running:
        began = time.monotonic()
        await kubernetes.kill(store.namespace.name, "db-0")
        await running.load.more(50, timeout=120)
        show("PostgreSQL killed: seconds until 50 more events", round(time.monotonic() - began, 1))
        await store.ready()
    assert [restarts(pod, "server") for pod in await store.pods()] == before


async def test_eviction_heeds_the_budget(kubernetes: Kubernetes, store: Servers) -> None:
    space = store.namespace.name
    names = [pod["metadata"]["name"] for pod in await store.pods()]
    async with traffic(store):
        assert await kubernetes.evict(space, names[0]) == 201
        assert await kubernetes.evict(space, names[1]) == 429, "two of three at once"
        await store.ready()


async def test_cut_between_two_pods(kubernetes: Kubernetes, store: Servers, database: Database) -> None:
    if kubernetes.scripts is None:
        pytest.skip("needs cluster.sh, which can cut two pods off from each other")
    async with traffic(store) as running:
        publisher = pod_of(await database.publisher(BOUNDARY))
        pods = await store.pods()
        alone = next(pod for pod in pods if pod["metadata"]["name"] == publisher)
        for pod in pods:
            if pod is not alone:
                await kubernetes.cut(alone, pod)
        await running.load.more(200, timeout=60)
        count = len(running.follower.events)
        await running.follower.has(count + 50, timeout=60)
        await kubernetes.heal()
        await running.load.more(50)
        await store.ready()
