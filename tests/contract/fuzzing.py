"""Requests of any kind, good and odd, and a server in a process of its own to send them to."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from orisun_api import admin_pb2, eventstore_pb2
from orisun_server.settings import Settings
from tests.harness import ADMIN, ServerProcess

PRIVATE = {"data", "metadata"}
SECRET = {"password", "current_password", "new_password"}
Code = grpc.StatusCode

#: In every payload and password that is sent here, and never in a log.
MARK = "PAYLOAD" + secrets.token_hex(4)

#: What a client may have deserved. Not among them: UNKNOWN, INTERNAL, UNAVAILABLE, ABORTED, DATA_LOSS.
PROPER = {
    None,
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.FAILED_PRECONDITION,
    Code.OUT_OF_RANGE,
    Code.PERMISSION_DENIED,
    Code.UNAUTHENTICATED,
    Code.UNIMPLEMENTED,
    Code.RESOURCE_EXHAUSTED,
}

METHODS: list[MethodDescriptor] = [
    method
    for file in (eventstore_pb2, admin_pb2, reflection_pb2, health_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


#: To choose from: what takes the most has the most turns.
TURNS = METHODS + 3 * [
    method
    for method in METHODS
    if method.name in ("SaveEvents", "GetEvents", "GetLatestByCriteria", "CatchUpSubscribeToEvents", "CreateIndex")
]


class Target:
    """A server in a process of its own, and calls with bytes of any kind."""

    def __init__(self, process: ServerProcess, boundary: str, settings: Settings) -> None:
        self.process, self.boundary, self.settings = process, boundary, settings
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(process.address, options=options)

    async def call(self, method: MethodDescriptor, raw: bytes, metadata: Any = ADMIN) -> tuple[Code | None, str]:
        """Code and message; a stream is left after its first message or a moment, with None."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            if method.server_streaming:
                stream = (
                    self.channel.stream_stream(path) if method.client_streaming else self.channel.unary_stream(path)
                )
                call: Any = stream(iter([raw]) if method.client_streaming else raw, metadata=metadata, timeout=20)
                try:
                    async with asyncio.timeout(0.06):
                        await call.read()
                except TimeoutError:
                    pass
                finally:
                    call.cancel()
                return None, ""
            await self.channel.unary_unary(path)(raw, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            if error.details() == "Internal error from Core":
                # grpc.aio's client, when a stream was refused before all was written
                return await self.call(method, raw, metadata)
            return error.code(), error.details() or ""
        return Code.OK, ""

    async def is_well(self) -> None:
        """It runs, and serves within a moment."""
        assert self.process.returncode is None, self.process.logs
        ping, save = (next(method for method in METHODS if method.name == name) for name in ("Ping", "SaveEvents"))
        async with asyncio.timeout(10):
            assert (await self.call(ping, b""))[0] is Code.OK
        event = eventstore_pb2.EventToSave(event_id=secrets.token_hex(8), event_type="Well", data='{"well": true}')
        request = eventstore_pb2.SaveEventsRequest(boundary=self.boundary, events=[event])
        async with asyncio.timeout(10):
            assert (await self.call(save, request.SerializeToString()))[0] is Code.OK


def check(method: MethodDescriptor, answer: tuple[Code | None, str]) -> None:
    code, message = answer
    assert code in PROPER, (method.full_name, code, message)
    assert "Traceback" not in message
    assert 'File "' not in message


class Maker:
    """Makes requests: most fields are good ones, so that the odd ones get far.

    ``chance`` decides; Hypothesis seeds it, and its own choices would be small and empty too often to get anywhere.
    """

    def __init__(self, chance: random.Random, boundary: str) -> None:
        self._chance, self._boundary = chance, boundary
        self._pick = chance.choice

    def message(self, descriptor: Descriptor, depth: int = 4) -> Message:
        made: Any = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if field.type == FieldDescriptor.TYPE_MESSAGE and not depth:
                continue
            is_rare = field.name in RARE or field.containing_oneof
            if self._chance.random() < (0.7 if is_rare else 0.04):
                continue
            values = [self._value(field, depth) for _ in range(self._pick([1, 1, 2, 3]) if field.is_repeated else 1)]
            made.MergeFrom(type(made)(**{field.name: values if field.is_repeated else values[0]}))
        return made  # type: ignore[no-any-return]

    def _value(self, field: FieldDescriptor, depth: int) -> Any:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return self.message(field.message_type, depth - 1)
        is_odd = self._chance.random() < 0.08
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._pick(odd_texts(field)) if is_odd else self._good(field)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._chance.randbytes(10)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return is_odd
        limits = {FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1), FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1)}
        low, high = limits.get(field.type, (-(2**31), 2**31 - 1))
        number = self._pick(ODD_NUMBERS) if is_odd else self._pick([1, 1, 0])
        return min(max(number, low), high)

    def _good(self, field: FieldDescriptor) -> str:
        if field.name == "boundary":
            return self._boundary
        if field.name == "name" and field.containing_type.name in ("GetIndexRequest", "DropIndexRequest"):
            return self._pick(["known", "other"])
        return self._pick(GOOD.get(field.name, ["known", f"g{self._chance.randrange(10**9)}"]))


#: Fields that exclude others, or end all that comes after.
RARE = {"command", "from_position", "after_position", "subsetQuery", "expected_position"}

_JSON = ["{}", f'{{"a": "{MARK}", "b": 1}}', f'{{"a": 1, "b": ["{MARK}", null]}}']
GOOD = {
    "data": _JSON,
    "metadata": _JSON,
    "roles": ["ADMIN", "user", "Reader"],
    "operator": ["=", ">", "<=", "<", ">="],
    "backend": ["postgres"],
    "namespace": ["fuzz"],
    "event_type": ["A", "B"],
    "key": ["a", "eventType", "b"],
    "json_key": ["a", "eventType", "b"],
    "value": ["A", MARK, "1"],
    **{name: [MARK] for name in SECRET},
}

ODD_NUMBERS = [0, 1, -1, 2, 3, 100, 10_000, 10_001, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**40]
ODD_TEXTS = [
    "", " ", "\0", "a\0b", "%", "'", '"', "\\", "a*b.>", "$JS.API", "é" * 127, "x" * 300, "null", "-1", "1b", "a-b",
    "x" * 63, "x" * 64, "a b", "pg_catalog", "\u202e", "\U0010ffff", "\x7f", "a\r\nb", "{}", "1e999", "orisun",
]  # fmt: skip
ODD_JSON = [
    text.replace("MARK", MARK)
    for text in (
        "", "null", "[]", "7", '"MARK"', "{MARK}", '{"a": "MARK"', '{"a": "MARK", "a": 1e400000}', '{"a": MARK}',
        '{"a": "MARK\\ud800"}', '{"a": "MARK\\u0000"}', '{"a": "MARK\0"}', '{"a": "MARK"} {"a": "MARK"}',
        '{"": {"MARK": [1e-400, -0.0, 123456789012345678901234567890]}}', '\ufeff{"a": "MARK"}',
        '{"a": 01, "b": "MARK"}',
        '{"eventType": "MARK", "a": ' + "[" * 200 + "]" * 200 + "}", '{"a": NaN, "b": "MARK"}',
        '{"a":' * 12_000 + '"MARK"' + "}" * 12_000, '{"a": 1e131071, "b": "MARK"}', '{"a": -1E-16383, "b": "MARK"}',
    )
]  # fmt: skip


def odd_texts(field: FieldDescriptor) -> list[str]:
    if field.name in PRIVATE:
        return ODD_JSON
    if field.name in SECRET:
        return ["", "short", MARK * 100, MARK + "\0", "é" + MARK]
    return ODD_TEXTS
