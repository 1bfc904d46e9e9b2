"""docs/backup.md, carried out: a dump and a point in time, each restored beside the JetStream of before."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.app import App
from orisun_server.embedded import place
from orisun_server.embedded.postgres import EmbeddedPostgres, PostgresAddress
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, eventually
from tests.integration.test_auth import new_user, refusal

STORED, LOST = 30, 10
_SMALL = {"fsync": "off", "shared_buffers": "16MB"}


async def tool(name: str, *arguments: str) -> None:
    """Runs one of PostgreSQL's programs, of the embedded version, as the guide does."""
    process = await asyncio.create_subprocess_exec(
        str(place.binaries(None) / name), *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


def older_and_newer() -> list[Path | None]:
    """Two PostgreSQL by age: the embedded one twice, or it and the one that the tests run on (ORISUN_TEST_PG_BIN)."""
    other = os.environ.get("ORISUN_TEST_PG_BIN")
    return sorted([None, Path(other) if other else None], key=_major)


def _major(binaries: Path | None) -> int:
    said = subprocess.check_output([(binaries or place.binaries(None)) / "postgres", "--version"], text=True)
    found = re.search(r"\d+", said)
    assert found, said
    return int(found[0])


def _at(address: PostgresAddress) -> list[str]:
    return ["--host", address.host, "--port", str(address.port), "--username", address.user]


class Dump:
    """`pg_dump` while the server runs, `pg_restore` into a new PostgreSQL, of the same version or a later one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._older, self._newer = older_and_newer()
        self._before: EmbeddedPostgres | None = None

    async def begin(self) -> PostgresAddress:
        self._before = EmbeddedPostgres(self._directory / "before", binaries=self._older, configuration=_SMALL)
        return await self._before.start()

    async def prepare(self) -> None:
        """Nothing: a dump is taken when it is wanted."""

    async def mark(self) -> None:
        assert self._before is not None
        file = str(self._directory / "orisun.dump")
        await tool("pg_dump", *_at(self._before.address), "--format=custom", "--file", file, "orisun")

    async def restore(self) -> EmbeddedPostgres:
        assert self._before is not None
        await self._before.stop()
        after = EmbeddedPostgres(self._directory / "after", binaries=self._newer, configuration=_SMALL)
        file = str(self._directory / "orisun.dump")
        await tool("pg_restore", *_at(await after.start()), "--no-owner", "--dbname", "orisun", file)
        return after


class PointInTime(Dump):
    """`pg_basebackup`, an archive of the write-ahead log, and recovery up to a point."""

    async def begin(self) -> PostgresAddress:
        self._archive = self._directory / "archive"
        self._archive.mkdir(mode=0o777)
        self._archive.chmod(0o777)
        configuration = {**_SMALL, "archive_mode": "on", "archive_command": f"cp %p {self._archive}/%f"}
        self._before = EmbeddedPostgres(self._directory / "before", configuration=configuration)
        return await self._before.start()

    async def prepare(self) -> None:
        assert self._before is not None
        copy = str(self._directory / "after")
        options = ["--pgdata", copy, "--checkpoint=fast", "--wal-method=none"]
        await tool("pg_basebackup", *_at(self._before.address), *options)

    async def mark(self) -> None:
        await self._execute("SELECT pg_create_restore_point('wanted')")

    async def restore(self) -> EmbeddedPostgres:
        assert self._before is not None
        await self._execute("SELECT pg_switch_wal()")
        await self._before.stop()
        owner, after = self._before.data.stat(), self._directory / "after"
        (after / "recovery.signal").touch()
        if os.geteuid() == 0:
            for path in (after, *after.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid)
        postgres = EmbeddedPostgres(
            after,
            configuration={
                **_SMALL,
                "restore_command": f"cp {self._archive}/%f %p",
                "recovery_target_name": "wanted",
                "recovery_target_action": "promote",
            },
        )
        await postgres.start()
        await eventually(lambda: self._is_promoted(postgres), timeout=30)
        return postgres

    async def _is_promoted(self, postgres: EmbeddedPostgres) -> bool:
        return not await self._execute("SELECT pg_is_in_recovery()", postgres)

    async def _execute(self, statement: str, postgres: EmbeddedPostgres | None = None) -> Any:
        address = (postgres or self._before).address  # type: ignore[union-attr]
        connection = await asyncpg.connect(host=address.host, user=address.user, database=address.database)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Connection]:
    app = App(settings)
    await app.start()
    connection = Connection(app.address)
    try:
        yield connection
    finally:
        await connection.close()
        await app.stop()


async def save(connection: Connection, boundary: str, numbers: range) -> pb.Position:
    for number in numbers:
        request = pb.SaveEventsRequest(boundary=boundary)
        request.events.add(event_id=f"event{number}", event_type="A", data=f'{{"key": "{number}"}}')
        answer = await connection.events.SaveEvents(request, metadata=ADMIN)
    position: pb.Position = answer.log_position
    return position


async def follow(connection: Connection, boundary: str, count: int) -> list[str]:
    request = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="follower")
    stream = connection.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)
    seen = [(await asyncio.wait_for(stream.read(), 20)).event_id for _ in range(count)]
    stream.cancel()
    return seen


@pytest.mark.fault
@pytest.mark.parametrize("way", [Dump, PointInTime])
async def test_a_restore_beside_a_surviving_jetstream(
    way: type[Dump], data_dir: Path, make_settings: Callable[..., Settings]
) -> None:
    backup = way(data_dir)
    address = await backup.begin()
    settings = make_settings(pg_host=address.host, pg_port=address.port)
    boundary = settings.boundaries[0].name
    async with serving(settings) as before:
        await save(before, boundary, range(10))
        await backup.prepare()
        user, credentials = await new_user(before, "READER")
        field = pb.IndexField(json_key="key")
        await before.events.CreateIndex(
            pb.CreateIndexRequest(boundary=boundary, name="k", fields=[field]), metadata=ADMIN
        )
        await eventually(lambda: is_ready(before, boundary))
        await save(before, boundary, range(10, STORED))
        await backup.mark()
        last = await save(before, boundary, range(STORED, STORED + LOST))
        # JetStream has what PostgreSQL is going to lose
        assert len(await follow(before, boundary, STORED + LOST)) == STORED + LOST
    postgres = await backup.restore()
    try:
        restored = postgres.address
        async with serving(settings.model_copy(update={"pg_host": restored.host, "pg_port": restored.port})) as after:
            count = admin_pb2.GetEventCountRequest(boundary=boundary)
            assert (await after.admin.GetEventCount(count, metadata=ADMIN)).count == STORED
            await after.events.Ping(pb.PingRequest(), metadata=credentials)
            assert await is_ready(after, boundary)
            # whoever has seen what is gone is told so
            beyond = pb.CatchUpSubscribeToEventStoreRequest(
                boundary=boundary, subscriber_name="ahead", after_position=last
            )
            stream = after.events.CatchUpSubscribeToEvents(beyond, metadata=ADMIN)
            assert (await refusal(stream.read()))[0] is grpc.StatusCode.OUT_OF_RANGE
            position = await save(after, boundary, range(100, 101))
            assert (position.commit_position, position.prepare_position) == (STORED + 1, STORED)
            seen = await follow(after, boundary, STORED + 1)
            assert seen == [f"event{number}" for number in (*range(STORED), 100)]
            # and live: the stream was made anew
            following = asyncio.create_task(follow(after, boundary, STORED + 6))
            await save(after, boundary, range(101, 106))
            assert (await following)[-5:] == [f"event{number}" for number in range(101, 106)]
            users = (await after.admin.ListUsers(admin_pb2.ListUsersRequest(), metadata=ADMIN)).users
            assert user in users
            assert (await after.admin.GetEventCount(count, metadata=ADMIN)).count == STORED + 6
    finally:
        await postgres.stop()


async def is_ready(connection: Connection, boundary: str) -> bool:
    request = pb.GetIndexRequest(boundary=boundary, name="k")
    return bool((await connection.events.GetIndex(request, metadata=ADMIN)).index.state == pb.INDEX_STATE_READY)
