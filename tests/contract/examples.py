"""The grpcurl commands that documents print, run by protobuf's JSON mapping over reflection or by the real grpcurl."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2

Json = dict[str, Any]

#: Both names of the reflection service.
REFLECTIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")

_COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|//[^\n]*')
_ADDRESS = "localhost:5005"
_WRITTEN = {"transaction_id", "global_id", "new_global_id", "latest_transaction_id", "latest_global_id"}


@dataclass(frozen=True)
class Example:
    """One command: its arguments, and the JSON that it sends (None: no ``-d``, or nothing on standard input)."""

    text: str
    arguments: tuple[str, ...]
    body: Json | None

    @property
    def method(self) -> str:
        """``orisun.EventStore/SaveEvents``, or ``list``."""
        return self.arguments[-1]

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What ``-H`` sends, as gRPC metadata."""
        values = [value for flag, value in zip(self.arguments, self.arguments[1:], strict=False) if flag == "-H"]
        return tuple((key.strip().lower(), value.strip()) for key, _, value in (text.partition(":") for text in values))


class Refused(Exception):
    """A call ended with a status other than OK."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def parse(text: str) -> list[Example]:
    """The commands of a text, in order; ``$AUTH`` is what the text sets it to."""
    variables = dict(re.findall(r"^(\w+)='([^']*)'$", text, re.M))
    return [_example(command, variables) for command in commands(text)]


def commands(text: str) -> list[str]:
    """The verbatim texts of the grpcurl commands: continued lines and here-documents belong to them."""
    found: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.startswith("grpcurl"):
            continue
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines))
        if command[-1].endswith("<<EOF"):
            while command[-1] != "EOF":
                command.append(next(lines))
        found.append("\n".join(command))
    return found


def without_comments(text: str) -> str:
    """JSON as it is, without ``//`` comments."""
    return _COMMENT.sub(lambda found: found[1] or "", text)


def _example(text: str, variables: Mapping[str, str]) -> Example:
    command, _, document = text.partition(" <<EOF\n")
    arguments = [
        variables.get(word[1:], word) if word[:1] == "$" else word
        for word in shlex.split(command.replace("\\\n", " "))[1:]
    ]
    data = arguments[arguments.index("-d") + 1] if "-d" in arguments else ""
    if data == "@":
        data = document.removesuffix("EOF")
    return Example(text, tuple(arguments), json.loads(without_comments(data)) if data else None)


class Client(Protocol):
    """Runs an example with another body in place of the printed one."""

    async def services(self, example: Example) -> list[str]: ...

    async def call(self, example: Example, body: Json | None) -> Json: ...

    def stream(self, example: Example, body: Json) -> AsyncIterator[Json]: ...


class Reflected:
    """protobuf's JSON mapping, with descriptors that the server's reflection gives and nothing else."""

    def __init__(self, channel: grpc.aio.Channel, reflection: str = REFLECTIONS[0]) -> None:
        self._channel, self._reflection = channel, reflection
        self._pool: DescriptorPool | None = None

    async def services(self, example: Example) -> list[str]:
        (answer,) = await self._ask(example.headers, [reflection_pb2.ServerReflectionRequest(list_services="")])
        return sorted(service.name for service in answer.list_services_response.service)

    async def call(self, example: Example, body: Json | None) -> Json:
        path, request, serializers = await self._prepared(example, body)
        call = self._channel.unary_unary(path, **serializers)
        try:
            return _printed(await call(request, metadata=example.headers, timeout=20))
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name, error.details() or "") from None

    async def stream(self, example: Example, body: Json) -> AsyncIterator[Json]:
        path, request, serializers = await self._prepared(example, body)
        call = self._channel.unary_stream(path, **serializers)(request, metadata=example.headers, timeout=20)
        try:
            async for message in call:
                yield _printed(message)
        finally:
            call.cancel()

    async def files(self, headers: Sequence[tuple[str, str]], *symbols: str) -> dict[str, bytes]:
        """The descriptors of the files that declare the symbols and of all that they import, serialized, by name."""
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
        files: dict[str, bytes] = {}
        while asked:
            missing: set[str] = set()
            for answer in await self._ask(headers, asked):
                if answer.HasField("error_response"):
                    raise Refused(str(answer.error_response.error_code), answer.error_response.error_message)
                for raw in answer.file_descriptor_response.file_descriptor_proto:
                    file = descriptor_pb2.FileDescriptorProto.FromString(raw)
                    files[file.name] = raw
                    missing.update(file.dependency)
            asked = [reflection_pb2.ServerReflectionRequest(file_by_filename=name) for name in missing - files.keys()]
        return files

    async def _ask(
        self, headers: Sequence[tuple[str, str]], requests: Sequence[reflection_pb2.ServerReflectionRequest]
    ) -> list[reflection_pb2.ServerReflectionResponse]:
        call = self._channel.stream_stream(
            f"/{self._reflection}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        try:
            return [answer async for answer in call(iter(requests), metadata=tuple(headers), timeout=20)]
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name, error.details() or "") from None

    async def _prepared(self, example: Example, body: Json | None) -> tuple[str, Any, dict[str, Any]]:
        if self._pool is None:
            # a pool of its own: nothing of the stubs in this process helps
            pool = DescriptorPool()
            files = await self.files(example.headers, "orisun.EventStore", "orisun.Admin")
            for name in _in_order(files):
                pool.AddSerializedFile(files[name])
            self._pool = pool
        service, _, name = example.method.partition("/")
        method = self._pool.FindServiceByName(service).FindMethodByName(name)
        request_type, response_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        request = json_format.ParseDict(body or {}, request_type(), descriptor_pool=self._pool)
        serializers = {
            "request_serializer": request_type.SerializeToString,
            "response_deserializer": response_type.FromString,
        }
        return f"/{example.method}", request, serializers


def _in_order(files: Mapping[str, bytes]) -> list[str]:
    """Each file after those that it imports."""
    ordered: list[str] = []

    def add(name: str) -> None:
        if name not in ordered:
            for needed in descriptor_pb2.FileDescriptorProto.FromString(files[name]).dependency:
                add(needed)
            ordered.append(name)

    for name in files:
        add(name)
    return ordered


def _printed(message: Any) -> Json:
    printed: Json = json.loads(json_format.MessageToJson(message))
    return printed


class Grpcurl:
    """The real grpcurl, as the example calls it but for the address, ``-plaintext`` and files that it names."""

    def __init__(self, program: Path, address: str, *, plaintext: bool = True, files: Path | None = None) -> None:
        self._program, self._files = program, files
        self._address = ["-plaintext", address] if plaintext else [address]

    async def services(self, example: Example) -> list[str]:
        async with self._running(example, None) as process:
            output, errors = await process.communicate()
        if process.returncode:
            raise Refused(*_failure(errors.decode()))
        return sorted(output.decode().split())

    async def call(self, example: Example, body: Json | None) -> Json:
        async with self._running(example, body) as process:
            output, errors = await process.communicate()
        if process.returncode:
            raise Refused(*_failure(errors.decode()))
        answer: Json = json.loads(output, object_hook=_camel)
        return answer

    async def stream(self, example: Example, body: Json) -> AsyncIterator[Json]:
        async with self._running(example, body) as process:
            assert process.stdout is not None
            document = ""
            while line := (await process.stdout.readline()).decode():
                document += line
                if line.rstrip() == "}":  # grpcurl indents what is inside
                    yield json.loads(document, object_hook=_camel)
                    document = ""

    @asynccontextmanager
    async def _running(self, example: Example, body: Json | None) -> AsyncIterator[asyncio.subprocess.Process]:
        arguments: list[str] = []
        text = json.dumps(body) if body is not None else ""
        for argument in example.arguments:
            if argument == _ADDRESS:
                arguments += self._address
            elif argument.startswith("/path/to/"):
                arguments.append(str(self._files) + "/" + argument.removeprefix("/path/to/"))
            else:
                arguments.append(text if arguments[-1:] == ["-d"] and argument != "@" else argument)
        process = await asyncio.create_subprocess_exec(
            self._program, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert process.stdin is not None
            process.stdin.write(text.encode())
            process.stdin.close()
            async with asyncio.timeout(20):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


def _camel(printed: Json) -> Json:
    """Keys as protobuf's JSON prints them: grpcurl keeps a field's own name where the descriptor has no json_name,
    and reflection in Python has those alone that are written in the .proto file."""
    return {
        key if key in _WRITTEN else re.sub("_(.)", lambda found: found[1].upper(), key): value
        for key, value in printed.items()
    }


def _failure(errors: str) -> tuple[str, str]:
    """Code and message that grpcurl prints, the code as gRPC writes it: ``InvalidArgument`` is INVALID_ARGUMENT."""
    found = re.search(r"Code: (\w+)\s+Message: (.*)", errors)
    if found is None:
        return "", errors
    return re.sub(r"(?<!^)(?=[A-Z])", "_", found[1]).upper(), found[2]


def grpcurl(unpack_into: Path) -> Path | None:
    """The real grpcurl: ORISUN_TEST_GRPCURL, or from the tools beside the project, or from PATH; None without one."""
    if given := os.environ.get("ORISUN_TEST_GRPCURL"):
        return Path(given)
    packed = Path(__file__).parents[3] / "shared/k8s/bin/grpcurl.zst"
    if packed.exists() and shutil.which("zstd"):
        program = unpack_into / "grpcurl"
        subprocess.run(["zstd", "-dqf", packed, "-o", program], check=True)
        program.chmod(0o755)
        return program
    found = shutil.which("grpcurl")
    return Path(found) if found else None
