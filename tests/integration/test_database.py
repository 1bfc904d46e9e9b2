"""Connections to PostgreSQL: what they are set to, what failures become, restarts, and a pooler between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from orisun_server.embedded.postgres import EmbeddedPostgres
from orisun_server.errors import FailedPrecondition, NotFound, Unavailable
from orisun_server.settings import Settings
from orisun_server.storage.catalog import Catalog
from orisun_server.storage.database import Database
from orisun_server.storage.kept import KeptConnections
from orisun_server.storage.leases import Leases
from orisun_server.storage.migrate import Migrator
from orisun_server.tasks import end
from tests.harness import eventually, free_port
from tests.proxy import PostgresProxy

#: The program, for machines that do not have it in PATH: ORISUN_TEST_PGBOUNCER=/opt/pgbouncer make test
PGBOUNCER = os.environ.get("ORISUN_TEST_PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")


async def test_direct_connections_are_set_up_without_a_round_trip(database: Database, pg_settings: Settings) -> None:
    assert not database.pooled
    assert database.cached
    assert database.target == f"{pg_settings.pg_host}:{pg_settings.pg_port}/{pg_settings.pg_name}"
    for pool in (database.write, database.read, database.admin):
        row = await pool.fetchrow(
            "SELECT current_setting('jit'), current_setting('default_transaction_isolation'),"
            " current_setting('application_name')"
        )
        assert tuple(row) == ("off", "read committed", "orisun")


async def test_pools_have_the_sizes_of_the_settings(pg_settings: Settings) -> None:
    settings = pg_settings.model_copy(update={"pg_write_max_open_conns": 3, "pg_read_max_open_conns": 2})
    database = await Database.connect(settings)
    try:
        pools = (database.write, database.read, database.admin)
        assert [pool.get_max_size() for pool in pools] == [3, 2, settings.pg_admin_max_open_conns]
        assert [pool.get_size() for pool in pools] == [1, 1, 1]
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pg_host": "127.0.0.1", "pg_port": 1}, "127.0.0.1:1/orisun"),
        ({"pg_host": "/nowhere"}, "/nowhere:"),
        ({"pg_host": "nowhere.invalid"}, "nowhere.invalid:"),
        ({"pg_name": "nothing"}, 'database "nothing" does not exist'),
        ({"pg_user": "nobody_here"}, "nobody_here"),
    ],
)
async def test_what_cannot_be_reached_is_named_without_the_password(
    pg_settings: Settings, changes: dict[str, object], says: str
) -> None:
    settings = pg_settings.model_copy(update={**changes, "pg_password": SecretStr("s3cret")})
    with pytest.raises(Unavailable, match=r"^PostgreSQL at .* is not available: ") as caught:
        await Database.connect(settings)
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_a_missing_certificate_is_named(pg_settings: Settings) -> None:
    settings = pg_settings.model_copy(update={"pg_sslmode": "verify-full", "pg_sslrootcert": "/nowhere/ca.pem"})
    with pytest.raises(FailedPrecondition, match=r'ORISUN_PG_SSLROOTCERT: "/nowhere/ca\.pem" cannot be'):
        await Database.connect(settings)


async def test_a_postgresql_that_is_too_old_is_refused(pg_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orisun_server.storage.database.MINIMUM_VERSION", 99)
    with pytest.raises(FailedPrecondition, match=r"^PostgreSQL \d\d is too old; 99 or newer is needed$"):
        await Database.connect(pg_settings)


async def test_the_guard_translates_what_passes_and_nothing_else(database: Database) -> None:
    async with database.admin.acquire() as connection:
        with pytest.raises(Unavailable), database.guard():
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(Unavailable), database.guard():
            await connection.execute("SELECT 1")
    for error in (ConnectionResetError("reset"), TimeoutError(), asyncpg.DeadlockDetectedError("deadlock")):
        with pytest.raises(Unavailable), database.guard():
            raise error
    with pytest.raises(asyncpg.DivisionByZeroError), database.guard():
        await database.admin.execute("SELECT 1/0")
    with pytest.raises(NotFound, match="mine"), database.guard():
        raise NotFound("mine")
    with pytest.raises(asyncpg.InterfaceError), database.guard():
        raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")


async def test_listen_hears(database: Database) -> None:
    connection = await database.listen_connection()
    heard: asyncio.Queue[str] = asyncio.Queue()
    try:
        await connection.add_listener("orisun_test_listen", lambda *arguments: heard.put_nowait(arguments[-1]))
        await database.admin.execute("NOTIFY orisun_test_listen, 'hello'")
        assert await asyncio.wait_for(heard.get(), 30) == "hello"
    finally:
        await connection.close()


async def test_a_connection_for_listen_that_is_given_up_is_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: asyncio.Queue[asyncpg.Connection] = asyncio.Queue()

    async def hang(connection: asyncpg.Connection, *_: object) -> None:
        opened.put_nowait(connection)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncpg.Connection, "fetchval", hang)
    monkeypatch.setattr(database, "_direct", database._options)
    opening = asyncio.create_task(database.listen_connection())
    connection = await opened.get()
    await end([opening])
    assert connection.is_closed()


async def test_pools_go_on_after_every_connection_was_cut(pg_settings: Settings) -> None:
    async with PostgresProxy(pg_settings) as proxy:
        database = await Database.connect(proxy.settings)
        under_way = asyncio.create_task(database.write.fetchval("SELECT pg_sleep(30)"))
        sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query = 'SELECT pg_sleep(30)'"
        await eventually(lambda: database.read.fetchval(sleeps))
        await proxy.cut()
        with pytest.raises(Unavailable), database.guard():
            await under_way
        for pool in (database.write, database.read, database.admin):
            assert await pool.fetchval("SELECT 1") == 1
        await database.close()


async def test_idle_connections_are_bounded_in_number_and_age(
    pg_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orisun_server.storage.database._UPKEEP_INTERVAL", 0.05)
    settings = pg_settings.model_copy(
        update={"pg_read_max_open_conns": 6, "pg_read_max_idle_conns": 2, "pg_write_conn_max_lifetime": 0.2}
    )
    database = await Database.connect(settings)
    try:
        first = await database.write.fetchval("SELECT pg_backend_pid()")
        async with contextlib.AsyncExitStack() as held:
            for _ in range(6):
                await held.enter_async_context(database.read.acquire())
            assert database.read.get_size() == 6
        await eventually(lambda: database.read.get_idle_size() == 2)
        assert await database.read.fetchval("SELECT 1") == 1

        async def replaced() -> bool:
            return bool(await database.write.fetchval("SELECT pg_backend_pid()") != first)

        await eventually(replaced)
    finally:
        await database.close()


async def test_connections_that_flushes_keep_have_their_lifetime_too(
    pg_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while they are never at rest."""
    monkeypatch.setattr("orisun_server.storage.database._UPKEEP_INTERVAL", 0.05)
    monkeypatch.setattr("orisun_server.storage.kept._KEPT", 0.1)
    database = await Database.connect(pg_settings.model_copy(update={"pg_write_conn_max_lifetime": 0.2}))
    kept = KeptConnections(database.write)
    try:

        async def session() -> int:
            connection = await kept.take()
            pid: int = await connection.fetchval("SELECT pg_backend_pid()")
            kept.give_back(connection, sound=True)
            return pid

        first = await session()

        async def renewed() -> bool:
            return await session() != first

        # asked without a pause between two uses
        await eventually(renewed, interval=0)
        await kept.stop()
        assert not kept._until
        assert database.write.get_idle_size() == database.write.get_size()
    finally:
        await database.close()


@pytest.mark.fault
async def test_everything_recovers_when_postgresql_restarts(
    data_dir: Path, make_settings: Callable[..., Settings]
) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres", configuration={"fsync": "off", "shared_buffers": "16MB"})
    address = await postgres.start()
    settings = make_settings(pg_host=address.host, pg_port=address.port)
    database = await Database.connect(settings)
    migrator = Migrator(database, settings.admin_schema)
    await migrator.apply([migrator.admin])
    leases = Leases(database, settings.admin_schema, "node", 20)
    catalog = Catalog(database, leases, migrator, settings.boundaries)
    await leases.start()
    await catalog.start()
    lease = await leases.acquire("publisher", "orders")
    assert lease is not None
    try:
        await postgres.stop()
        with pytest.raises(Unavailable), database.guard():
            await database.write.fetchval("SELECT 1")
        with pytest.raises(Unavailable):
            await catalog.list()
        postgres = EmbeddedPostgres(data_dir / "postgres", configuration={"fsync": "off", "shared_buffers": "16MB"})
        again = await postgres.start()
        assert again == address
        for pool in (database.write, database.read, database.admin):
            assert await pool.fetchval("SELECT 1") == 1
        assert lease.valid
        assert len(await catalog.list()) == 2
    finally:
        await catalog.stop()
        await leases.stop()
        await database.close()
        await postgres.stop()


def _owner(directory: str) -> str:
    return Path(directory).owner()


@pytest.fixture
async def pooler(pg_settings: Settings, data_dir: Path) -> AsyncIterator[Settings]:
    """Settings that reach PostgreSQL through a PgBouncer in transaction mode with two sessions."""
    few = "[pgbouncer]\npool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 200\nserver_round_robin = 1\n"
    async with pgbouncer(pg_settings, data_dir, few) as settings:
        yield settings


@contextlib.asynccontextmanager
async def pgbouncer(pg_settings: Settings, data_dir: Path, configured: str) -> AsyncIterator[Settings]:
    """Settings that reach PostgreSQL through a PgBouncer; ``configured`` ends with its section ``[pgbouncer]``."""
    if PGBOUNCER is None:
        pytest.skip("no pgbouncer on this machine (set ORISUN_TEST_PGBOUNCER)")
    port = free_port()
    configuration = data_dir / "pgbouncer.ini"
    configuration.write_text(
        f"{configured}listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"[databases]\n* = host={pg_settings.pg_host} port={pg_settings.pg_port} user={pg_settings.pg_user}\n"
    )
    # it refuses to be root, and only its own user may enter the directory of PostgreSQL's socket
    user = ["-u", _owner(pg_settings.pg_host)] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        PGBOUNCER, "-q", *user, str(configuration), stderr=asyncio.subprocess.DEVNULL
    )
    settings = pg_settings.model_copy(update={"pg_host": "127.0.0.1", "pg_port": port})

    async def answers() -> bool:
        with contextlib.suppress(Unavailable):
            await (await Database.connect(settings)).close()
            return True
        return False

    try:
        await eventually(answers)
        yield settings
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def test_everything_works_behind_a_pooler_in_transaction_mode(
    pooler: Settings, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings("orders", "payments", pg_host=pooler.pg_host, pg_port=pooler.pg_port)
    database, other = await Database.connect(settings), await Database.connect(settings)
    migrator = Migrator(database, settings.admin_schema)
    await asyncio.gather(*(Migrator(d, settings.admin_schema).apply([migrator.admin]) for d in (database, other) * 4))
    nodes = [Leases(d, settings.admin_schema, "node", 3) for d in (database, other)]
    catalogs = [
        Catalog(d, leases, migrator, settings.boundaries) for d, leases in zip((database, other), nodes, strict=True)
    ]
    try:
        assert database.pooled
        assert not database.cached
        with pytest.raises(FailedPrecondition, match="LISTEN hears nothing behind the pooler"):
            await database.listen_connection()
        for leases in nodes:
            await leases.start()
        await asyncio.gather(*(catalog.start() for catalog in catalogs))
        created = await catalogs[0].create("more", "", "postgres", settings.boundaries[0].schema, False)
        assert created.status.name == "ACTIVE"
        await eventually(lambda: len(catalogs[1].active()) == 4)
        taken = await asyncio.gather(*(leases.acquire_many("publisher", "abcdefgh", 8) for leases in nodes * 3))
        assert sorted(lease.boundary for leases in taken for lease in leases) == list("abcdefgh")
        values = await asyncio.gather(*(database.read.fetchval("SELECT $1::int", number) for number in range(200)))
        assert values == list(range(200))
        await asyncio.sleep(4)
        assert all(lease.valid for leases in taken for lease in leases)
    finally:
        for part in (*catalogs, *nodes):
            await part.stop()
        await database.close()
        await other.close()


async def test_the_statement_cache_behind_a_pooler_is_a_clear_mistake(pooler: Settings) -> None:
    database = await Database.connect(pooler.model_copy(update={"pg_statement_cache": "on"}))
    try:
        pool = database.read
        async with pool.acquire() as asking, pool.acquire() as one, pool.acquire() as other:
            # whoever has a transaction has one of the pooler's two sessions
            holds_one, holds_other = one.transaction(), other.transaction()
            await holds_one.start()
            await asking.fetchval("SELECT $1::int", 1)
            await holds_other.start()
            await holds_one.rollback()
            with pytest.raises(Unavailable, match="ORISUN_PG_STATEMENT_CACHE=off"), database.guard():
                await asking.fetchval("SELECT $1::int", 1)
            await holds_other.rollback()
    finally:
        await database.close()
