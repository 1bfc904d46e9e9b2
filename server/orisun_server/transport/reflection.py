"""gRPC reflection, v1 and v1alpha: the two are one protocol under two names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from ..core.users import Caller
from .calls import Service

_ALPHA = "grpc.reflection.v1alpha"
_STABLE = "grpc.reflection.v1"
_STABLE_FILE = "grpc/reflection/v1/reflection.proto"


def services(names: Sequence[str]) -> list[Service]:
    """The reflection services of a server that serves the services of these full names."""
    descriptors = (reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"], _stable())
    servicer = _Reflection((*names, *(descriptor.full_name for descriptor in descriptors)))
    return [Service(descriptor, servicer) for descriptor in descriptors]


class _Reflection:
    def __init__(self, names: Sequence[str]) -> None:
        self._servicer = ReflectionServicer(names)

    async def server_reflection_info(self, requests: AsyncIterator[Message], _: Caller) -> AsyncIterator[Message]:
        async for response in self._servicer.ServerReflectionInfo(_as_alpha(requests), None):
            if response.HasField("file_descriptor_response"):
                files = response.file_descriptor_response.file_descriptor_proto
                files[:] = map(_with_json_names, files)
            yield response


def _with_json_names(serialized: bytes) -> bytes:
    """A file with the JSON name of every field: Python's descriptors keep only those that the .proto file writes, and
    grpcurl would print snake case for the others."""
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            if not field.HasField("json_name"):
                first, *rest = field.name.split("_")
                field.json_name = first + "".join(part[:1].upper() + part[1:] for part in rest)
    return file.SerializeToString()


async def _as_alpha(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    # the messages of both versions have the same fields
    async for request in requests:
        yield reflection_pb2.ServerReflectionRequest.FromString(request.SerializeToString())


def _stable() -> ServiceDescriptor:
    """The service of v1: grpcio-reflection brings v1alpha only, and v1 differs from it in its package alone."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_STABLE_FILE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.name, file.package = _STABLE_FILE, _STABLE
        file.ClearField("options")
        for message in file.message_type:
            for field in filter(lambda field: field.type_name, message.field):
                field.type_name = _renamed(field.type_name)
        for method in file.service[0].method:
            method.input_type, method.output_type = _renamed(method.input_type), _renamed(method.output_type)
        pool.AddSerializedFile(file.SerializeToString())
    descriptor: ServiceDescriptor = pool.FindServiceByName(f"{_STABLE}.ServerReflection")
    return descriptor


def _renamed(type_name: str) -> str:
    return type_name.replace(f".{_ALPHA}.", f".{_STABLE}.")
