"""EventIndexes: built, adopted, changed, repaired and dropped in a real PostgreSQL, beside a real API server."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from orisun_operator.api.conditions import get_condition
from orisun_operator.kube import KubeError
from orisun_operator.reconcile.index import duration, readable
from orisun_operator.reconcile.managers import TAKE_OVER, release
from orisun_operator.reconcile.schema import unmanaged
from orisun_server.errors import FailedPrecondition
from orisun_server.storage.boundaries import Boundary
from orisun_server.storage.index_catalog import IndexRecord
from orisun_server.storage.index_progress import percent
from orisun_server.storage.index_sql import IndexDefinition, IndexField, ValueType
from orisun_server.storage.names import BoundaryNames
from tests.harness import eventually
from tests.operator.stores import CLUSTER, Store, condition, held


async def record(store: Store, name: str = "by-user") -> IndexRecord | None:
    async with await store.session() as session:
        return await session.index_catalog.find("orders", name)


async def exists(store: Store, pg_name: str) -> bool:
    async with await store.session() as session:
        qualified = f'"{store.schema}"."{pg_name}"'
        return bool(await session.database.admin.fetchval("SELECT to_regclass($1) IS NOT NULL", qualified))


@pytest.fixture
async def orders(store: Store) -> Store:
    """A store with the boundary "orders" and some events."""
    await store.boundary("orders")
    await store.settled("orders")
    await store.append("orders", 1200)
    return store


async def test_an_index_is_built(orders: Store) -> None:
    made = await orders.index(
        "by-user",
        "orders",
        "user",
        fields=[{"jsonKey": "user"}, {"jsonKey": "event_type"}, {"jsonKey": "n", "valueType": "NUMERIC"}],
        conditions=[{"key": "n", "operator": ">=", "value": "5"}, {"key": "user", "operator": "=", "value": "u1"}],
        combinator="OR",
    )
    assert made["status"]["observedGeneration"] == -1
    status = await orders.settled("by-user", kind="EventIndex")
    assert (status["index"], status["boundary"], status["state"]) == ("by-user", "orders", "READY")
    assert status["progress"]["percent"] == 100
    assert (status["sizeBytes"] > 0, status["size"].endswith("KiB"), status["scans"] >= 0) == (True, True, True)
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }
    found = await record(orders)
    assert found is not None
    assert found.managed_by == f"EventIndex/{orders.namespace}/by-user@{await orders.kube.identity()}"
    # as CreateIndex has it: event_type is another spelling of eventType
    assert [(one.key, one.value_type) for one in found.definition.fields] == [
        ("user", ValueType.TEXT),
        ("eventType", ValueType.TEXT),
        ("n", ValueType.NUMERIC),
    ]
    assert found.definition.combinator == "OR"
    assert (found.pg_name, await exists(orders, found.pg_name)) == (status["pgName"], True)


async def test_an_index_by_rpc_is_adopted(orders: Store) -> None:
    async with await orders.session() as session:
        names = BoundaryNames(orders.schema, "orders")
        await session.index_catalog.add(names, IndexDefinition("by-user", (IndexField("user"),)))
        await session.indexes.look()
        assert (await unmanaged(session)).indexes == ("orders/by-user",)
        before = await record(orders)
        await orders.index("by-user", "orders", "user")
        status = await orders.settled("by-user", kind="EventIndex")
        after = await record(orders)
        assert before is not None
        assert after is not None
        assert (after.pg_name, after.managed_by != "") == (before.pg_name, True)
        assert status["pgName"] == before.pg_name
        assert await orders.events("Adopted")
        assert (await unmanaged(session)).indexes == ()


async def test_an_index_that_is_adopted_while_it_is_dropped_by_rpc_stays(orders: Store) -> None:
    async with await orders.session() as session, session.database.admin.acquire() as adopter:
        names = BoundaryNames(orders.schema, "orders")
        await session.index_catalog.add(names, IndexDefinition("by-user", (IndexField("user"),)))
        await session.indexes.look()
        table = f'"{session.migrator.admin.schema}".orisun_index'
        async with adopter.transaction():
            # the adoption under way, which the drop does not see when it looks who manages the index
            await adopter.execute(f"UPDATE {table} SET managed_by = 'EventIndex/shop/by-user'")
            drop = asyncio.create_task(session.indexes.drop(Boundary.at("orders", orders.schema), "by-user"))

            async def waits() -> bool:
                return bool(
                    await session.database.read.fetchval(
                        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1)",
                        f"UPDATE {table}%DROPPING%",
                    )
                )

            await eventually(waits, 30)
        with pytest.raises(FailedPrecondition, match="EventIndex/shop/by-user"):
            await drop
        found = await record(orders)
        assert found is not None
        assert found.managed_by == "EventIndex/shop/by-user"


async def test_two_resources_of_one_index(orders: Store) -> None:
    await orders.index("by-user", "orders", "user")
    await orders.settled("by-user", kind="EventIndex")
    await orders.index("other", "orders", "n", name="by-user")
    status = await orders.settled("other", "NameTaken", kind="EventIndex")
    assert f"EventIndex/{orders.namespace}/by-user" in condition(status, "Stalled")["message"]
    # the first one goes: its index is the other's then, with the other's shape
    await orders.kube.delete(orders.ref("EventIndex", "by-user"))
    await orders.settled("other", kind="EventIndex")
    found = await record(orders)
    assert found is not None
    assert [field.key for field in found.definition.fields] == ["n"]


async def test_a_changed_shape_is_built_beside_the_old_one_which_serves_meanwhile(orders: Store) -> None:
    await orders.index("by-user", "orders", "user")
    await orders.settled("by-user", kind="EventIndex")
    before = await record(orders)
    assert before is not None
    async with held(orders, "orders"):
        await orders.patch("EventIndex", "by-user", {"fields": [{"jsonKey": "n", "valueType": "NUMERIC"}]})
        status = await orders.settled("by-user", "Rebuilding", "EventIndex")
        assert status["observedGeneration"] == 2
        assert "the old one serves meanwhile" in condition(status, "Ready")["message"]
        now = await record(orders)
        assert now is not None
        assert (now.pg_name, now.state) == (before.pg_name, "READY")
        assert await exists(orders, before.pg_name)
        # another change of mind, and back: what is not wanted any more is dropped, built or not
        await orders.patch("EventIndex", "by-user", {"fields": [{"jsonKey": "number"}]})
        await orders.reconcile("by-user", "EventIndex")
    status = await orders.settled("by-user", kind="EventIndex")
    after = await record(orders)
    assert after is not None
    assert [field.key for field in after.definition.fields] == ["number"]
    assert status["pgName"] == after.pg_name != before.pg_name
    assert await orders.events("Swapped")

    async def only_one() -> bool:
        async with await orders.session() as session:
            found = await session.index_catalog.managed("orders")
        return len(found) == 1 and not await exists(orders, before.pg_name)

    await eventually(only_one, 30)


async def test_an_index_dropped_by_hand_is_built_again(orders: Store) -> None:
    await orders.index("by-user", "orders", "user")
    before = await orders.settled("by-user", kind="EventIndex")
    async with await orders.session() as session:
        await session.database.admin.execute(f'DROP INDEX "{orders.schema}"."{before["pgName"]}"')

    async def repaired() -> bool:
        status = await orders.settled("by-user", kind="EventIndex")
        return bool(status["oid"] != before["oid"])

    await eventually(repaired, 30)
    assert await exists(orders, before["pgName"])
    assert any("built again" in text for text in await orders.events("DriftRepaired"))


async def test_a_row_of_the_catalog_deleted_by_hand_comes_back(orders: Store) -> None:
    await orders.index("by-user", "orders", "user")
    await orders.settled("by-user", kind="EventIndex")
    async with await orders.session() as session:
        found = await session.index_catalog.find("orders", "by-user")
        assert found is not None
        assert await session.index_catalog.retire(found)
    await orders.settled("by-user", kind="EventIndex")
    assert await orders.events("DriftRepaired")


async def test_a_build_that_waits_for_a_transaction_names_it(orders: Store) -> None:
    async with held(orders, "orders") as pid:
        await orders.index("by-user", "orders", "user")

        async def named() -> str:
            await orders.reconcile("by-user", "EventIndex")
            status = await orders.status("EventIndex", "by-user")
            assert condition(status, "Ready")["status"] == "False"
            found = get_condition(status, "BlockedByTransaction")
            return str(found["message"]) if found else ""

        message = await eventually(named, 40, 0.2)
        assert f"process {pid}" in message
        assert "a forgotten shell" in message
        assert " s in process" in message
        status = await orders.status("EventIndex", "by-user")
        assert (status["state"], status["progress"]["phase"].startswith("waiting for")) == ("BUILDING", True)
        assert condition(status, "Reconciling")["status"] == "True"
    status = await orders.settled("by-user", kind="EventIndex")
    assert get_condition(status, "BlockedByTransaction") is None
    (told,) = await orders.events("OpenTransaction")
    assert told == f"BlockedByTransaction is True: {message}"
    assert await orders.events("BlockedByTransactionOver")


async def test_a_build_outlives_its_operator_and_is_adopted_by_the_next(orders: Store) -> None:
    async with held(orders, "orders"):
        await orders.index("by-user", "orders", "user")

        async def builds() -> list[asyncpg.Record]:
            async with await orders.session() as session:
                rows: list[asyncpg.Record] = await session.database.admin.fetch(
                    "SELECT pid, backend_start FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
                    " AND state = 'active' AND query LIKE $1",
                    f"%{orders.schema}%",
                )
                return rows

        await orders.reconcile("by-user", "EventIndex")
        before = await eventually(builds, 30)
        # as its death does: the connection ends, and nobody tells PostgreSQL to stop
        await orders.close()
        orders.context = orders.operator()
        await orders.reconcile("by-user", "EventIndex")
        await asyncio.sleep(0)
        assert await builds() == before
    await orders.settled("by-user", kind="EventIndex")


async def test_a_deleted_index_is_dropped_and_one_of_a_deleted_boundary_stays(orders: Store) -> None:
    await orders.index("by-user", "orders", "user")
    await orders.index("by-n", "orders", "n")
    for name in ("by-user", "by-n"):
        await orders.settled(name, kind="EventIndex")
    found = await record(orders)
    assert found is not None
    await orders.kube.delete(orders.ref("EventIndex", "by-user"))
    await orders.reconcile("by-user", "EventIndex")
    assert await record(orders) is None
    pg_name = found.pg_name

    async def dropped() -> bool:
        return not await exists(orders, pg_name)

    await eventually(dropped, 30)
    await orders.kube.delete(orders.ref("Boundary", "orders"))
    await orders.kube.delete(orders.ref("EventIndex", "by-n"))
    await orders.reconcile("by-n", "EventIndex")
    kept = await record(orders, "by-n")
    assert kept is not None
    assert (kept.managed_by, kept.state) == ("", "READY")


async def test_wrong_references_and_shapes_say_what_to_do_and_heal(store: Store) -> None:
    await store.index("by-user", "orders", "user")
    status = await store.settled("by-user", "BoundaryNotFound", "EventIndex")
    assert condition(status, "Stalled")["status"] == "True"
    await store.boundary("orders")
    status = await store.settled("by-user", "BoundaryNotReady", "EventIndex")
    assert condition(status, "Reconciling")["status"] == "True"
    await store.settled("orders")
    await store.settled("by-user", kind="EventIndex")
    await store.index("twice", "orders", "eventType", "event_type")
    status = await store.settled("twice", "InvalidSpec", "EventIndex")
    assert 'json_key "eventType" is given twice' in condition(status, "Ready")["message"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"fields": []}, "spec.fields"),
        ({"fields": [{"jsonKey": "a"}, {"jsonKey": "a"}]}, "each jsonKey may be given once"),
        ({"fields": [{"jsonKey": "a", "valueType": "FLOAT"}]}, 'supported values: "TEXT", "NUMERIC"'),
        ({"conditions": [{"key": "a", "operator": "<>", "value": "1"}]}, 'supported values: "=", ">"'),
        ({"name": "a b"}, "an index's name has letters, digits, underscores, dots and dashes only"),
        ({"combinator": "XOR"}, 'supported values: "AND", "OR"'),
    ],
)
async def test_hostile_specs_are_refused_in_words(store: Store, spec: dict[str, object], message: str) -> None:
    with pytest.raises(KubeError) as caught:
        await store.index("by-user", "orders", "user", **spec)
    assert message in str(caught.value)


async def test_what_is_immutable_says_so(store: Store) -> None:
    await store.index("by-user", "orders", "user")
    for change, message in (
        ({"name": "other"}, "name is immutable"),
        ({"boundaryRef": {"name": "other"}}, "boundaryRef is immutable"),
    ):
        with pytest.raises(KubeError, match=message):
            await store.patch("EventIndex", "by-user", change)
    await store.patch("EventIndex", "by-user", {"name": "by-user"})


def test_percent_never_goes_back() -> None:
    phases = [
        "initializing",
        "waiting for writers before build",
        "building index: scanning table",
        "building index: sorting live tuples",
        "building index: loading tuples in tree",
        "waiting for writers before validation",
        "index validation: scanning index",
        "index validation: sorting tuples",
        "index validation: scanning table",
        "waiting for old snapshots",
    ]
    course = [percent(phase, done, 10) for phase in phases for done in (0, 5, 10)]
    assert course == sorted(course)
    assert (course[0], course[-1] < 100, percent("something new", 1, 2)) == (0, True, 0)


def test_sizes_and_times_for_people() -> None:
    assert [readable(size) for size in (0, 900, 8192, 16 * 1024, 5 << 30)] == [
        "0 B",
        "900 B",
        "8.0 KiB",
        "16 KiB",
        "5.0 GiB",
    ]
    assert [duration(age) for age in (3.2, 27, 65, 7300)] == ["3 s", "20 s", "1 min", "2 h"]


async def test_an_index_of_another_kubernetes_cluster_is_left_alone(orders: Store) -> None:
    await orders.index("by-user", "orders", "user")
    await orders.settled("by-user", kind="EventIndex")
    theirs = f"EventIndex/{orders.namespace}/by-user@0badcafe"
    async with await orders.session() as session:
        found = await session.index_catalog.find("orders", "by-user")
        assert found is not None
        assert await session.index_catalog.manage(found, theirs)
    await orders.patch("EventIndex", "by-user", {"fields": [{"jsonKey": "number"}]})
    status = await orders.settled("by-user", "NameTaken", "EventIndex")
    assert "another Kubernetes cluster" in condition(status, "Stalled")["message"]
    # nor is it taken for one whose resource is gone
    orders.late = 0.0
    for late in (0.0, 600.0):
        orders.late = late
        async with await orders.session() as session:
            await release(orders.context, session, orders.namespace)
            found = await session.index_catalog.find("orders", "by-user")
    assert found is not None
    assert (found.managed_by, [field.key for field in found.definition.fields]) == (theirs, ["user"])
    patch = {"metadata": {"annotations": {TAKE_OVER: "0badcafe"}}}
    await orders.kube.patch(orders.ref("OrisunCluster", CLUSTER), patch)
    await orders.settled("by-user", kind="EventIndex")
    async with await orders.session() as session:
        found = await session.index_catalog.find("orders", "by-user")
    assert found is not None
    assert [field.key for field in found.definition.fields] == ["number"]
