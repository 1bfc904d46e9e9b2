"""Real parts for tests: servers in this process and in their own, free ports, waiting for conditions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from pydantic import SecretStr

from orisun_api import admin_pb2_grpc, eventstore_pb2_grpc
from orisun_server.delivery.nats import STREAM_PREFIX
from orisun_server.environment import effective, variables
from orisun_server.settings import Settings

T = TypeVar("T")

#: Metadata of the first administrator with the default password.
ADMIN = (("authorization", "Basic " + base64.b64encode(b"admin:changeit").decode()),)


def basic(username: str, password: str) -> tuple[tuple[str, str], ...]:
    """gRPC metadata of Basic authentication."""
    return (("authorization", "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()),)


def free_port() -> int:
    """A TCP port that nobody listens on at this moment, and that no outgoing connection is given."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port of a hundred is free")


async def stream_name(jetstream: JetStreamContext, boundary: str) -> str:
    """The stream of a boundary, whichever store's it is. Raises NotFoundError."""
    names: list[str] = []
    while page := await jetstream.streams_info(offset=len(names)):
        names += [info.config.name or "" for info in page]
    for name in names:
        if name.startswith(STREAM_PREFIX) and name.endswith(f"_{boundary}"):
            return name
    raise NotFoundError(description=f"no stream of boundary {boundary}")


async def eventually(
    condition: Callable[[], T | Awaitable[T]], timeout: float = 30.0, interval: float = 0.02, message: str = ""
) -> T:
    """Ask until the answer is true, and return it. Raises AssertionError with the last answer after ``timeout``."""
    deadline = time.monotonic() + timeout
    while True:
        answer: Any = condition()
        if asyncio.iscoroutine(answer) or isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer  # type: ignore[no-any-return]
        if time.monotonic() > deadline:
            raise AssertionError(f"{message or 'the condition'} did not come true in {timeout} s; last: {answer!r}")
        await asyncio.sleep(interval)


async def is_quick(attempt: Callable[[], Awaitable[float]], seconds: float, tries: int = 4) -> None:
    """One of some attempts, each of which answers how long it took, takes less than that.

    For promises about time: a machine that was busy with something else for a while tells nothing about the program.
    """
    took: list[float] = []
    while not took or took[-1] >= seconds:
        assert len(took) < tries, f"never within {seconds} s: {took}"
        took.append(await attempt())


def environment(settings: Settings) -> dict[str, str]:
    """The ORISUN_* variables that make another process have these settings."""
    written = effective(settings)
    for variable, field in variables().items():
        value = getattr(settings, field) if field else None
        if isinstance(value, SecretStr):
            written[variable] = value.get_secret_value()
    if settings.embeds_postgres:
        for name in ("HOST", "PORT", "USER", "PASSWORD", "NAME"):
            del written[f"ORISUN_PG_{name}"]
    elif not written["ORISUN_PG_PASSWORD"]:
        del written["ORISUN_PG_PASSWORD"]
    return {variable: value for variable, value in written.items() if value}


class Connection:
    """A channel to a server with the stubs of its services; ``metadata`` is the administrator's."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        # channels of one process with equal arguments share a connection otherwise, also to a server that was restarted
        options.append(("grpc.use_local_subchannel_pool", 1))
        # a server that starts again is found at once, not after gRPC's growing pauses
        options += [(f"grpc.{bound}_reconnect_backoff_ms", 100) for bound in ("initial", "min", "max")]
        self.address, self.metadata = address, ADMIN
        self.channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        # Any: the generated stubs are typed for synchronous channels
        self.events: Any = eventstore_pb2_grpc.EventStoreStub(self.channel)
        self.admin: Any = admin_pb2_grpc.AdminStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def is_serving(self, service: str = "") -> bool:
        """Whether grpc.health.v1 says SERVING."""
        try:
            answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        await self.channel.close()


class ServerProcess:
    """``orisun serve`` as a process of its own, on a free port, by default against the parts that ``settings`` name.

    ``environ`` adds variables and takes precedence; a variable set to "" is unset. ``credentials`` are those of clients
    where it serves TLS. Use as ``async with``: leaving kills what is left of it.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        environ: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.port, self._credentials = free_port(), credentials
        variables = environment(settings) if settings is not None else {}
        variables = {"ORISUN_ADMIN_PORT": "0", "ORISUN_OTEL_ENABLED": "false"} | variables
        variables |= {"ORISUN_GRPC_HOST": "127.0.0.1", "ORISUN_GRPC_PORT": str(self.port), **(environ or {})}
        self.port = int(variables["ORISUN_GRPC_PORT"])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORISUN_")}
        self._environ = inherited | {name: value for name, value in variables.items() if value}
        self._output = Path(tempfile.mkstemp(prefix="orisun-server-", suffix=".log")[1])
        self._process: asyncio.subprocess.Process | None = None
        self._connection: Connection | None = None

    @property
    def address(self) -> str:
        return f"{'localhost' if self._credentials else '127.0.0.1'}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode if self._process is not None else None

    @property
    def logs(self) -> str:
        """Everything that it printed so far, over restarts."""
        return self._output.read_text(errors="replace")

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.address, self._credentials)
        return self._connection

    async def spawn(self) -> None:
        """Start it without waiting until it serves."""
        with self._output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "orisun", "serve", stdout=output, stderr=output, env=self._environ,
                start_new_session=True,
            )  # fmt: skip

    async def start(self, timeout: float = 30.0) -> ServerProcess:
        """Start it and wait until it serves. Raises AssertionError with its output when it does not."""
        await self.spawn()
        probe = Connection(self.address, self._credentials)

        async def serves_or_ended() -> bool:
            return self.returncode is not None or await probe.is_serving()

        try:
            await eventually(serves_or_ended, timeout, 0.05, "serving")
        except AssertionError as error:
            raise AssertionError(f"{error}; it printed:\n{self.logs}") from None
        finally:
            await probe.close()
        assert self.returncode is None, f"it ended with {self.returncode} and printed:\n{self.logs}"
        return self

    async def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self, timeout: float = 30.0) -> int:
        """Wait until it has ended; its exit code."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), timeout)

    async def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM, and wait."""
        await self.signal(signal.SIGTERM)
        return await self.wait(timeout)

    async def kill(self) -> None:
        """SIGKILL: no goodbyes. Wait until it is gone."""
        await self.signal(signal.SIGKILL)
        await self.wait()

    async def sigstop(self) -> None:
        await self.signal(signal.SIGSTOP)

    async def sigcont(self) -> None:
        await self.signal(signal.SIGCONT)

    async def close(self) -> None:
        """End it whatever its state."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        if self._process is not None and self._process.returncode is None:
            await self.kill()
        self._output.unlink(missing_ok=True)

    async def __aenter__(self) -> ServerProcess:
        try:
            return await self.start()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.close()
