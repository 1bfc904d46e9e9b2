"""A store in a process of its own, for tests, examples and experiments."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc

from orisun_api import admin_pb2, admin_pb2_grpc
from orisun_server.storage.names import is_identifier

#: Boundaries for tests that are made ahead.
SPARES = 3

_PATIENCE, _AGAIN, _STOP_PATIENCE = 30.0, 0.02, 30.0


class LocalStoreError(Exception):
    """The store for this run did not start, or did not do what was asked."""


class LocalStore:
    """``with LocalStore() as store:`` a server with PostgreSQL and NATS of its own on free ports; gone afterwards.

    It takes one to three seconds to start and ends with this process, also when that is killed. Nothing is synced to
    disk unless ``durable``. ``directory`` keeps the data there; without it they are removed at the end.
    """

    def __init__(
        self, directory: Path | None = None, *, boundaries: Sequence[str] = ("orisun_test_1",), durable: bool = False
    ) -> None:
        self._kept, self._boundaries, self._durable = directory, list(boundaries), durable
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[str] | None = None
        self._channel: grpc.Channel | None = None
        self._maker: ThreadPoolExecutor | None = None
        self._spares: deque[Future[str]] = deque()
        self._directory: Path | None = None
        #: The administrator's; the password is made for this store.
        self.username, self.password = "admin", secrets.token_urlsafe(12)
        #: ``host:port`` of the gRPC API.
        self.address = ""
        #: PostgreSQL, as a connection URI for asyncpg: for read models, and for the store in the process.
        self.dsn = ""
        #: The schema of the catalog, for ``InProcessStore``.
        self.admin_schema = ""

    def start(self) -> Self:
        """Returns when it serves. Raises LocalStoreError saying what is wrong."""
        if self._kept is None:
            # PostgreSQL's user under root must be able to pass; what is in it is closed to others
            self._directory = Path(tempfile.mkdtemp(prefix="orisun-"))
            self._directory.chmod(0o711)
        else:
            self._directory = self._kept
        asked = {
            "directory": str(self._directory),
            "boundaries": self._boundaries,
            "durable": self._durable,
            "temporary": self._kept is None,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORISUN_")}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of this package
            [sys.executable, "-m", "orisun_server.testing.child", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=inherited | {"ORISUN_ADMIN_PASSWORD": self.password},
            start_new_session=True,  # Ctrl-C reaches the tests first, and they stop it
        )
        try:
            told = json.loads(_pipe(self._process.stdout).readline() or "{}")
        except BaseException:
            self.stop()
            raise
        if "address" not in told:
            self.stop()
            raise LocalStoreError(told.get("error") or "the store for this run did not start; see above for its log")
        self.address, self.dsn, self.admin_schema = told["address"], told["dsn"], told["admin_schema"]
        self._channel = grpc.insecure_channel(self.address)
        return self

    def stop(self) -> None:
        """End it and remove its data; nothing when it does not run."""
        if self._maker is not None:
            self._maker.shutdown(cancel_futures=True)
            self._maker = None
        self._spares.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            _pipe(self._process.stdin).close()
            try:
                self._process.wait(_STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            _pipe(self._process.stdout).close()
            self._process = None
        if self._kept is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def create_boundary(self, prefix: str = "test") -> str:
        """A fresh, empty boundary; its name begins with ``prefix`` and is used by nobody else.

        Those that begin with "test" are made ahead of time, so that asking for one takes no time unless more than
        ``SPARES`` are asked for at once; others take some ten milliseconds. Raises LocalStoreError.
        """
        if prefix != "test":
            return self._create(prefix)
        if self._maker is None:
            self._maker = ThreadPoolExecutor(1, "orisun-boundaries")
        while len(self._spares) <= SPARES:
            self._spares.append(self._maker.submit(self._create, prefix))
        return self._spares.popleft().result()

    def _create(self, prefix: str) -> str:
        if not is_identifier(prefix) or len(prefix) > 40:
            raise LocalStoreError(f'"{prefix}" cannot begin the name of a boundary: letters, digits, underscores')
        if self._channel is None:
            raise LocalStoreError("the store does not run: start it first")
        name = f"{prefix}_{next(self._numbers)}_{secrets.token_hex(3)}"
        placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace="events")
        basic = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        options = {"metadata": [("authorization", f"Basic {basic}")], "timeout": _PATIENCE}
        stub = admin_pb2_grpc.AdminStub(self._channel)  # type: ignore[no-untyped-call]
        deadline = time.monotonic() + _PATIENCE
        try:
            made = stub.CreateBoundary(admin_pb2.CreateBoundaryRequest(name=name, placement=placement), **options)
            # on a machine that is very busy it takes longer than the server waits with its answer
            while made.boundary.status == admin_pb2.BOUNDARY_LIFECYCLE_STATUS_PROVISIONING:
                if time.monotonic() > deadline:
                    raise LocalStoreError(f"the boundary was not made in {_PATIENCE:.0f} s")
                time.sleep(_AGAIN)
                made = stub.GetBoundary(admin_pb2.GetBoundaryRequest(name=name), **options)
        except grpc.RpcError as error:
            raise LocalStoreError(f"the boundary could not be created: {error.details()}") from None
        if made.boundary.status != admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE:
            raise LocalStoreError(f"the boundary could not be made: {made.boundary.last_error}")
        return name

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise LocalStoreError("the store's process has no pipe")  # it was started with one
    return pipe
