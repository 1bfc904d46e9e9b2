"""Migrations: the ledger, many at once, and servers of different versions on one schema."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from orisun_server.errors import FailedPrecondition, SchemaMismatch, Unavailable
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from orisun_server.storage.migrate import Migrator
from orisun_server.storage.migrations import Scope, Sources, boundary_scope, release
from tests.harness import eventually, is_quick
from tests.proxy import PostgresProxy

ADMIN = "-- oldest-server: 0.1.0\nCREATE TABLE {schema}.thing (id int);\n"
NEWEST_ADMIN, NEWEST_BOUNDARY = len(Sources.packaged().admin), len(Sources.packaged().boundary)

EVENTS = "-- oldest-server: 0.1.0\nCREATE TABLE {q_events} (global_id bigint DEFAULT 0, a int[] DEFAULT '{}');\n"
EXPAND = "-- oldest-server: 0.1.0\nALTER TABLE {q_events} ADD COLUMN b text;\n"
CONTRACT = "-- oldest-server: 0.2.0\nALTER TABLE {q_events} DROP COLUMN a;\n"


def sources(directory: Path, *boundary: str, admin: str = ADMIN) -> Sources:
    """Migrations in files, as a release would bring them along."""
    for kind, texts in (("admin", [admin]), ("boundary", boundary)):
        (directory / kind).mkdir(parents=True)
        for number, text in enumerate(texts, 1):
            (directory / kind / f"{number:04}_step{number}.sql").write_text(text)
    return Sources.load(directory)


@pytest.fixture
def schema() -> str:
    return f"migrate_{secrets.token_hex(4)}"


@pytest.fixture
async def databases(pg_settings: Settings) -> AsyncIterator[list[Database]]:
    """Four servers' connections."""
    made = [await Database.connect(pg_settings) for _ in range(4)]
    yield made
    for database in made:
        await database.close()


async def columns(database: Database, scope: Scope) -> list[str]:
    assert scope.names is not None
    rows = await database.admin.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2 ORDER BY 1",
        scope.schema,
        scope.names.events,
    )
    return [row[0] for row in rows]


async def test_plan_shows_what_apply_does_and_then_nothing_is_left(database: Database, schema: str) -> None:
    migrator = Migrator(database, schema)
    scopes = [migrator.admin, boundary_scope("orders", schema), boundary_scope("payments", f"{schema}_2")]
    assert await migrator.scopes([("payments", f"{schema}_2"), ("orders", schema)]) == scopes
    with pytest.raises(
        SchemaMismatch, match=f'admin schema "{schema}" is at version 0 and server .* needs {NEWEST_ADMIN}: run'
    ):
        await migrator.verify(scopes)
    plan = await migrator.plan(scopes)
    assert [(step.scope, step.schema, step.version) for step in plan] == [
        *(("admin", schema, version) for version in range(1, NEWEST_ADMIN + 1)),
        *(("boundary:orders", schema, version) for version in range(1, NEWEST_BOUNDARY + 1)),
        *(("boundary:payments", f"{schema}_2", version) for version in range(1, NEWEST_BOUNDARY + 1)),
    ]
    assert sorted(await migrator.apply(scopes)) == sorted(plan)
    assert await migrator.plan(scopes) == []
    assert await migrator.apply(scopes) == []
    await migrator.verify(scopes)
    assert [state.version for state in await migrator.status(scopes)] == [
        NEWEST_ADMIN,
        NEWEST_BOUNDARY,
        NEWEST_BOUNDARY,
    ]


async def test_the_real_migrations_leave_no_name_in_braces(database: Database, schema: str) -> None:
    packaged = Sources.packaged()
    for migration in (*packaged.admin, *packaged.boundary):
        scope = Scope(schema) if migration in packaged.admin else boundary_scope("b", schema)
        sql = "".join(line.split("--")[0] for line in scope.render(migration.sql).splitlines())
        assert not [word for word in sql.split("{")[1:] if word[:1].isalpha()]


async def test_many_at_once_apply_everything_once(databases: list[Database], schema: str, tmp_path: Path) -> None:
    many = sources(tmp_path, EVENTS, EXPAND, CONTRACT)
    scopes = [boundary_scope(f"b{number}", f"{schema}_{number % 3}") for number in range(6)]
    migrators = [
        Migrator(databases[number % len(databases)], schema, sources=many, applied_by=f"server {number}")
        for number in range(8)
    ]
    done = await asyncio.gather(*(migrator.apply([migrator.admin, *scopes]) for migrator in migrators))
    steps = [(step.scope, step.version) for steps in done for step in steps]
    assert len(steps) == len(set(steps)) == 1 + 6 * 3
    for scope in scopes:
        assert await columns(databases[0], scope) == ["b", "global_id"]
    await migrators[0].verify([migrators[0].admin, *scopes])


async def test_a_failed_migration_leaves_nothing_and_no_other_scope_behind(
    database: Database, schema: str, tmp_path: Path
) -> None:
    broken = EXPAND + "INSERT INTO {q_events} (b) SELECT 1 / 0;\n"
    migrator = Migrator(database, schema, sources=sources(tmp_path, EVENTS, broken))
    scopes = [boundary_scope("a", schema), boundary_scope("b", schema)]
    await migrator.apply([migrator.admin])
    failures = await migrator.apply_each(scopes)
    assert failures.keys() == {"boundary:a", "boundary:b"}
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrator.apply(scopes)
    for state in await migrator.status(scopes):
        assert state.version == 1
        assert await columns(database, state.scope) == ["a", "global_id"]


async def test_old_and_new_servers_on_one_schema_and_the_way_back(
    database: Database, schema: str, tmp_path: Path
) -> None:
    scope = boundary_scope("orders", schema)
    old = Migrator(database, schema, sources=sources(tmp_path / "1", EVENTS), server_version="0.1.0")
    new = Migrator(database, schema, sources=sources(tmp_path / "2", EVENTS, EXPAND), server_version="0.2.0rc1")
    newest = Migrator(
        database, schema, sources=sources(tmp_path / "3", EVENTS, EXPAND, CONTRACT), server_version="0.10.0"
    )
    both = [old.admin, scope]
    await old.apply(both)
    with pytest.raises(SchemaMismatch, match=r'boundary "orders" in schema ".*" is at version 1 .* needs 2'):
        await new.verify(both)
    await new.apply(both)
    await new.verify(both)
    # the expanded schema admits the old server, which leaves it alone
    await old.verify(both)
    assert await old.apply(both) == []
    assert await columns(database, scope) == ["a", "b", "global_id"]
    # an old server adds a boundary, and the new one brings it up
    other = boundary_scope("payments", schema)
    await old.apply([other])
    assert [(step.scope, step.version) for step in await new.apply([*both, other])] == [("boundary:payments", 2)]
    # the contracted schema admits 0.2.0, and refuses 0.1.0
    await newest.apply(both)
    await new.verify(both)
    for attempt in (old.verify, old.apply, old.plan):
        with pytest.raises(SchemaMismatch) as caught:
            await attempt(both)
        assert str(caught.value) == (
            f'boundary "orders" in schema "{schema}" is at version 3 (step3), which needs server 0.2.0 or newer; this'
            " is server 0.1.0 and knows version 1: run a newer release"
        )
    (state,) = await old.status([scope])
    assert state.version == 3
    assert state.problem


async def test_an_altered_migration_is_refused(database: Database, schema: str, tmp_path: Path) -> None:
    before = Migrator(database, schema, sources=sources(tmp_path / "1", EVENTS, EXPAND))
    after = Migrator(database, schema, sources=sources(tmp_path / "2", EVENTS.replace("0", "1"), EXPAND, CONTRACT))
    both = [before.admin, boundary_scope("orders", schema)]
    await before.apply(both)
    for attempt in (after.verify, after.apply, after.plan):
        with pytest.raises(
            SchemaMismatch, match=r"migration 1 was altered: step1 with checksum [0-9a-f]{12} was appli"
        ):
            await attempt(both)
    await before.verify(both)


async def test_a_hole_in_the_ledger_is_refused(database: Database, schema: str, tmp_path: Path) -> None:
    migrator = Migrator(database, schema, sources=sources(tmp_path, EVENTS, EXPAND))
    both = [migrator.admin, boundary_scope("orders", schema)]
    await migrator.apply(both)
    await database.admin.execute(f"DELETE FROM {schema}.orisun_migration WHERE scope <> 'admin' AND version = 1")
    with pytest.raises(SchemaMismatch, match=r"migration 1 .* is missing below version 2"):
        await migrator.apply(both)


async def test_what_is_in_the_way_is_named_and_left_alone(database: Database, schema: str) -> None:
    migrator = Migrator(database, schema)
    await migrator.apply([migrator.admin])
    await database.admin.execute(f"CREATE TABLE {schema}.orders_orisun_es_event (mine int)")
    with pytest.raises(FailedPrecondition, match='relation "orders_orisun_es_event" already exists, and the ledger'):
        await migrator.apply([boundary_scope("orders", schema)])
    assert await columns(database, boundary_scope("orders", schema)) == ["mine"]


async def test_a_missing_privilege_is_named(
    database: Database, pg_settings: Settings, schema: str, request: pytest.FixtureRequest
) -> None:
    await database.admin.execute(f"CREATE ROLE {schema} LOGIN")
    theirs = await Database.connect(pg_settings.model_copy(update={"pg_user": schema}))
    try:
        migrator = Migrator(theirs, schema)
        with pytest.raises(FailedPrecondition, match=f'admin schema "{schema}": .*permission denied.*GRANT CREATE'):
            await migrator.apply([migrator.admin])
        # what an administrator has prepared is enough
        await database.admin.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {schema}")
        await migrator.apply([migrator.admin, boundary_scope("orders", schema)])
    finally:
        await theirs.close()


async def test_a_lost_answer_does_not_apply_twice(pg_settings: Settings, schema: str, tmp_path: Path) -> None:
    async with PostgresProxy(pg_settings) as proxy:
        database = await Database.connect(proxy.settings)
        migrator = Migrator(database, schema, sources=sources(tmp_path, EVENTS + "SELECT pg_sleep(4);\n"))
        await migrator.apply([migrator.admin])
        work = asyncio.create_task(migrator.apply([boundary_scope("orders", schema)]))
        sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%pg_sleep(4)%'"
        await eventually(lambda: database.admin.fetchval(sleeps))
        await proxy.cut()
        with pytest.raises(Unavailable, match="is not available"):
            await work
        # PostgreSQL has the whole message and goes on; whoever comes meanwhile waits for it
        assert await migrator.apply([boundary_scope("orders", schema)]) == []
        await migrator.verify([boundary_scope("orders", schema)])
        await database.close()


async def test_a_migration_that_waits_for_a_lock_lets_everybody_else_through(
    databases: list[Database], schema: str, tmp_path: Path
) -> None:
    """A statement in the queue for a lock holds up whoever comes after it, however small the lock that they need."""
    migrator = Migrator(databases[0], schema, sources=sources(tmp_path / "old", EVENTS))
    scope = boundary_scope("orders", schema)
    await migrator.apply([migrator.admin, scope])
    assert scope.names is not None
    newer = Migrator(databases[1], schema, sources=sources(tmp_path / "new", EVENTS, EXPAND))
    connection = await databases[2].dedicated_connection()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"SELECT FROM {scope.names.q_events}")
    # two servers: a pause of one must not be filled by the other
    both = [newer, Migrator(databases[3], schema, sources=newer.sources)]
    applied = asyncio.gather(*(one.apply([scope]) for one in both))
    try:

        async def waits() -> bool:
            found = "SELECT count(*) > 0 FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted"
            return bool(await databases[0].admin.fetchval(found, scope.names and scope.names.q_events))

        async def waits_not() -> bool:
            return not await waits()

        for _ in range(2):
            await eventually(waits)
            async with asyncio.timeout(10):
                await databases[0].admin.execute(f"INSERT INTO {scope.names.q_events} DEFAULT VALUES")
            for _ in range(3):  # it does not come back at once
                assert await waits_not()
        assert not applied.done()
        assert "somebody's open transaction" in str((await newer.apply_each([scope]))[scope.name])
        await transaction.rollback()
        assert sorted([step.version for step in steps] for steps in await applied) == [[], [2]]
    finally:
        applied.cancel()
        await connection.close()
    assert await columns(databases[0], scope) == ["a", "b", "global_id"]


async def test_200_boundaries_take_seconds(database: Database, schema: str) -> None:
    migrator = Migrator(database, schema)
    scopes = [migrator.admin, *(boundary_scope(f"b{number}", f"{schema}_{number % 20}") for number in range(200))]
    began = time.monotonic()
    assert len(await migrator.apply(scopes)) == NEWEST_ADMIN + 200 * NEWEST_BOUNDARY
    assert time.monotonic() - began < 90

    async def nothing_to_do() -> float:
        began = time.monotonic()
        assert await migrator.apply(scopes) == []
        return time.monotonic() - began

    await is_quick(nothing_to_do, 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("0001-thing.sql", ADMIN),
        ("0002_gap.sql", ADMIN),
        ("0001_header.sql", "CREATE TABLE t ();"),
        ("0001_version.sql", "-- oldest-server: soon\n"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "admin").mkdir()
    (tmp_path / "boundary").mkdir()
    (tmp_path / "admin" / name).write_text(text)
    with pytest.raises(ValueError, match=f"admin/{name}"):
        Sources.load(tmp_path)


def test_a_checkout_with_other_line_ends_has_the_same_checksum(tmp_path: Path) -> None:
    unix = sources(tmp_path / "unix", EVENTS)
    (tmp_path / "dos" / "admin").mkdir(parents=True)
    (tmp_path / "dos" / "boundary").mkdir()
    (tmp_path / "dos" / "admin" / "0001_step1.sql").write_bytes(ADMIN.replace("\n", "\r\n").encode())
    assert Sources.load(tmp_path / "dos").admin == unix.admin


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("0.1.0", (0, 1, 0)), ("0.10", (0, 10, 0)), ("1.2.3rc1", (1, 2, 3)), ("1.2.3.dev4+local", (1, 2, 3))],
)
def test_versions_compare_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers
