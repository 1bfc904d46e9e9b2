"""The operator itself: it repairs, it rests, it is replaced, and clusters do not need it to serve."""

from __future__ import annotations

import asyncio
import datetime
import json
import secrets
from collections.abc import AsyncIterator

import grpc
import pytest

from e2e import chaos
from e2e.access import Access
from e2e.conftest import tell
from e2e.kubernetes import Kubernetes, Object, until
from e2e.release import Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster, index, show
from orisun_api import admin_pb2, admin_pb2_grpc
from orisun_api import eventstore_pb2 as pb
from tests.faults.clients import Client
from tests.harness import basic

#: Who records the operator's Events.
_OURS = "orisun.io/orisun-operator"
READY = ("orisun/store", "bnd/orders", "evidx/orders-account")


@pytest.fixture(scope="module")
async def one(kubernetes: Kubernetes, shared_namespace: Namespace, access: Access) -> Servers:
    """One server with its own PostgreSQL, a boundary and an index, for all tests here."""
    await shared_namespace.apply(
        cluster(EMBEDDED, replicas=1), boundary("orders"), index("account", "orders", "account")
    )
    await kubernetes.ready(shared_namespace.name, *READY, timeout=240)
    return Servers(shared_namespace, access, "store")


@pytest.fixture
async def store(
    request: pytest.FixtureRequest, kubernetes: Kubernetes, operator: Release, one: Servers
) -> AsyncIterator[Servers]:
    """The one, Ready."""
    await kubernetes.ready(one.namespace.name, *READY)
    yield one
    await tell(request, one.namespace, operator)


async def _versions(kubernetes: Kubernetes, namespace: str) -> dict[str, str]:
    """resourceVersion of everything that the operator writes in a namespace, its Events included."""
    kinds = ("orisun", "bnd", "evidx", "sts", "svc", "cm", "secret", "sa", "pdb", "netpol", "pvc", "event")
    found = await asyncio.gather(*(kubernetes.list(kind, namespace) for kind in kinds))
    objects: list[Object] = [one for many in found for one in many]
    # those of Kubernetes go on
    objects = [one for one in objects if one.get("reportingController", _OURS) == _OURS]
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["resourceVersion"] for one in objects}


async def _youngest_figures(kubernetes: Kubernetes, namespace: str) -> float:
    """Seconds since moving figures were written last; once a minute they may be."""
    found = [one["status"] for kind in ("bnd", "evidx") for one in await kubernetes.list(kind, namespace)]
    written = [datetime.datetime.fromisoformat(one["figuresTime"]) for one in found if "figuresTime" in one]
    return (datetime.datetime.now(datetime.UTC) - max(written)).total_seconds()


async def test_rests_when_nothing_changes(
    kubernetes: Kubernetes, store: Servers, operator: Release, access: Access
) -> None:
    """More than a minute of timers writes nothing at all, to our own kinds neither; what the Lease needs is no part of
    it. In one go, so that what is written now and then is found."""
    space = store.namespace.name
    await operator.install("--set", "timerSeconds=1")
    try:

        async def settled() -> bool:
            age = await _youngest_figures(kubernetes, space)
            # a new cluster's are written once more, when their minute is over
            assert age > 63, f"figures were written {age:.0f} s ago"
            return True

        await until(settled, 150, "figures that nothing changes")
        before = await _versions(kubernetes, space)
        await operator.looks(access, 62, timeout=180)
        after = await _versions(kubernetes, space)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert not changed, f"written without need: {changed}"
        kinds = {name.partition("/")[0] for name in before}
        assert {"OrisunCluster", "StatefulSet", "NetworkPolicy", "Event"} <= kinds, kinds
    finally:
        await operator.install()


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
    await kubernetes.delete("sa", "store", namespace=space)

    async def there_again() -> bool:
        children = ("svc/store-headless", "cm/store-nats", "sa/store")
        return all([await kubernetes.get(*child.split("/"), space) for child in children])

    await until(there_again, 60, "Service, ConfigMap and ServiceAccount")
    await store.ready()
    events = await kubernetes.events(space)
    assert any("store" in event["note"] and event["regarding"]["kind"] == "OrisunCluster" for event in events), events


async def test_drift_of_what_runs_is_repaired(kubernetes: Kubernetes, store: Servers) -> None:
    """A StatefulSet deleted by hand is made anew around its pods, an index dropped in PostgreSQL is built again."""
    space = store.namespace.name
    pods = {pod["metadata"]["uid"] for pod in await store.pods()}
    before = (await kubernetes.must("sts", "store", space))["metadata"]["uid"]
    await kubernetes.kubectl("delete", "statefulset", "store", "-n", space, "--cascade=orphan")

    async def made_anew() -> bool:
        return (await kubernetes.must("sts", "store", space))["metadata"]["uid"] != before

    await until(made_anew, 60, "the StatefulSet again")
    await store.ready()
    assert {pod["metadata"]["uid"] for pod in await store.pods()} == pods
    status = (await kubernetes.must("evidx", "orders-account", space))["status"]
    await store.execute(f"DROP INDEX orders.{status['pgName']}")

    async def built_again() -> bool:
        now = await kubernetes.must("evidx", "orders-account", space)
        return bool(now["status"].get("oid") not in (None, status["oid"]))

    await until(built_again, 90, "the index again")
    await kubernetes.ready(space, *READY)
    events = [e for e in await kubernetes.events(space, "DriftRepaired") if e["regarding"]["kind"] == "EventIndex"]
    assert events, "nobody was told"


async def test_data_path_does_not_need_it(kubernetes: Kubernetes, store: Servers, operator: Release) -> None:
    await operator.scale(0)
    try:
        async with store.client("orders") as client:
            await client.save({"account": "a"})
            pod = (await store.pods())[0]
            await chaos.remove(kubernetes, store.namespace.name, pod["metadata"]["name"])

            async def back() -> bool:
                pods = await store.pods()
                return bool(pods) and pods[0]["metadata"]["uid"] != pod["metadata"]["uid"]

            await until(back, 60, "the pod again")
            await client.save({"account": "b"})
            assert [event.tags["account"] for event in (await client.log())[-2:]] == ["a", "b"]
    finally:
        await operator.scale(2)
    await store.ready()


async def test_what_clients_make_is_left_alone(kubernetes: Kubernetes, store: Servers) -> None:
    """A boundary and an index by rpc work and are listed; what a resource manages is changed there alone."""
    pods = {pod["metadata"]["uid"] for pod in await store.pods()}
    async with store.client("orders") as client:
        channel = client.endpoints[0].channel
        admin, events = admin_pb2_grpc.AdminStub(channel), client.endpoints[0].events
        placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace="by_rpc")
        request = admin_pb2.CreateBoundaryRequest(name="by_rpc", placement=placement)
        await admin.CreateBoundary(request, metadata=client.metadata)  # type: ignore[misc] # synchronous stubs
        mine = pb.CreateIndexRequest(boundary="by_rpc", name="mine", fields=[pb.IndexField(json_key="account")])
        await events.CreateIndex(mine, metadata=client.metadata)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await events.DropIndex(pb.DropIndexRequest(boundary="orders", name="account"), metadata=client.metadata)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"EventIndex/{store.namespace.name}/orders-account" in str(refused.value.details())
    async with store.client("by_rpc") as client:
        await client.save({"account": "a"})

    async def listed() -> bool:
        told = (await store.cluster())["status"].get("unmanaged") or {}
        assert (told.get("boundaries"), told.get("indexes")) == (["by_rpc"], ["by_rpc/mine"]), told
        return True

    await until(listed, 60, "they are listed as unmanaged")
    await store.namespace.apply(boundary("payments"))
    await kubernetes.ready(store.namespace.name, "bnd/payments")
    async with store.client("payments") as client:
        await client.save({"n": "1"})
    assert {pod["metadata"]["uid"] for pod in await store.pods()} == pods, "a new boundary needs no restart"


async def test_a_plan_waits_for_its_approval(kubernetes: Kubernetes, store: Servers) -> None:
    """Its SQL and hash are read from the status and approved as docs/boundaries.md says; till then nothing is made."""
    space = store.namespace.name

    async def told(path: str) -> str:
        return await kubernetes.kubectl("get", "bnd", "planned", "-n", space, "-o", f"jsonpath={{.status.{path}}}")

    async def approve(plan: str) -> None:
        await kubernetes.patch("bnd", "planned", {"spec": {"migration": {"approvedPlan": plan}}}, space)

    await store.namespace.apply(boundary("planned", migration={"mode": "Plan"}))
    await kubernetes.wait_for("bnd", "planned", space, "Stalled", reason="PlanPending")
    assert 'CREATE TABLE "planned".' in await told("pendingPlan.sql"), await told("pendingPlan.sql")
    plan = await told("pendingPlan.hash")
    await approve("of-another")
    await kubernetes.wait_for("bnd", "planned", space, "Stalled", reason="PlanPending")
    condition = await kubernetes.condition("bnd", "planned", space)
    assert plan in condition["message"], condition
    await store.execute("CREATE SCHEMA planned; DROP SCHEMA planned")  # fails where it was made
    await approve(plan)
    await kubernetes.ready(space, "bnd/planned", "orisun/store")
    assert await told("pendingPlan") == ""
    async with store.client("planned") as client:
        await client.save({"n": "1"})
        assert len(await client.log()) == 1


async def test_a_changed_secret_changes_the_password(kubernetes: Kubernetes, store: Servers) -> None:
    space, new = store.namespace.name, secrets.token_hex(12)
    old = await kubernetes.password(space, "store")

    async def answer(password: str) -> str:
        """What a client with this password hears."""
        async with (
            store.access.service(space, "store") as address,
            Client("orders", address, metadata=basic("admin", password)) as client,
        ):
            try:
                await client.page(1)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

    assert [await answer(old), await answer(new)] == ["OK", "UNAUTHENTICATED"]
    await kubernetes.patch("secret", "store-admin", {"stringData": {"password": new}}, space)

    async def changed() -> bool:
        heard = [await answer(old), await answer(new)]
        assert heard == ["UNAUTHENTICATED", "OK"], heard
        return True

    await until(changed, 120, "the new password, and no other")
    await store.ready()


async def test_lost_rights_are_told_and_heal(kubernetes: Kubernetes, store: Servers, operator: Release) -> None:
    """Without the right to Services the status says so; without any, the log does, also of an operator that starts
    then. Both heal once the rights are back."""
    space = store.namespace.name
    where = ("role", "-n", space) if operator.watched else ("clusterrole",)
    name = f"{operator.namespace}-{operator.name}"
    role = json.loads(await kubernetes.kubectl("get", *where, name, "-o", "json"))
    less = [
        {**rule, "resources": [one for one in rule["resources"] if one != "services"] or ["none"]}
        for rule in role["rules"]
    ]

    async def grant(rules: list[Object]) -> None:
        patch = ("patch", *where, name, "--type", "merge", "-p", json.dumps({"rules": rules}))
        await kubernetes.kubectl(*patch)

    async def service() -> bool:
        return await kubernetes.get("svc", "store", space) is not None

    async def logged() -> bool:
        return 'cannot list resource \\"orisunclusters\\"' in await operator.logs(-1)

    try:
        await grant(less)
        await kubernetes.delete("svc", "store", namespace=space)
        await kubernetes.wait_for("orisun", "store", space, "Stalled", reason="Forbidden", timeout=90)
        told = (await kubernetes.condition("orisun", "store", space, "Stalled"))["message"]
        show("a lost right is told", told)
        assert "services" in told
        await grant(role["rules"])
        await until(service, 90, "the Service again")
        await store.ready()
        await grant([])
        await chaos.kill(kubernetes, operator.namespace, *[pod["metadata"]["name"] for pod in await operator.pods()])
        await until(logged, 90, "the log tells of it")
        await store.namespace.apply(boundary("late"))
        await grant(role["rules"])
        await kubernetes.ready(space, "bnd/late", "orisun/store", timeout=180)
    finally:
        await grant(role["rules"])
        await operator.scale(2)


async def test_metrics(operator: Release, store: Servers, access: Access) -> None:
    figures = await operator.figures(access)
    show("metrics", sorted({name.partition("{")[0] for name in figures}))
    for kind in ("orisunclusters", "boundaries", "eventindexes"):
        assert figures[f"orisun_operator_reconciles_total{{{kind}}}"] > 0
        assert figures[f"orisun_operator_reconcile_duration_seconds_sum{{{kind}}}"] > 0
    assert figures["orisun_operator_leader"] == 1
    assert sum(value for name, value in figures.items() if "api_requests_total" in name) > 0
