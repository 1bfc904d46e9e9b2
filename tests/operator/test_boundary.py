"""Boundaries: resources on a real API server, their tables in a real PostgreSQL."""

from __future__ import annotations

import pytest

from orisun_operator.kube import Kube, KubeError
from orisun_operator.reconcile import boundary as reconciler
from orisun_operator.reconcile.managers import TAKE_OVER, release
from orisun_operator.reconcile.schema import survey, unmanaged
from orisun_server.settings import Settings
from orisun_server.storage.boundaries import Boundary, BoundaryStatus
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.migrations import Sources
from tests.operator.stores import CLUSTER, Store, condition, later_release, together


async def test_a_boundary_becomes_a_row_of_the_catalog_with_tables(store: Store) -> None:
    made = await store.boundary("orders", description="of the shop")
    assert made["status"]["observedGeneration"] == -1
    status = await store.settled("orders")
    assert status["observedGeneration"] == 1
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "SchemaReady": "True",
        "Drifted": "False",
    }
    assert (status["boundary"], status["schema"], status["schemaVersion"] >= 1) == ("orders", store.schema, True)
    assert (status["eventCount"], status["lag"]) == (0, 0)
    assert status["lastPosition"] == {"commitPosition": -1, "preparePosition": -1}
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
    assert record is not None
    assert (record.status.value, record.description) == ("ACTIVE", "of the shop")
    assert record.managed_by == f"Boundary/{store.namespace}/orders@{await store.kube.identity()}"
    assert condition(status, "Ready")["message"] == 'boundary "orders" takes events'
    assert await store.events("Active") == ['boundary "orders" takes events']


async def test_nothing_is_written_when_nothing_has_changed(store: Store) -> None:
    await store.boundary("orders")
    await store.index("by-user", "orders", "user")
    await store.settled("orders")
    await store.settled("by-user", kind="EventIndex")
    before = [(await store.get(*one))["metadata"]["resourceVersion"] for one in _BOTH]
    writes = store.kube.writes
    for _ in range(10):
        store.late += 120
        await store.reconcile("orders")
        await store.reconcile("by-user", "EventIndex")
    assert [(await store.get(*one))["metadata"]["resourceVersion"] for one in _BOTH] == before
    assert store.kube.writes == writes


_BOTH = (("Boundary", "orders"), ("EventIndex", "by-user"))


async def test_figures_are_written_at_most_once_a_minute(store: Store) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    await store.append("orders", 3)
    outcome = await store.reconcile("orders")
    assert (await store.status("Boundary", "orders"))["eventCount"] == 0
    assert outcome.requeue is not None
    assert 1 <= outcome.requeue <= 60
    store.late = 61
    await store.reconcile("orders")
    status = await store.status("Boundary", "orders")
    # no server runs, so nothing is published
    assert (status["eventCount"], status["lag"], status["publisherPod"]) == (3, 3, "")
    assert status["lastPosition"] == {"commitPosition": 3, "preparePosition": 2}
    assert status["lastPublishedPosition"] == {"commitPosition": -1, "preparePosition": -1}


async def test_the_name_is_taken_and_free_again(store: Store) -> None:
    await store.boundary("orders")
    await store.boundary("other", name="orders", deletionPolicy="Delete")
    await store.settled("orders")
    status = await store.settled("other", "NameTaken")
    assert condition(status, "Stalled")["status"] == "True"
    assert f"Boundary/{store.namespace}/orders" in condition(status, "Ready")["message"]
    # its deletion policy is not about the other's events
    await store.append("orders", 1)
    await store.kube.delete(store.ref("Boundary", "other"))
    await store.gone("other")
    store.late = 61
    assert (await store.settled("orders"))["eventCount"] == 1


async def test_a_boundary_by_rpc_is_adopted_and_the_adopted_one_is_released(store: Store) -> None:
    async with await store.session() as session:
        await session.boundaries.register("orders", "by rpc", store.schema, "")
        record = await session.boundaries.find("orders")
        assert record is not None
        await session.boundaries.provision(record)
        assert (await unmanaged(session)).boundaries == ("orders",)
        await store.append("orders", 2)
        await store.boundary("orders", description="by a resource")
        status = await store.settled("orders")
        assert status["eventCount"] == 2
        record = await session.boundaries.find("orders")
        assert record is not None
        assert record.description == "by a resource"
        assert record.managed_by == f"Boundary/{store.namespace}/orders@{await store.kube.identity()}"
        assert (await unmanaged(session)).boundaries == ()
        assert await store.events("Adopted")

        # Retain: no finalizer, and the events stay
        assert "finalizers" not in (await store.get("Boundary", "orders"))["metadata"]
        await store.kube.delete(store.ref("Boundary", "orders"))
        await store.reconcile("orders")
        record = await session.boundaries.find("orders")
        assert record is not None
        assert (record.status, record.managed_by) == (BoundaryStatus.ACTIVE, "")
        assert (await unmanaged(session)).boundaries == ("orders",)


async def test_what_was_deleted_while_nobody_looked_is_released_by_the_cluster(store: Store) -> None:
    await store.boundary("orders")
    await store.index("by-user", "orders", "user")
    await store.settled("orders")
    await store.settled("by-user", kind="EventIndex")
    await store.kube.delete(store.ref("EventIndex", "by-user"))
    cluster = await store.get("OrisunCluster", CLUSTER)
    async with await store.session() as session:
        # it may be on its way back
        for late, there in ((0, True), (60, True), (121, False)):
            store.late = late
            found = await survey(store.context, cluster)
            assert (found.ready, found.unmanaged.boundaries, found.unmanaged.indexes) == (True, (), ())
            assert (await session.index_catalog.find("orders", "by-user") is not None) == there
    await store.kube.delete(store.ref("Boundary", "orders"))
    found = await survey(store.context, await store.get("OrisunCluster", CLUSTER))
    assert found.unmanaged.boundaries == ("orders",)


async def test_in_another_schema_than_the_catalog_says(store: Store) -> None:
    async with await store.session() as session:
        record = await session.boundaries.register("orders", "", "elsewhere_" + store.schema, "")
        assert record is not None
        await session.boundaries.provision(record)
    await store.boundary("orders")
    status = await store.settled("orders", "SchemaConflict")
    assert "elsewhere_" + store.schema in condition(status, "Ready")["message"]


async def test_a_row_that_was_deleted_by_hand_comes_back(store: Store) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    await store.append("orders", 1)
    async with await store.session() as session:
        await session.database.admin.execute(
            f'DELETE FROM "{session.migrator.admin.schema}".orisun_boundary WHERE name = $1', "orders"
        )
    store.late = 61
    assert (await store.settled("orders"))["eventCount"] == 1
    assert await store.events("DriftRepaired")


async def test_tables_that_are_gone_are_drift_that_a_person_has_to_mend(store: Store) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    async with await store.session() as session:
        names = Boundary.at("orders", store.schema).names
        await session.database.admin.execute(f"DROP TABLE {names.q_events}")
    status = await store.settled("orders", "TablesMissing")
    assert condition(status, "Drifted")["status"] == "True"
    assert condition(status, "SchemaReady")["status"] == "False"
    assert "restore" in condition(status, "Ready")["message"]


@pytest.mark.parametrize("part", ["published", "append"])
async def test_a_part_that_somebody_drops_is_drift(store: Store, part: str) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    names = Boundary.at("orders", store.schema).names
    name = getattr(names, part)
    async with await store.session() as session:
        admin = session.database.admin
        if part == "append":
            functions = await admin.fetch(
                "SELECT p.oid::regprocedure::text AS name, pg_get_functiondef(p.oid) AS text FROM pg_proc AS p"
                " JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = $1 AND p.proname = $2",
                store.schema,
                name,
            )
            await admin.execute(";".join(f"DROP FUNCTION {one['name']}" for one in functions))
            text = ";".join(one["text"] for one in functions)
        else:
            await admin.execute(f'ALTER TABLE "{store.schema}"."{name}" RENAME TO away')
            text = f'ALTER TABLE "{store.schema}".away RENAME TO "{name}"'
        status = await store.settled("orders", "TablesMissing")
        assert (condition(status, "Drifted")["status"], condition(status, "SchemaReady")["status"]) == ("True", "False")
        assert f"somebody has dropped {name}: restore" in condition(status, "Stalled")["message"]
        await admin.execute(text)
    status = await store.settled("orders")
    assert (condition(status, "Drifted")["status"], condition(status, "SchemaReady")["status"]) == ("False", "True")


async def test_an_altered_ledger_is_drift(store: Store) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    async with await store.session() as session:
        ledger = f'"{session.migrator.admin.schema}".orisun_migration'
        changed = f"UPDATE {ledger} SET checksum = $1 || substr(checksum, 2) WHERE scope = 'boundary:orders'"
        await session.database.admin.execute(changed, "-")
        status = await store.settled("orders", "SchemaMismatch")
        assert condition(status, "Drifted")["status"] == "True"
        assert "was altered" in condition(status, "Drifted")["message"]


async def upgrade(store: Store) -> None:
    """The operator becomes one of a release that brings one more migration of boundaries."""
    await store.close()
    store.context = store.operator(later_release())


async def test_a_later_release_migrates_what_is_managed_and_what_is_not(store: Store) -> None:
    await store.boundary("orders")
    before = await store.settled("orders")
    async with await store.session() as session:
        record = await session.boundaries.register("by_rpc", "", store.schema, "")
        assert record is not None
        await session.boundaries.provision(record)
    await upgrade(store)
    cluster = await store.get("OrisunCluster", CLUSTER)
    found = await survey(store.context, cluster)
    assert not found.ready
    assert '"orders"' in found.message
    assert "by_rpc" not in found.message
    status = await store.settled("orders")
    assert status["schemaVersion"] == before["schemaVersion"] + 1
    assert await store.events("Migrated")
    assert (await survey(store.context, cluster)).ready


async def test_a_plan_waits_for_its_approval(store: Store) -> None:
    await store.boundary("orders", migration={"mode": "Plan"})
    status = await store.settled("orders", "PlanPending")
    assert condition(status, "SchemaReady")["reason"] == "PlanPending"
    first = status["pendingPlan"]
    assert (first["fromVersion"], f'CREATE SCHEMA IF NOT EXISTS "{store.schema}"' in first["sql"]) == (0, True)
    assert "CREATE TABLE" in first["sql"]
    async with await store.session() as session:
        assert await session.boundaries.find("orders") is None
    await store.patch("Boundary", "orders", {"migration": {"approvedPlan": first["hash"]}})
    status = await store.settled("orders")
    assert "pendingPlan" not in status

    await upgrade(store)
    # the approval was of another plan
    status = await store.settled("orders", "PlanPending")
    assert condition(status, "Stalled")["status"] == "True"
    assert "(it approves another one)" in condition(status, "Ready")["message"]
    plan = status["pendingPlan"]
    assert plan["hash"] != first["hash"]
    assert plan["toVersion"] == plan["fromVersion"] + 1 == status["schemaVersion"] + 1
    assert "COMMENT ON TABLE" in plan["sql"]
    assert "{q_events}" not in plan["sql"]
    assert not (await survey(store.context, await store.get("OrisunCluster", CLUSTER))).ready
    await store.patch("Boundary", "orders", {"migration": {"approvedPlan": plan["hash"]}})
    assert (await store.settled("orders"))["schemaVersion"] == plan["toVersion"]


async def test_two_operators_at_once_make_one_boundary(store: Store) -> None:
    await store.boundary("orders")
    other = store.operator()
    try:
        await together(
            *(store.reconcile("orders", context=context) for context in (store.context, other) for _ in range(3))
        )
        await store.settled("orders")
    finally:
        await other.postgres.close()
    async with await store.session() as session:
        applied = await session.database.admin.fetchval(
            f'SELECT count(*) FROM "{session.migrator.admin.schema}".orisun_migration WHERE scope = $1',
            "boundary:orders",
        )
    assert applied == len(Sources.packaged().boundary)


async def test_an_operator_that_died_halfway_is_succeeded(store: Store) -> None:
    await store.boundary("orders")
    async with await store.session() as session:
        # registered, and its tables half made: as far as the first migration, if there are several
        await session.boundaries.register("orders", "", store.schema, f"Boundary/{store.namespace}/orders")
        some = Sources(Sources.packaged().admin, Sources.packaged().boundary[:1])
        half = Migrator(session.database, session.migrator.admin.schema, sources=some)
        await half.apply([s for s in await half.scopes([("orders", store.schema)]) if s.names])
    await store.settled("orders")


async def test_wrong_references_say_what_to_do_and_heal(store: Store) -> None:
    await store.boundary("orders", clusterRef={"name": "elsewhere"})
    status = await store.settled("orders", "ClusterNotFound")
    assert condition(status, "Stalled")["status"] == "True"
    assert status["observedGeneration"] == 1
    assert status["phase"] == "Stalled"
    assert "create it" in condition(status, "Ready")["message"]
    await store.make("elsewhere")
    await store.settled("orders")


async def test_the_admin_boundary_is_the_clusters_own(store: Store) -> None:
    await store.boundary("orders", name=store.settings.admin_boundary)
    await store.settled("orders", "ReservedName")


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("my-orders", {}, "metadata.name cannot name a boundary"),
        ("a", {"name": "9lives"}, "a boundary's name has letters, digits and underscores only"),
        ("b", {"name": "x" * 64}, "may not be more than 63"),
        ("c", {"schema": "pg_catalog"}, "belong to PostgreSQL"),
        ("d", {"schema": 'x"; DROP TABLE y'}, "a schema's name has letters"),
        ("e", {"deletionPolicy": "Burn"}, 'supported values: "Retain", "Archive", "Delete"'),
        ("f", {"archive": {"claimName": "c", "storageClassName": "s"}}, "claimName names a claim that exists"),
        ("g", {"migration": {"mode": "Later"}}, 'supported values: "Apply", "Plan"'),
        ("h", {"clusterRef": {}}, "spec.clusterRef.name: Required value"),
    ],
)
async def test_hostile_specs_are_refused_in_words(
    kube: Kube, namespace: str, settings: Settings, name: str, spec: dict[str, object], message: str
) -> None:
    with pytest.raises(KubeError) as caught:
        await Store(kube, namespace, settings).boundary(name, **spec)
    assert message in str(caught.value)


async def test_what_is_immutable_says_so(store: Store) -> None:
    await store.boundary("orders")
    for change, message in (
        ({"name": "payments"}, "name is immutable"),
        ({"schema": "other"}, "schema is immutable"),
        ({"clusterRef": {"name": "other"}}, "clusterRef is immutable"),
    ):
        with pytest.raises(KubeError, match=message):
            await store.patch("Boundary", "orders", change)
    await store.patch("Boundary", "orders", {"description": "may change", "deletionPolicy": "Archive"})
    # to say what is so anyway changes nothing
    await store.patch("Boundary", "orders", {"name": "orders"})
    await store.create("Boundary", "payments", {"clusterRef": {"name": CLUSTER}})
    await store.patch("Boundary", "payments", {"schema": "payments"})
    await store.patch("Boundary", "payments", {"schema": None, "name": "payments"})
    with pytest.raises(KubeError, match="schema is immutable"):
        await store.patch("Boundary", "payments", {"schema": "public"})


def test_a_plan_is_the_sql_of_one_boundary() -> None:
    from orisun_server.storage.migrations import boundary_scope, judge

    sources = Sources.packaged()
    one, same, other = (
        reconciler.plan(judge(boundary_scope(name, "s"), sources, (), "0.1.0")) for name in ("a", "a", "b")
    )
    assert one == same
    assert one["hash"] != other["hash"]
    assert one["toVersion"] == len(sources.boundary)


async def test_a_paused_cluster_pauses_what_is_in_it(store: Store) -> None:
    await store.boundary("orders")
    await store.index("by-user", "orders", "user")
    await store.settled("orders")
    await store.settled("by-user", kind="EventIndex")
    await store.patch("OrisunCluster", CLUSTER, {"paused": True})
    await store.patch("Boundary", "orders", {"description": "new"})
    await store.patch("EventIndex", "by-user", {"fields": [{"jsonKey": "number"}]})
    for kind, name in (("Boundary", "orders"), ("EventIndex", "by-user")):
        status = await store.settled(name, "ClusterPaused", kind)
        assert {c["type"]: c["status"] for c in status["conditions"]}["Reconciling"] == "False"
        assert status["observedGeneration"] == 2
    assert await store.events("ClusterPaused")
    found = await store.kube.list("events.k8s.io/v1", "Event", store.namespace)
    assert {event["type"] for event in found if event["reason"] == "ClusterPaused"} == {"Normal"}
    # a deletion meanwhile is made up for later, by the cluster's own look
    await store.kube.delete(store.ref("EventIndex", "by-user"))
    await store.reconcile("by-user", "EventIndex")
    async with await store.session() as session:
        (index,) = await session.index_catalog.managed("orders")
        record = await session.boundaries.find("orders")
    assert [field.key for field in index.definition.fields] == ["user"]
    assert record is not None
    assert record.description == ""
    await store.patch("OrisunCluster", CLUSTER, {"paused": False})
    await store.settled("orders")
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
    assert record is not None
    assert record.description == "new"


async def test_two_kubernetes_clusters_of_the_same_names_do_not_fight(store: Store) -> None:
    await store.boundary("orders", description="theirs")
    await store.settled("orders")
    theirs = f"Boundary/{store.namespace}/orders@0badcafe"
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
        assert record is not None
        assert await session.boundaries.manage(record, theirs)
    await store.patch("Boundary", "orders", {"description": "ours", "deletionPolicy": "Delete"})
    message = condition(await store.settled("orders", "NameTaken"), "Stalled")["message"]
    assert f"managed by {theirs} already, a resource of another Kubernetes cluster" in message
    assert f"annotate OrisunCluster {CLUSTER} with {TAKE_OVER}=0badcafe" in message
    # neither its deletion nor a look at what is left behind touches the others' boundary
    await store.kube.delete(store.ref("Boundary", "orders"))
    await store.gone("orders")
    async with await store.session() as session:
        await release(store.context, session, store.namespace)
        record = await session.boundaries.find("orders")
        assert record is not None
        assert (record.managed_by, record.description) == (theirs, "theirs")
    await store.boundary("orders", description="ours")
    await store.settled("orders", "NameTaken")
    await store.kube.patch(store.ref("OrisunCluster", CLUSTER), {"metadata": {"annotations": {TAKE_OVER: "0badcafe"}}})
    await store.settled("orders")
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
    assert record is not None
    assert (record.managed_by, record.description) == (
        f"Boundary/{store.namespace}/orders@{await store.kube.identity()}",
        "ours",
    )


async def test_a_manager_without_a_kubernetes_cluster_is_taken_for_ours(store: Store) -> None:
    await store.boundary("orders")
    await store.settled("orders")
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
        assert record is not None
        # as an operator that may not read namespaces writes it
        assert await session.boundaries.manage(record, f"Boundary/{store.namespace}/orders")
    await store.settled("orders")
    async with await store.session() as session:
        record = await session.boundaries.find("orders")
    assert record is not None
    assert record.managed_by.endswith(f"@{await store.kube.identity()}")
    assert not await store.events("Adopted")
