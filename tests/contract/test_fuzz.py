"""Whatever a client sends: a proper status, a server that lives and serves on, and nothing of a payload in its log.

The fixture ``target`` looks at the server's log in the end.
"""

from __future__ import annotations

import asyncio
import base64
import random
import secrets
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orisun_api import eventstore_pb2
from tests.contract.fuzzing import MARK, METHODS, TURNS, Code, Maker, Target, check
from tests.harness import ADMIN

T = TypeVar("T")
MIB = 1024 * 1024


def with_server(loop: asyncio.AbstractEventLoop, coroutine: Awaitable[T]) -> T:
    async def run() -> T:
        return await coroutine

    return asyncio.run_coroutine_threadsafe(run(), loop).result(60)


chances = st.randoms(use_true_random=True)
budget = hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


async def test_messages_with_any_fields(target: Target) -> None:
    loop = asyncio.get_running_loop()

    @budget
    @given(st.sampled_from(TURNS), chances)
    def run(method: MethodDescriptor, chance: random.Random) -> None:
        message = Maker(chance, target.boundary).message(method.input_type)
        check(method, with_server(loop, target.call(method, message.SerializeToString())))

    await asyncio.to_thread(run)
    await target.is_well()


async def test_bytes_that_are_no_message(target: Target) -> None:
    loop = asyncio.get_running_loop()

    def spoilt(raw: bytes, chance: random.Random) -> bytes:
        at, by = chance.randrange(len(raw) + 1), chance.randbytes(chance.randint(1, 4))
        return chance.choice([raw[:at], raw + by, raw[:at] + by + raw[at:], raw[:at] + by + raw[at + len(by) :], by])

    @budget
    @given(st.sampled_from(TURNS), chances)
    def run(method: MethodDescriptor, chance: random.Random) -> None:
        message = Maker(chance, target.boundary).message(method.input_type)
        raw = spoilt(message.SerializeToString(), chance)
        check(method, with_server(loop, target.call(method, raw)))

    await asyncio.to_thread(run)
    await target.is_well()


def _text_fields(
    descriptor: Descriptor, path: tuple[FieldDescriptor, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*path, field)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _text_fields(field.message_type, (*path, field))


async def test_each_text_of_a_good_request_made_odd(target: Target) -> None:
    """Among them texts of 3 MB."""
    for method in METHODS:
        for path in _text_fields(method.input_type):
            for odd in (MARK + "é" * 1_500_000, "", "\0", f"{MARK}\0{{}}", "x" * 256, "'; --"):
                message: Any = _good(method.input_type, target.boundary)
                inner = message
                for field in path[:-1]:
                    inner = getattr(inner, field.name)
                    if field.is_repeated:
                        inner = inner[0] if inner else inner.add()
                if path[-1].is_repeated:
                    getattr(inner, path[-1].name).append(odd)
                else:
                    setattr(inner, path[-1].name, odd)
                _, text = answer = await target.call(method, message.SerializeToString())
                check(method, answer)
                assert len(text) < 4096
    await target.is_well()


async def test_a_request_that_is_too_large(target: Target) -> None:
    (save,) = (method for method in METHODS if method.name == "SaveEvents")
    event = eventstore_pb2.EventToSave(event_id="large", event_type="Large", data=f'{{"a": "{"x" * 65 * MIB}"}}')
    request = eventstore_pb2.SaveEventsRequest(boundary=target.boundary, events=[event])
    code, _ = await target.call(save, request.SerializeToString())
    assert code is Code.RESOURCE_EXHAUSTED
    await target.is_well()


def _good(descriptor: Descriptor, boundary: str) -> Message:
    """A message with something sensible in most fields."""
    fill = {"boundary": boundary, "data": "{}", "metadata": "{}", "operator": "=", "backend": "postgres", "count": 1}
    message: Any = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if (field.containing_oneof and not field.has_presence) or field.name in (
            "command",
            "from_position",
            "subsetQuery",
        ):
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            value = fill.get(field.name, "g" + secrets.token_hex(6))
            if field.is_repeated:
                getattr(message, field.name).append("USER")
            else:
                setattr(message, field.name, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.name != "expected_position":
            inner = getattr(message, field.name)
            (inner.add() if field.is_repeated else inner).MergeFrom(_good(field.message_type, boundary))
        elif field.name == "count":
            message.count = 1
    return message


async def test_headers_of_any_kind(target: Target) -> None:
    loop = asyncio.get_running_loop()
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(str.strip)
    credentials = st.binary(max_size=30) | st.sampled_from(
        [b"admin\0:changeit", b"\0:\0", b"\xff:x", b"admin:" + b"x" * 1000]
    )
    header = st.one_of(
        st.tuples(st.just("authorization"), printable | printable.map(lambda text: f"Basic {text}")),
        st.tuples(st.just("authorization"), credentials.map(lambda raw: "Basic " + base64.b64encode(raw).decode())),
        st.tuples(st.just("x-auth-token"), printable),
        st.tuples(st.just("grpc-trace-bin"), st.binary(max_size=60)),
        st.tuples(st.just("x-anything"), printable),
    )

    @hypothesis_settings(budget, max_examples=150)
    @given(st.sampled_from(METHODS), st.lists(header, max_size=4))
    def run(method: MethodDescriptor, headers: list[tuple[str, Any]]) -> None:
        code, _ = answer = with_server(loop, target.call(method, b"", headers))
        check(method, answer)
        if method.containing_service.full_name != "grpc.health.v1.Health":
            # the second when one user name came too often; a stream may be left before it is refused
            if method.server_streaming and code is None:
                return
            assert code in (Code.UNAUTHENTICATED, Code.RESOURCE_EXHAUSTED)

    await asyncio.to_thread(run)
    await target.is_well()


def _ping() -> MethodDescriptor:
    return next(method for method in METHODS if method.name == "Ping")


async def test_headers_up_to_the_limit_are_taken(target: Target) -> None:
    headers = (*ADMIN, *((f"x-large-{number}", "x" * 1000) for number in range(12)))
    for _ in range(20):
        code, message = await target.call(_ping(), b"", headers)
        assert code is Code.OK, message


@pytest.mark.parametrize("size", [17_000, 20_000, 40_000, 55_000, 100_000, 1_000_000])
async def test_headers_that_are_too_large(target: Target, size: int) -> None:
    """They end the call, or far beyond the limit the connection that they came on; others notice nothing."""
    other = target.process.connection
    async with asyncio.timeout(30):
        stream = other.health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
        headers = (*ADMIN, *((f"x-large-{number}", "x" * 1000) for number in range(size // 1000)))
        code, message = await target.call(_ping(), b"", headers)
        if size < 60_000:
            assert code is Code.RESOURCE_EXHAUSTED, message
        else:  # the native server answers 431, as HTTP does, or it closes the connection
            assert code in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE) or "431" in message, (code, message)
        assert not stream.done()
        stream.cancel()
    await target.is_well()


@pytest.mark.parametrize(
    "path", ["/orisun.EventStore/Nothing", "/orisun.Nothing/Ping", "/nothing", "/", "/a/b/c", "//"]
)
async def test_rpcs_that_there_are_not(target: Target, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await target.channel.unary_unary(path)(b"", metadata=ADMIN, timeout=10)
    assert refused.value.code() is Code.UNIMPLEMENTED
