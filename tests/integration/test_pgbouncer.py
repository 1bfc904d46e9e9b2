"""Whole servers behind a real PgBouncer in transaction mode, with and without a direct way for LISTEN."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.delivery.signals import Signals
from orisun_server.errors import FailedPrecondition
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from tests.harness import ADMIN, Connection, environment, eventually
from tests.integration.test_auth import code_of, new_user
from tests.integration.test_database import pgbouncer, pooler  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
Code = grpc.StatusCode
MakeServer = Callable[..., Awaitable[Connection]]


def save(boundary: str, event_id: str, expected: tuple[int, int] | None = None) -> pb.SaveEventsRequest:
    request = pb.SaveEventsRequest(boundary=boundary)
    request.events.add(event_id=event_id, event_type="Placed", data='{"order": "1"}')
    if expected is not None:
        request.query.expected_position.CopyFrom(pb.Position(commit_position=expected[0], prepare_position=expected[1]))
        request.query.criteria.add().tags.add(key="order", value="1")
    return request


async def test_everything_a_server_does(
    pooler: Settings,  # noqa: F811
    make_settings: Callable[..., Settings],
    make_server: MakeServer,
) -> None:
    settings = make_settings(pg_host=pooler.pg_host, pg_port=pooler.pg_port, publisher_poll_interval="200ms")
    await everything(await make_server(settings), await make_server(settings), settings)


async def everything(one: Connection, two: Connection, settings: Settings) -> None:
    """What touches PostgreSQL, on two servers of one store whose boundary is empty."""
    boundary = settings.boundaries[0].name
    follow = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="follower")
    stream = two.events.CatchUpSubscribeToEvents(follow, metadata=ADMIN)
    await stream.initial_metadata()
    index = pb.CreateIndexRequest(boundary=boundary, name="order", fields=[pb.IndexField(json_key="order")])
    await one.events.CreateIndex(index, metadata=ADMIN)
    first = await one.events.SaveEvents(save(boundary, "a", (-1, -1)), metadata=ADMIN)
    assert await code_of(two.events.SaveEvents(save(boundary, "b", (-1, -1)), metadata=ADMIN)) is Code.ALREADY_EXISTS
    at = (first.log_position.commit_position, first.log_position.prepare_position)
    await two.events.SaveEvents(save(boundary, "b", at), metadata=ADMIN)
    await asyncio.gather(
        *(server.events.SaveEvents(save(boundary, f"{number}{server.address}"), metadata=ADMIN)
          for number in range(100) for server in (one, two))
    )  # fmt: skip
    seen = [(await asyncio.wait_for(stream.read(), 30)).position.prepare_position for _ in range(202)]
    assert seen == list(range(202))
    count = await two.admin.GetEventCount(admin_pb2.GetEventCountRequest(boundary=boundary), metadata=ADMIN)
    assert count.count == 202

    async def built() -> bool:
        request = pb.GetIndexRequest(boundary=boundary, name="order")
        state = (await two.events.GetIndex(request, metadata=ADMIN)).index.state
        return bool(state == pb.INDEX_STATE_READY)

    await eventually(built)
    user, credentials = await new_user(one, "READER")
    await eventually(lambda: _is_ok(two.events.Ping(pb.PingRequest(), metadata=credentials)))
    await two.admin.DeleteUser(admin_pb2.DeleteUserRequest(user_id=user.user_id), metadata=ADMIN)
    placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=settings.boundaries[0].schema)
    request = admin_pb2.CreateBoundaryRequest(name=f"{boundary}_x", placement=placement)
    made = await two.admin.CreateBoundary(request, metadata=ADMIN)
    assert made.boundary.status == admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE
    await eventually(lambda: _is_ok(one.events.SaveEvents(save(f"{boundary}_x", "a"), metadata=ADMIN)))


async def test_commands_that_ask_postgresql_themselves(
    pooler: Settings,  # noqa: F811
    make_settings: Callable[..., Settings],
    make_server: MakeServer,
    tmp_path: Path,
) -> None:
    settings = make_settings(pg_host=pooler.pg_host, pg_port=pooler.pg_port)
    server = await make_server(settings)
    one = settings.boundaries[0]
    await server.events.SaveEvents(save(one.name, "a"), metadata=ADMIN)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORISUN_")}
    who = {"ORISUN_SERVER": server.address, "ORISUN_CLIENT_USERNAME": "admin", "ORISUN_CLIENT_PASSWORD": "changeit"}

    async def orisun(*arguments: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orisun", *arguments, env=inherited | environment(settings) | who,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, out.decode()
        return out.decode()

    states = json.loads(await orisun("migrate", "status", "-o", "json"))
    assert {state["state"] for state in states} == {"up to date"}
    assert await orisun("migrate", "plan", "-o", "json") == "[]\n"
    await orisun("archive", one.name, "--schema", one.schema, "--output", str(tmp_path))
    (line,) = gzip.decompress((tmp_path / f"{one.name}.jsonl.gz").read_bytes()).decode().splitlines()
    assert json.loads(line)["event_id"] == "a"
    # the tests' PostgreSQL does not sync what it writes
    found = {check["check"]: check["level"] for check in json.loads(await orisun("doctor", "-o", "json", code=1))}
    assert [name for name, level in found.items() if level == "problem"] == ["PostgreSQL's fsync"]
    assert found["PostgreSQL"] == found["schema"] == "ok"


async def test_the_documented_configuration(
    pg_settings: Settings, make_settings: Callable[..., Settings], make_server: MakeServer, data_dir: Path
) -> None:
    (ini,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    # where PostgreSQL is alone is the test's own
    ours = re.sub(r"^orisun = .*\n", "", ini, flags=re.MULTILINE)
    assert ours != ini
    async with pgbouncer(pg_settings, data_dir, ours) as through:
        settings = make_settings(pg_host=through.pg_host, pg_port=through.pg_port)
        server = await make_server(settings)
        boundary = settings.boundaries[0].name
        calls = (server.events.SaveEvents(save(boundary, str(number)), metadata=ADMIN) for number in range(50))
        await asyncio.gather(*calls)
        count = await server.admin.GetEventCount(admin_pb2.GetEventCountRequest(boundary=boundary), metadata=ADMIN)
        assert count.count == 50


@pytest.mark.parametrize("direct", [True, False])
async def test_listen_goes_a_direct_way_when_it_is_given(
    pooler: Settings,  # noqa: F811
    pg_settings: Settings,
    direct: bool,
) -> None:
    given = {"pg_direct_host": pg_settings.pg_host, "pg_direct_port": pg_settings.pg_port} if direct else {}
    database = await Database.connect(pooler.model_copy(update=given))
    heard: asyncio.Queue[str | None] = asyncio.Queue()
    speaker, listener = (Signals(database, "admin_x", enabled=True) for _ in range(2))
    listener.on_signal(heard.put_nowait)
    try:
        assert database.can_listen == direct
        await listener.start()
        await speaker.start()
        if direct:
            assert await asyncio.wait_for(heard.get(), 30) is None
            speaker.send("orders")
            assert await asyncio.wait_for(heard.get(), 30) == "orders"
    finally:
        await speaker.stop()
        await listener.stop()
        await database.close()


async def test_a_direct_way_that_leads_to_the_pooler_is_said(pooler: Settings) -> None:  # noqa: F811
    settings = pooler.model_copy(update={"pg_direct_host": pooler.pg_host, "pg_direct_port": pooler.pg_port})
    database = await Database.connect(settings)
    try:
        with pytest.raises(FailedPrecondition, match="ORISUN_PG_DIRECT_HOST and _PORT lead to a pooler"):
            await database.listen_connection()
    finally:
        await database.close()


async def _is_ok(call: Awaitable[object]) -> bool:
    return await code_of(call) is Code.OK
