"""The catalog of boundaries: seeds, creation at run time on every server, and what may be created."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from orisun_server.errors import (
    AlreadyExists,
    BoundaryNotActive,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SchemaMismatch,
    Unavailable,
)
from orisun_server.settings import Settings
from orisun_server.storage.boundaries import CatalogSql
from orisun_server.storage.catalog import BoundaryStatus, Catalog
from orisun_server.storage.database import Database
from orisun_server.storage.leases import Leases
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.migrations import Migration, Sources, boundary_scope
from orisun_server.storage.names import BoundaryNames
from orisun_server.storage.provision import PROVISION
from tests.harness import eventually, is_quick
from tests.proxy import PostgresProxy

Start = Callable[..., Awaitable[Catalog]]


@pytest.fixture
async def start(database: Database) -> AsyncIterator[Start]:
    """Start a server's catalog: ``await start(settings, node="a")``."""
    parts: list[Catalog | Leases] = []

    async def begin(
        settings: Settings,
        node: str = "node",
        *,
        ttl: float = 5.0,
        migrate: bool = True,
        through: Database | None = None,
        migrator: Migrator | None = None,
    ) -> Catalog:
        migrator = migrator or Migrator(through or database, settings.admin_schema)
        await migrator.apply([migrator.admin])
        leases = Leases(through or database, settings.admin_schema, node, ttl)
        await leases.start()
        parts.append(leases)
        catalog = Catalog(through or database, leases, migrator, settings.boundaries, migrate=migrate)
        await catalog.start()
        parts.append(catalog)
        return catalog

    yield begin
    for part in reversed(parts):
        await part.stop()


async def relations(database: Database, schema: str) -> set[str]:
    rows = await database.admin.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relkind IN ('r', 'S')", schema
    )
    return {row[0] for row in rows}


def are_active(catalog: Catalog, *names: str) -> bool:
    return {boundary.name for boundary in catalog.active()}.issuperset(names)


async def test_seeds_become_active_with_the_tables_of_the_seeds(
    start: Start, settings: Settings, database: Database
) -> None:
    catalog = await start(settings)
    orders, admin = settings.boundaries
    boundary = catalog.get(orders.name)
    assert (boundary.name, boundary.schema, boundary.names) == (
        orders.name,
        orders.schema,
        BoundaryNames(orders.schema, orders.name),
    )
    assert [boundary.name for boundary in catalog.active()] == sorted([orders.name, admin.name])
    assert await relations(database, orders.schema) == {
        f"{orders.name}_orisun_command",
        f"{orders.name}_orisun_es_event",
        f"{orders.name}_orisun_es_event_global_id_seq",
        f"{orders.name}_orisun_last_published_event_position",
        f"{orders.name}_projector_checkpoint",
    }
    record = await catalog.find(orders.name)
    assert record.status is BoundaryStatus.ACTIVE
    assert (record.namespace, record.backend, record.existed_before_catalog) == (orders.schema, "postgres", False)
    assert record.status_position > record.definition_position >= (1, 0)
    with pytest.raises(BoundaryNotActive, match=r'^boundary "nothing" is not active$'):
        catalog.get("nothing")
    with pytest.raises(NotFound):
        await catalog.find("nothing")


async def test_a_second_start_changes_nothing(start: Start, settings: Settings) -> None:
    before = await (await start(settings, "a")).list()
    assert await (await start(settings, "b")).list() == before


async def test_servers_that_start_together_make_each_boundary_once(
    make_settings: Callable[..., Settings], pg_settings: Settings, start: Start
) -> None:
    settings = make_settings(*(f"b{number}" for number in range(12)))
    databases = [await Database.connect(pg_settings) for _ in range(4)]
    catalogs = await asyncio.gather(
        *(start(settings, f"n{number}", through=through) for number, through in enumerate(databases))
    )
    for catalog in catalogs:
        assert len(catalog.active()) == 13
        await catalog.stop()
    rows = await databases[0].admin.fetch(f"SELECT scope FROM {settings.admin_schema}.orisun_migration")
    sources = Sources.packaged()
    assert len(rows) == len(sources.admin) + 13 * len(sources.boundary)
    for database in databases[1:]:
        await database.close()


async def test_settings_that_contradict_the_catalog_are_refused(start: Start, settings: Settings) -> None:
    await start(settings)
    name, _, schema = settings.boundaries[0]
    other = settings.model_copy(
        update={"boundaries": (settings.boundaries[0]._replace(schema="elsewhere"), *settings.boundaries[1:])}
    )
    with pytest.raises(FailedPrecondition) as caught:
        await start(other, "b")
    assert f'boundary "{name}"' in str(caught.value)
    assert f'"{schema}"' in str(caught.value)
    assert '"elsewhere"' in str(caught.value)


async def test_a_new_boundary_is_active_on_every_server_within_two_seconds(start: Start, settings: Settings) -> None:
    a, b = await start(settings, "a"), await start(settings, "b")
    changes: list[float] = []
    b.on_change(lambda: changes.append(time.monotonic()))
    schema = settings.boundaries[0].schema
    names = iter(["payments", "more", "and_more", "most"])

    async def reaches() -> float:
        name, began = next(names), time.monotonic()
        changes.clear()
        created = await a.create(name, "money", "postgres", f"{schema}_new", False)
        assert (created.name, created.description, created.status) == (name, "money", BoundaryStatus.ACTIVE)
        assert a.get(name).schema == f"{schema}_new"
        await eventually(lambda: any(boundary.name == name for boundary in b.active()))
        assert changes
        return time.monotonic() - began

    await is_quick(reaches, 2)
    with pytest.raises(AlreadyExists, match=r'^boundary "payments" already exists$'):
        await b.create("payments", "", "postgres", schema, False)
    assert [record.name for record in await b.list()] == sorted(
        ["payments", *(boundary.name for boundary in settings.boundaries)]
    )


async def test_boundaries_that_wait_for_somebody_s_transaction_hold_up_no_other(
    start: Start, settings: Settings, database: Database
) -> None:
    """More of them than the pool has connections, and the others are made on the same server and seen by all."""
    a, b = await start(settings, "a"), await start(settings, "b")
    schema = settings.boundaries[0].schema
    stuck = [f"stuck_{number}" for number in range(database.admin.get_max_size() + 1)]
    async with database.read.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"CREATE SCHEMA {schema}_held")
        waiting = await asyncio.gather(*(a.create(name, "", "postgres", f"{schema}_held", False) for name in stuck))
        assert {record.status for record in waiting} == {BoundaryStatus.PROVISIONING}
        names = (f"payments_{number}" for number in range(10))

        async def reaches() -> float:
            name, began = next(names), time.monotonic()
            await a.create(name, "", "postgres", f"{schema}_other", False)
            await eventually(lambda: all(are_active(catalog, name) for catalog in (a, b)))
            return time.monotonic() - began

        await is_quick(reaches, 2)
        assert {(await a.find(name)).status for name in stuck} == {BoundaryStatus.PROVISIONING}
        await transaction.rollback()
    await eventually(lambda: all(are_active(catalog, *stuck) for catalog in (a, b)))


@pytest.mark.parametrize(
    ("name", "backend", "namespace", "message"),
    [
        ("", "postgres", "s", 'invalid boundary "": must be'),
        ("9a", "postgres", "s", 'invalid boundary "9a": must be'),
        ("a-b", None, None, 'invalid boundary "a-b": must be'),
        ("a" * 64, "postgres", "s", 'invalid boundary "a'),
        ("fine", None, None, "boundary placement is required"),
        ("fine", "", "", "boundary placement is required"),
        ("fine", "mysql", "s", 'unknown backend "mysql": must be "postgres"'),
        ("fine", "", "s", 'unknown backend "": must be "postgres"'),
        ("fine", "postgres", "", 'invalid namespace "": must be'),
        ("fine", "postgres", "a.b", 'invalid namespace "a.b": must be'),
        ("fine", "postgres", "pg_catalog", 'invalid namespace "pg_catalog": the schema belongs to PostgreSQL'),
        ("fine", "postgres", "information_schema", 'invalid namespace "information_schema": the schema belongs'),
    ],
)
async def test_what_cannot_be_created_is_refused_at_once(
    database: Database, name: str, backend: str | None, namespace: str | None, message: str
) -> None:
    catalog = Catalog(database, Leases(database, "x", "x", 1), Migrator(database, "x"))
    with pytest.raises(InvalidArgument) as caught:
        await catalog.create(name, "", backend, namespace, False)
    assert str(caught.value).startswith(message)


async def test_creating_one_name_many_times_at_once_succeeds_once(start: Start, settings: Settings) -> None:
    servers = [await start(settings, node) for node in "ab"]
    schema = settings.boundaries[0].schema
    answers = await asyncio.gather(
        *(servers[number % 2].create("payments", "", "postgres", schema, False) for number in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, AlreadyExists) for answer in answers) == 7
    assert (await servers[0].find("payments")).status is BoundaryStatus.ACTIVE


async def test_a_table_of_somebody_else_fails_the_boundary_which_can_be_created_again(
    start: Start, settings: Settings, database: Database
) -> None:
    catalog = await start(settings)
    schema = settings.boundaries[0].schema
    await database.admin.execute(f"CREATE TABLE {schema}.payments_orisun_es_event (mine int)")
    for existed in (False, True):
        failed = await catalog.create("payments", "", "postgres", schema, existed)
        assert failed.status is BoundaryStatus.FAILED
        assert f'table "{schema}"."payments_orisun_es_event" exists already' in failed.last_error
        with pytest.raises(BoundaryNotActive):
            catalog.get("payments")
    await database.admin.execute(f"DROP TABLE {schema}.payments_orisun_es_event")
    again = await catalog.create("payments", "second", "postgres", f"{schema}_2", False)
    assert (again.status, again.description, again.last_error) == (BoundaryStatus.ACTIVE, "second", "")
    assert catalog.get("payments").schema == f"{schema}_2"


async def test_events_from_an_earlier_catalog_are_taken_up_on_purpose_only(
    start: Start, settings: Settings, database: Database
) -> None:
    catalog = await start(settings)
    schema = settings.boundaries[0].schema
    await catalog.create("payments", "", "postgres", schema, False)
    table = BoundaryNames(schema, "payments").q_events
    await database.admin.execute(
        f"INSERT INTO {table} VALUES (0, 1, pg_current_xact_id(), 'e', 'T', '{{}}', '{{}}', now())"
    )
    await database.admin.execute(f"DELETE FROM {settings.admin_schema}.orisun_boundary WHERE name = 'payments'")
    failed = await catalog.create("payments", "", "postgres", schema, False)
    assert failed.status is BoundaryStatus.FAILED
    assert "existed_before_catalog=true" in failed.last_error
    taken_up = await catalog.create("payments", "", "postgres", schema, True)
    assert (taken_up.status, taken_up.existed_before_catalog) == (BoundaryStatus.ACTIVE, True)
    assert await database.admin.fetchval(f"SELECT count(*) FROM {table}") == 1


async def test_a_boundary_whose_schema_was_dropped_is_made_anew(
    start: Start, settings: Settings, database: Database
) -> None:
    catalog = await start(settings)
    schema = settings.boundaries[0].schema + "_dropped"
    await catalog.create("payments", "", "postgres", schema, False)
    await database.admin.execute(f"DROP SCHEMA {schema} CASCADE")
    await database.admin.execute(f"DELETE FROM {settings.admin_schema}.orisun_boundary WHERE name = 'payments'")
    missing = await catalog.create("payments", "", "postgres", schema, True)
    assert missing.status is BoundaryStatus.FAILED
    assert "there is no table" in missing.last_error
    assert (await catalog.create("payments", "", "postgres", schema, False)).status is BoundaryStatus.ACTIVE
    assert "payments_orisun_es_event" in await relations(database, schema)


async def test_seeds_take_up_their_tables_after_the_catalog_was_lost(
    start: Start, settings: Settings, database: Database
) -> None:
    await (await start(settings)).stop()
    await database.admin.execute(f"DELETE FROM {settings.admin_schema}.orisun_boundary")
    catalog = await start(settings, "b")
    assert (await catalog.find(settings.boundaries[0].name)).existed_before_catalog


async def test_a_dead_provisioner_is_succeeded(start: Start, settings: Settings, database: Database) -> None:
    catalog = await start(settings, ttl=60)
    async with PostgresProxy(settings) as proxy:
        through = await Database.connect(proxy.settings)
        dead = Leases(through, settings.admin_schema, "dead", 1.0)
        await dead.start()
        assert await dead.acquire(PROVISION, "payments") is not None
        proxy.freeze()
        sql = CatalogSql.for_schema(settings.admin_schema)
        await database.admin.execute(sql.create, "payments", "", "postgres", settings.boundaries[0].schema, False)
        assert (await catalog.find("payments")).status is BoundaryStatus.PROVISIONING
        await eventually(lambda: any(boundary.name == "payments" for boundary in catalog.active()))
        proxy.thaw()
        await dead.stop()
        await through.close()


async def test_long_names_that_differ_in_the_last_letter_have_tables_of_their_own(
    start: Start, settings: Settings, database: Database
) -> None:
    catalog = await start(settings)
    schema = settings.boundaries[0].schema + "_long"
    for name in ("n" * 62 + "a", "n" * 62 + "b"):
        assert (await catalog.create(name, "", "postgres", schema, False)).status is BoundaryStatus.ACTIVE
    assert len(await relations(database, schema)) == 10
    for name in ("a", "a_b"):
        assert (await catalog.create(name, "", "postgres", schema, False)).status is BoundaryStatus.ACTIVE
    assert len(await relations(database, schema)) == 20


async def test_200_boundaries_start_in_seconds(
    start: Start, make_settings: Callable[..., Settings], database: Database
) -> None:
    settings = make_settings(*(f"b{number:03}" for number in range(200)))
    nodes = iter("abcde")

    async def starts() -> float:
        began = time.monotonic()
        assert len((await start(settings, next(nodes))).active()) == 201
        return time.monotonic() - began

    assert await starts() < 90  # makes their tables
    await is_quick(starts, 2)


async def test_without_postgresql_the_cache_answers_and_goes_on_later(start: Start, settings: Settings) -> None:
    async with PostgresProxy(settings) as proxy:
        through = await Database.connect(proxy.settings)
        catalog = await start(settings, through=through)
        here = await start(settings, "b")
        await proxy.cut()
        proxy.freeze()
        name = settings.boundaries[0].name
        assert catalog.get(name).name == name
        await proxy.cut()
        await here.create("payments", "", "postgres", settings.boundaries[0].schema, False)
        proxy.thaw()
        await eventually(lambda: any(boundary.name == "payments" for boundary in catalog.active()))
        await catalog.stop()
        await through.close()


def newer_migrator(database: Database, settings: Settings) -> Migrator:
    """That of a release whose boundaries have another column, which older servers do not mind."""
    packaged = Sources.packaged()
    sql = "ALTER TABLE {q_events} ADD COLUMN more text;"
    more = Migration(len(packaged.boundary) + 1, "more", sql, checksum="x", oldest_server="0.1.0")
    sources = Sources(packaged.admin, (*packaged.boundary, more))
    return Migrator(database, settings.admin_schema, sources=sources)


async def test_a_server_that_only_verifies_waits_for_whoever_migrates(
    start: Start, settings: Settings, database: Database
) -> None:
    newer = newer_migrator(database, settings)
    old = await start(settings, "old")
    with pytest.raises(SchemaMismatch, match="orisun migrate apply"):
        await start(settings, "early", migrate=False, migrator=newer)
    await newer.apply(await newer.scopes())
    new = await start(settings, "new", migrate=False, migrator=newer)
    # the old server still runs on the newer schema, and adds a boundary as it knows them
    schema = settings.boundaries[0].schema
    assert (await old.create("payments", "", "postgres", schema, False)).status is BoundaryStatus.ACTIVE
    if (await newer.status([boundary_scope("payments", schema)]))[0].pending:
        await eventually(lambda: "payments" in new.refused)
        assert "orisun migrate apply" in new.refused["payments"]
        with pytest.raises(BoundaryNotActive):
            new.get("payments")
        # one that migrates brings it up, and then the other takes it too
        migrating = await start(settings, "migrating", migrator=newer)
        assert migrating.get("payments").schema == schema
    await eventually(lambda: any(boundary.name == "payments" for boundary in new.active()))
    assert not new.refused


async def test_a_start_waits_for_what_somebody_s_transaction_holds(
    start: Start, settings: Settings, database: Database
) -> None:
    newer = newer_migrator(database, settings)
    name = settings.boundaries[0].name
    old = await start(settings, "old")
    async with database.read.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"SELECT FROM {old.get(name).names.q_events}")
        starts = asyncio.create_task(start(settings, "new", migrator=newer))
        try:
            for _ in range(2):  # it tries, gives way, and tries again
                for waits in (True, False):
                    await eventually(lambda waits=waits: _is_waited_for(database, old, name, waits))  # type: ignore[misc]
            assert not starts.done()
        finally:
            await transaction.rollback()
        new = await starts
    assert are_active(new, name)
    assert not new.refused


async def _is_waited_for(database: Database, catalog: Catalog, name: str, waits: bool) -> bool:
    found = "SELECT count(*) > 0 FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted"
    return bool(await database.admin.fetchval(found, catalog.get(name).names.q_events)) is waits


async def test_a_list_says_when_postgresql_is_gone(start: Start, settings: Settings) -> None:
    async with PostgresProxy(settings) as proxy:
        through = await Database.connect(proxy.settings)
        catalog = await start(settings, through=through)
    with pytest.raises(Unavailable):
        await catalog.list()
    await catalog.stop()
    await through.close()
