"""The embedded PostgreSQL and nats-server: started, found again, supervised, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest

from orisun_server.embedded import Embedded
from orisun_server.embedded.nats import EmbeddedNats
from orisun_server.embedded.postgres import EmbeddedPostgres, PostgresAddress
from orisun_server.embedded.process import EmbeddedError
from orisun_server.settings import Settings
from tests.harness import eventually, free_port

pytestmark = pytest.mark.fault


def settings_in(directory: Path, **overrides: object) -> Settings:
    return Settings(data_dir=directory, nats_store_dir=directory / "nats", nats_port=free_port(), **overrides)


async def connect(address: PostgresAddress) -> asyncpg.Connection:
    return await asyncpg.connect(host=address.host, port=address.port, user=address.user, database=address.database)


async def test_starts_both_and_finds_the_data_again(data_dir: Path) -> None:
    for round_ in range(2):
        embedded = Embedded(settings_in(data_dir))
        settings = await embedded.start()
        try:
            assert not settings.embeds_postgres
            assert not settings.embeds_nats
            connection = await asyncpg.connect(host=settings.pg_host, user=settings.pg_user, database=settings.pg_name)
            await connection.execute("CREATE TABLE IF NOT EXISTS kept (round int)")
            await connection.execute("INSERT INTO kept VALUES ($1)", round_)
            assert await connection.fetchval("SELECT count(*) FROM kept") == round_ + 1
            assert await connection.fetchval("SHOW fsync") == "on"
            assert await connection.fetchval("SHOW synchronous_commit") == "on"
            assert await connection.fetchval("SHOW max_connections") == "200"
            assert await connection.fetchval("SHOW listen_addresses") == ""
            await connection.close()
            assert settings.nats_url is not None
            client = await nats.connect(settings.nats_url.get_secret_value())
            stream = client.jetstream()
            await stream.add_stream(name="kept", subjects=["kept"])
            assert (await stream.publish("kept", b"x")).seq == round_ + 1
            await client.close()
        finally:
            await embedded.stop()
    assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700
    for secret in ("nats-server.conf", "credentials"):
        assert stat.S_IMODE((data_dir / "nats" / secret).stat().st_mode) == 0o600


async def test_nats_refuses_strangers_and_listens_on_loopback_alone(data_dir: Path) -> None:
    embedded = EmbeddedNats(settings_in(data_dir))
    await embedded.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", embedded.port)
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert b"Authorization Violation" in await asyncio.wait_for(reader.read(), 30)
        writer.close()
        await writer.wait_closed()
        assert embedded.pid is not None
        addresses = {c.laddr.ip for c in psutil.Process(embedded.pid).net_connections() if c.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}
    finally:
        await embedded.stop()


async def test_nats_reserves_nothing_for_streams_with_max_bytes(data_dir: Path) -> None:
    embedded = EmbeddedNats(settings_in(data_dir))
    client = await nats.connect(await embedded.start())
    try:
        for number in range(200):
            await client.jetstream().add_stream(name=f"s{number}", subjects=[f"s{number}"], max_bytes=1 << 29)
    finally:
        await client.close()
        await embedded.stop()


async def test_a_killed_child_is_restarted_at_the_same_address(data_dir: Path) -> None:
    embedded = Embedded(settings_in(data_dir))
    settings = await embedded.start()
    try:
        assert embedded.postgres
        assert embedded.nats
        assert settings.nats_url
        for part in (embedded.postgres, embedded.nats):
            killed = part.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda part=part, killed=killed: part.pid not in (None, killed), 20)

        async def answers() -> bool:
            assert embedded.postgres
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                await (await connect(embedded.postgres.address)).close()
                return True
            return False

        await eventually(answers, 20)
        client = await nats.connect(settings.nats_url.get_secret_value())
        await client.close()
    finally:
        await embedded.stop()


async def test_children_die_with_a_killed_server_and_the_next_start_recovers(data_dir: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from orisun_server.settings import Settings\n"
        "from orisun_server.embedded import Embedded\n"
        "async def main():\n"
        "    d = Path(sys.argv[1])\n"
        "    e = Embedded(Settings(data_dir=d, nats_store_dir=d / 'nats', nats_port=0))\n"
        "    await e.start(); print('pids', e.postgres.pid, e.nats.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(data_dir), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout
    try:
        line = b""
        while not line.startswith(b"pids"):
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            assert line, "it ended"
    finally:
        process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
    children = [int(word) for word in line.split()[1:]]
    # At once: PostgreSQL may still be shutting down, and is waited for.
    embedded = Embedded(settings_in(data_dir))
    await embedded.start()
    await embedded.stop()
    await eventually(lambda: not any(map(psutil.pid_exists, children)))


async def test_a_stale_postmaster_pid_is_no_hindrance(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres")
    await postgres.start()
    await postgres.stop()
    # the number of a process that lives, and is not PostgreSQL
    (data_dir / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n{data_dir / 'postgres'}\n")
    await postgres.start()
    await postgres.stop()


async def test_two_servers_cannot_share_a_directory(data_dir: Path) -> None:
    first = EmbeddedPostgres(data_dir / "postgres")
    await first.start()
    try:
        with pytest.raises(EmbeddedError, match=f"process {os.getpid()}.*ORISUN_DATA_DIR"):
            await EmbeddedPostgres(data_dir / "postgres").start()
    finally:
        await first.stop()


async def test_a_failing_start_shows_the_log_and_leaves_nothing_running(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres", configuration={"shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedError, match=r"(?s)postgres\.log.*shared_buffers"):
        await postgres.start()
    assert postgres.pid is None


async def test_an_interrupted_initdb_is_no_database(data_dir: Path) -> None:
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").write_text("16\n")
    postgres = EmbeddedPostgres(data_dir / "postgres")
    await postgres.start()
    await postgres.stop()


@pytest.mark.parametrize("name", ["d" * 100, "with, comma", 'with "quotes"'])
async def test_a_path_that_no_socket_can_have_gets_one_elsewhere(data_dir: Path, name: str) -> None:
    postgres = EmbeddedPostgres(data_dir / name / "postgres")
    address = await postgres.start()
    try:
        assert address.host.startswith("/tmp/orisun-")
        assert len(address.host) < 60
        await (await connect(address)).close()
    finally:
        await postgres.stop()
    assert not os.path.exists(address.host)  # noqa: PTH110, ASYNC240


async def test_your_own_postgresql_conf_wins_and_is_kept(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir / "o'dir with spaces")
    await postgres.start()
    await postgres.stop()
    with (postgres.data / "postgresql.conf").open("a") as file:
        file.write("max_connections = 77\n")
    connection = await connect(await postgres.start())
    try:
        assert await connection.fetchval("SHOW max_connections") == "77"
        assert await connection.fetchval("SHOW checkpoint_timeout") == "15min"
    finally:
        await connection.close()
        await postgres.stop()
    assert (postgres.data / "postgresql.conf").read_text().count("include 'orisun.conf'") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands PostgreSQL to another user")
async def test_root_follows_no_link_that_postgres_made(data_dir: Path) -> None:
    victim = data_dir / "victim"
    victim.write_text("untouched")
    postgres = EmbeddedPostgres(data_dir / "postgres")
    await postgres.start()
    await postgres.stop()
    (postgres.data / "orisun.conf").unlink()
    (postgres.data / "orisun.conf").symlink_to(victim)
    with pytest.raises(EmbeddedError):
        await postgres.start()
    assert victim.read_text() == "untouched"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands PostgreSQL to another user")
async def test_a_place_that_others_cannot_reach_is_linked_from_or_refused(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orisun_server.embedded import place

    shared, home = data_dir / "shared", data_dir / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setattr(place, "SHARED", shared)
    for _ in range(2):  # the second start follows the link
        postgres = EmbeddedPostgres(home / "data" / "postgres")
        await postgres.start()
        assert postgres.data.is_relative_to(shared)
        await postgres.stop()
    assert (home / "data" / "postgres").is_symlink()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    (home / "other").mkdir()
    with pytest.raises(EmbeddedError, match=r"cannot be reached by the user.*ORISUN_DATA_DIR"):
        await EmbeddedPostgres(home / "other").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands PostgreSQL to another user")
async def test_binaries_that_others_cannot_reach_are_copied(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orisun_server.embedded import place
    from orisun_server.embedded.account import Account

    monkeypatch.setattr(place, "SHARED", data_dir / "shared")
    usable = place._usable
    monkeypatch.setattr(place, "_usable", lambda at, who: at.is_relative_to(data_dir) and usable(at, who))
    postgres = EmbeddedPostgres(data_dir / "postgres")
    await postgres.start()
    assert postgres.pid is not None
    assert Path(psutil.Process(postgres.pid).exe()).is_relative_to(data_dir / "shared")
    await postgres.stop()
    assert isinstance(postgres._account, Account)


async def test_an_explicit_nats_port_that_is_taken_is_named(data_dir: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(EmbeddedError, match=f"ORISUN_NATS_PORT={port} is taken"):
        await EmbeddedNats(Settings(nats_store_dir=data_dir / "nats", nats_port=port)).start()
    server.close()
    await server.wait_closed()
