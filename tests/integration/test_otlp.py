"""Traces and metrics over OTLP: a call, its flush, its batch, the headers of its messages; and a collector that is not
there, comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from orisun_api import eventstore_pb2 as pb
from orisun_server.delivery.nats import Nats
from orisun_server.delivery.origins import Origins
from orisun_server.observation import Tracing
from orisun_server.settings import Settings
from tests.harness import ADMIN, Connection, eventually, free_port
from tests.integration.collector import collecting
from tests.integration.web import running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orisun_server.telemetry.otlp.LOOK", 0.2)


def save(boundary: str, *ids: str) -> pb.SaveEventsRequest:
    events = [pb.EventToSave(event_id=one, event_type="Traced", data='{"secret": "payload"}') for one in ids]
    return pb.SaveEventsRequest(boundary=boundary, events=events)


@pytest.mark.parametrize("transport", ["grpcio", "native"])
async def test_a_call_its_flush_its_batch_and_its_messages(
    make_settings: Callable[..., Settings], transport: str
) -> None:
    if transport == "native":
        pytest.importorskip("pygrpc_native")
    async with collecting() as collector:
        settings = make_settings(
            otel_enabled=True, otel_endpoint=f"127.0.0.1:{collector.port}", grpc_transport=transport
        )
        boundary = settings.boundaries[0].name
        async with running(settings) as app:
            await eventually(lambda: app.watch.tracing.active, timeout=30)
            connection = Connection(app.address)
            messages: list[dict[str, str]] = []

            async def keep(message: object) -> None:
                if message.subject.endswith(boundary):  # type: ignore[attr-defined]
                    messages.append(dict(message.headers or {}))  # type: ignore[attr-defined]

            nats = app.telemetry.sampler.nats
            await eventually(lambda: nats.connected, timeout=30)
            await nats.connection.client.subscribe("orisun.events.>", cb=keep)
            await nats.connection.client.flush()
            metadata = (*ADMIN, ("traceparent", f"00-{TRACE}-{PARENT}-01"))
            await connection.events.SaveEvents(save(boundary, "a", "b"), metadata=metadata)
            await eventually(lambda: len(messages) == 2, timeout=30)
            await connection.close()
        (call,) = [span for span in collector.spans if span.trace_id.hex() == TRACE and span.kind == 2]
        (flush,) = collector.named("orisun flush")
        (batch,) = collector.named("orisun publish")
        assert call.name == "orisun.EventStore/SaveEvents"
        assert call.parent_span_id.hex() == PARENT
        assert flush.trace_id == batch.trace_id == call.trace_id
        assert flush.parent_span_id == batch.parent_span_id == call.span_id
        expected = f"00-{TRACE}-{call.span_id.hex()}-01"
        assert [headers["traceparent"] for headers in messages] == [expected, expected]
        assert collector.resources[0]["service.name"] == "orisun"
        assert "payload" not in str(collector.spans)
        counter = collector.metrics["orisun_events_appended"].sum
        points = {point.attributes[0].value.string_value: point.as_double for point in counter.data_points}
        assert counter.is_monotonic
        assert points[boundary] == 2
        histogram = collector.metrics["orisun_commit_duration_seconds"].histogram.data_points[0]
        assert sum(histogram.bucket_counts) == histogram.count > 0


async def test_the_publisher_knows_the_calls_of_other_servers(make_settings: Callable[..., Settings]) -> None:
    async with collecting() as collector:
        settings = make_settings(otel_enabled=True, otel_endpoint=f"127.0.0.1:{collector.port}")
        boundary = settings.boundaries[0].name
        async with running(settings) as one, running(settings) as other:
            for app in (one, other):
                await eventually(lambda app=app: app.watch.tracing.active and app.telemetry.sampler.nats.connected)
            headers: dict[str, str] = {}

            async def keep(message: Msg) -> None:
                if message.subject.endswith(boundary) and message.headers:
                    _, _, event_id = message.headers["Nats-Msg-Id"].partition("-")
                    headers[event_id] = message.headers.get("traceparent", "")

            client = one.telemetry.sampler.nats.connection.client
            await client.subscribe("orisun.events.>", cb=keep)
            await client.flush()
            for number, app in enumerate((one, other)):
                connection = Connection(app.address)
                for call in range(10):
                    trace = (("traceparent", f"00-{TRACE}-{number:08x}{call + 1:08x}-01"),)
                    await connection.events.SaveEvents(save(boundary, f"{number}{call}"), metadata=(*ADMIN, *trace))
                await connection.close()
            await eventually(lambda: len(headers) == 20)
            told = [[traceparent for key, traceparent in headers.items() if key[0] == number] for number in "01"]
        calls = {f"00-{TRACE}-{span.span_id.hex()}-01" for span in collector.named("orisun.EventStore/SaveEvents")}
        # what comes too late on a machine that pauses is no mistake
        assert all(len(calls.intersection(of_server)) >= 5 for of_server in told), told
        parents = {span.parent_span_id.hex() for span in collector.named("orisun publish")}
        assert all(any(traceparent[36:52] in parents for traceparent in of_server) for of_server in told)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b'["orders",["a"]]', b'["orders",["a"],"00-x\\r\\nNats-Msg-Id: 1"]', b'["orders",7,"00"]'],
)
async def test_an_origin_that_is_none_is_not_learnt(data: bytes) -> None:
    tracing = Tracing()
    origins = Origins(Nats([]), tracing, lambda: [])
    await origins._learn(Msg(Client(), data=data))
    assert tracing.origins("orders", ["a"]) == {}
    good = f"00-{TRACE}-{PARENT}-01"
    await origins._learn(Msg(Client(), data=f'["orders",["a"],"{good}"]'.encode()))
    assert tracing.origins("orders", ["a"]) == {"a": good}


async def test_failed_and_unsampled_calls(make_settings: Callable[..., Settings]) -> None:
    async with collecting() as collector:
        settings = make_settings(
            otel_enabled=True, otel_endpoint=f"http://127.0.0.1:{collector.port}", otel_traces_per_second=0
        )
        async with running(settings) as app:
            await eventually(lambda: app.watch.tracing.active, timeout=30)
            connection = Connection(app.address)
            for flag in ("01", "00"):
                metadata = (*ADMIN, ("traceparent", f"00-{TRACE}-{PARENT}-{flag}"))
                with pytest.raises(Exception, match="not active"):
                    await connection.events.SaveEvents(save("nowhere", "a"), metadata=metadata)
            await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
            await connection.close()
        (call,) = collector.spans
        assert {pair.key: pair.value.string_value for pair in call.attributes}[
            "rpc.grpc.status"
        ] == "FAILED_PRECONDITION"


async def test_the_server_begins_a_few_traces_by_itself(make_settings: Callable[..., Settings]) -> None:
    async with collecting() as collector:
        settings = make_settings(
            otel_enabled=True, otel_endpoint=f"127.0.0.1:{collector.port}", otel_traces_per_second=3
        )
        async with running(settings) as app:
            await eventually(lambda: app.watch.tracing.active, timeout=30)
            connection = Connection(app.address)
            await asyncio.gather(*(connection.events.Ping(pb.PingRequest(), metadata=ADMIN) for _ in range(200)))
            await connection.close()
        # three at once, and three more each second that the calls took
        assert 3 <= len(collector.named("orisun.EventStore/Ping")) <= 30


async def test_a_collector_that_comes_and_goes(make_settings: Callable[..., Settings]) -> None:
    port = free_port()
    settings = make_settings(otel_enabled=True, otel_endpoint=f"127.0.0.1:{port}")
    async with running(settings) as app:
        connection = Connection(app.address)
        await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
        assert not app.watch.tracing.active
        async with collecting(port) as collector:
            await eventually(lambda: app.watch.tracing.active, timeout=30)
            await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
            await eventually(lambda: collector.named("orisun.EventStore/Ping"), timeout=30)
        await eventually(lambda: not app.watch.tracing.active, timeout=30)
        await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)
        await connection.close()
