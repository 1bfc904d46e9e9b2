"""Health, reflection, the limits of the transport and its orderly end, on both transports."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from orisun_api import eventstore_pb2 as pb
from orisun_server.app import App
from orisun_server.core.users import Caller, Session
from orisun_server.errors import Unavailable
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from orisun_server.storage.names import BoundaryNames
from orisun_server.transport.health import HealthState
from orisun_server.transport.server import GrpcServer, TransportError
from orisun_server.transport.waiting import waiting_server
from tests.harness import ADMIN, Connection, eventually, free_port
from tests.integration.test_auth import refusal

Status = health_pb2.HealthCheckResponse
TRANSPORTS = ["grpcio", "native"]


@pytest.fixture(params=TRANSPORTS)
async def served(
    request: pytest.FixtureRequest,
    make_settings: Callable[..., Settings],
    make_server: Callable[..., Awaitable[Connection]],
) -> tuple[Connection, Settings]:
    settings = make_settings(grpc_transport=request.param)
    return await make_server(settings), settings


class Nobody:
    """Lets nobody in: for servers on which only health is asked."""

    async def authenticate(self, authorization: str | None, token: str | None) -> Session:
        raise Unavailable

    def is_valid(self, caller: Caller) -> bool:
        return False


@pytest.fixture(params=TRANSPORTS)
async def bare(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Connection, HealthState]]:
    """A transport with health alone."""
    state = HealthState()
    settings = Settings(grpc_host="127.0.0.1", grpc_port=0, grpc_transport=request.param)
    server = GrpcServer(settings, [], Nobody(), state)
    await server.start()
    connection = Connection(f"127.0.0.1:{server.port}")
    yield connection, state
    await connection.close()
    await server.stop(0)


async def check(connection: Connection, service: str = "") -> Any:
    return (await connection.health.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("service", ["", "orisun.EventStore", "orisun.Admin"])
async def test_check_follows_storage_and_not_delivery(bare: tuple[Connection, HealthState], service: str) -> None:
    connection, state = bare
    assert await check(connection, service) == Status.NOT_SERVING
    state.set_storage(True)
    assert await check(connection, service) == Status.SERVING
    assert state.degraded
    state.set_delivery(True)
    assert not state.degraded
    state.set_delivery(False, "NATS is unreachable")
    assert await check(connection, service) == Status.SERVING
    state.set_storage(False, "PostgreSQL is unreachable")
    assert await check(connection, service) == Status.NOT_SERVING


async def test_an_unknown_service(bare: tuple[Connection, HealthState]) -> None:
    assert await refusal(check(bare[0], "orisun.Nothing")) == (grpc.StatusCode.NOT_FOUND, "unknown service")


async def test_watch_tells_each_change(bare: tuple[Connection, HealthState]) -> None:
    connection, state = bare
    stream = connection.health.Watch(health_pb2.HealthCheckRequest())
    assert (await stream.read()).status == Status.NOT_SERVING
    state.set_storage(True)
    assert (await stream.read()).status == Status.SERVING
    state.set_delivery(True)
    state.set_storage(False)
    assert (await stream.read()).status == Status.NOT_SERVING
    stream.cancel()
    unknown = connection.health.Watch(health_pb2.HealthCheckRequest(service="orisun.Nothing"))
    assert (await unknown.read()).status == Status.SERVICE_UNKNOWN
    unknown.cancel()


async def test_a_running_server_is_serving(served: tuple[Connection, Settings]) -> None:
    connection, _ = served
    for service in ("", "orisun.EventStore", "orisun.Admin"):
        assert await check(connection, service) == Status.SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes(served: tuple[Connection, Settings], version: str) -> None:
    connection, _ = served
    call: Any = connection.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    stream = call(metadata=ADMIN)
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await stream.read()).list_services_response.service}
    assert names == {
        "orisun.EventStore",
        "orisun.Admin",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in sorted(names):
        await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        assert (await stream.read()).file_descriptor_response.file_descriptor_proto, name
    await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="orisun.Nothing"))
    assert (await stream.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    await stream.done_writing()


async def test_reflection_can_be_turned_off(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    connection = await make_server(make_settings(grpc_enable_reflection=False))
    stream: Any = connection.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")

    async def code() -> grpc.StatusCode | None:
        found, message = await refusal(stream(iter([b""]), metadata=ADMIN).read())
        # grpc.aio's client, when a stream was refused before all was written
        return None if message == "Internal error from Core" else found

    assert await eventually(code) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_over_the_limit(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    for transport in TRANSPORTS:
        settings = make_settings(grpc_transport=transport, grpc_max_request_bytes=1024 * 1024)
        connection = await make_server(settings)
        events = [pb.EventToSave(event_id="a", event_type="T", data=json.dumps({"a": "x" * 1024 * 1024}))]
        request = pb.SaveEventsRequest(boundary=settings.boundaries[0].name, events=events)
        code, _ = await refusal(connection.events.SaveEvents(request, metadata=ADMIN))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, transport
        await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)


async def test_ten_thousand_calls_at_once_are_all_taken(served: tuple[Connection, Settings]) -> None:
    connection, settings = served
    connections = [connection, *(Connection(connection.address) for _ in range(3))]

    async def save(number: int) -> None:
        events = [pb.EventToSave(event_id=str(number), event_type="T")]
        request = pb.SaveEventsRequest(boundary=settings.boundaries[0].name, events=events)
        await connections[number % 4].events.SaveEvents(request, metadata=ADMIN)

    await asyncio.gather(*(save(number) for number in range(10_000)))
    for extra in connections[1:]:
        await extra.close()


async def test_a_taken_port_is_told(bare: tuple[Connection, HealthState]) -> None:
    port = int(bare[0].address.rpartition(":")[2])
    for transport in TRANSPORTS:
        settings = Settings(grpc_host="127.0.0.1", grpc_port=port, grpc_transport=transport)
        with pytest.raises(TransportError, match=f"127.0.0.1:{port} .*ORISUN_GRPC_PORT"):
            await GrpcServer(settings, [], Nobody(), HealthState()).start()


async def test_native_has_no_tls() -> None:
    settings = Settings(grpc_host="127.0.0.1", grpc_port=0, grpc_transport="native", grpc_tls_enabled=True)
    with pytest.raises(TransportError, match='ORISUN_GRPC_TRANSPORT: "native" has no TLS'):
        await GrpcServer(settings, [], Nobody(), HealthState()).start()


async def test_auto_takes_native() -> None:
    server = GrpcServer(
        Settings(grpc_host="127.0.0.1", grpc_port=0, grpc_transport="auto"), [], Nobody(), HealthState()
    )
    await server.start()
    assert server.transport == "native"
    await server.stop(0)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_stop_ends_streams_with_unavailable(transport: str) -> None:
    state = HealthState()
    state.set_storage(True)
    server = GrpcServer(Settings(grpc_host="127.0.0.1", grpc_port=0, grpc_transport=transport), [], Nobody(), state)
    await server.start()
    connection = Connection(f"127.0.0.1:{server.port}")
    streams = [connection.health.Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
    for stream in streams:
        assert (await stream.read()).status == Status.SERVING
    stopping = asyncio.create_task(server.stop(10))
    for stream in streams:
        code, message = await refusal(_drain(stream))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in message
    await asyncio.wait_for(stopping, 30)
    assert not await connection.is_serving()
    await connection.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_calls_until_the_server_is_ready_is_told_to_call_again(transport: str) -> None:
    """Also when the port changes hands: no client repeats CANCELLED, which grpcio has for calls that it drops."""
    settings = Settings(grpc_host="127.0.0.1", grpc_port=free_port(), grpc_transport=transport)
    connection = Connection(f"127.0.0.1:{settings.grpc_port}")
    codes = Counter[grpc.StatusCode]()

    async def call() -> None:
        while True:
            codes[(await refusal(connection.events.Ping(pb.PingRequest(), metadata=ADMIN)))[0]] += 1

    async with waiting_server(settings, HealthState()):
        callers = [asyncio.create_task(call()) for _ in range(50)]
        await eventually(lambda: codes.total() > 200)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await connection.close()
    assert codes.keys() == {grpc.StatusCode.UNAVAILABLE}, codes


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_stop_finishes_what_was_taken(
    make_settings: Callable[..., Settings], database: Database, transport: str
) -> None:
    settings = make_settings(grpc_transport=transport)
    app = App(settings)
    await app.start()
    connection = Connection(app.address)
    boundary = settings.boundaries[0]
    names = BoundaryNames(boundary.schema, boundary.name)
    request = pb.SaveEventsRequest(boundary=boundary.name, events=[pb.EventToSave(event_id="a", event_type="T")])
    async with database.admin.acquire() as blocker:
        async with blocker.transaction():
            await blocker.execute(f"LOCK TABLE {names.q_events} IN ACCESS EXCLUSIVE MODE")
            saving = asyncio.ensure_future(connection.events.SaveEvents(request, metadata=ADMIN))
            await eventually(
                # the append itself: others wait for the table too
                lambda: database.read.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1",
                    f"%{names.append}%",
                )
            )
            stopping = asyncio.create_task(app.stop())

            async def refused() -> bool:
                return not await connection.is_serving()

            await eventually(refused)
            assert not saving.done()
            assert not stopping.done()
        assert (await saving).log_position.commit_position == 1
    await stopping
    await connection.close()


async def _drain(stream: Any) -> None:
    # perhaps NOT_SERVING first
    while True:
        await stream.read()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_many_slow_clients_stall_only_themselves(
    make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]], transport: str
) -> None:
    settings = make_settings(grpc_transport=transport)
    connection = await make_server(settings)
    boundary = settings.boundaries[0].name
    text = json.dumps({"a": "x" * 100_000})
    events = [pb.EventToSave(event_id=str(number), event_type="T", data=text) for number in range(60)]
    await connection.events.SaveEvents(pb.SaveEventsRequest(boundary=boundary, events=events), metadata=ADMIN)

    def subscribe(name: str) -> Any:
        request = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name=name)
        return connection.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)

    slow = [subscribe(f"slow{number}") for number in range(40)]
    for stream in slow:
        await stream.read()
    quick = subscribe("quick")

    async def read_all(stream: Any, count: int) -> list[str]:
        return [(await stream.read()).event_id for _ in range(count)]

    wanted = [str(number) for number in range(60)]
    assert await asyncio.wait_for(read_all(quick, 60), 60) == wanted
    await asyncio.wait_for(connection.events.Ping(pb.PingRequest(), metadata=ADMIN), 30)
    assert await asyncio.wait_for(read_all(slow[0], 59), 60) == wanted[1:]
    for stream in (*slow, quick):
        stream.cancel()


GRPCURL = os.environ.get("ORISUN_TEST_GRPCURL") or shutil.which("grpcurl")


@pytest.mark.skipif(GRPCURL is None, reason="grpcurl is neither on PATH nor named by ORISUN_TEST_GRPCURL")
async def test_grpcurl_lists_describes_and_calls(served: tuple[Connection, Settings]) -> None:
    connection, settings = served

    async def grpcurl(*arguments: str) -> str:
        command = [str(GRPCURL), "-plaintext", "-H", f"{ADMIN[0][0]}: {ADMIN[0][1]}", *arguments]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert set((await grpcurl(connection.address, "list")).split()) >= {"orisun.EventStore", "orisun.Admin"}
    described = await grpcurl(connection.address, "describe", "orisun.EventStore")
    assert re.search(r"rpc SaveEvents \( \.orisun\.SaveEventsRequest \) returns \( \.orisun\.WriteResult \)", described)
    request = {
        "boundary": settings.boundaries[0].name,
        "query": {"expected_position": {"transaction_id": -1, "global_id": -1}},
        "events": [{"event_id": "user-001", "event_type": "UserRegistered", "data": "{}", "metadata": "{}"}],
    }
    saved = json.loads(await grpcurl("-d", json.dumps(request), connection.address, "orisun.EventStore/SaveEvents"))
    # as the documents print it; releases of grpcurl differ in what they print beside it
    assert {key: value for key, value in saved.items() if "osition" not in key} == {
        "new_global_id": "0",
        "latest_transaction_id": "1",
        "latest_global_id": "0",
    }


async def test_health_is_unready_without_postgresql(
    data_dir: Path, make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    from orisun_server.embedded.postgres import EmbeddedPostgres

    own = EmbeddedPostgres(data_dir / "postgres", configuration={"fsync": "off"})
    address = await own.start()
    try:
        settings = make_settings(pg_host=address.host, pg_port=address.port, pg_user=address.user)
        connection = await make_server(settings)
        assert await connection.is_serving("orisun.EventStore")
        await own.stop()

        async def unready() -> bool:
            return bool(await check(connection, "orisun.EventStore") == Status.NOT_SERVING)

        await eventually(unready, timeout=10)
        # tokens and known passwords do not need PostgreSQL
        await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
        await own.start()
        await eventually(lambda: connection.is_serving("orisun.EventStore"), timeout=20)
    finally:
        await own.stop()
