"""A PostgreSQL of our own: for a laptop, for tests, for a single server.

It listens on a Unix socket alone, in a directory that only its own system user (and root) may enter; that is why it
asks for no password. Every commit is durable: fsync and synchronous_commit are on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import structlog

from orisun_server.embedded import place
from orisun_server.embedded.account import Account, for_child
from orisun_server.embedded.process import Child, EmbeddedError, Lock, run

log = structlog.get_logger(__name__)

USER = "postgres"
SOCKET_PORT = 5432  # names the socket file; no TCP port is opened

CONFIGURATION: Mapping[str, str] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Events are the users' own: neither statements nor rows may reach the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}

# Fast shutdown, then immediate shutdown. The kernel sends the first when the server dies.
_STOP: Sequence[tuple[signal.Signals, float]] = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 20.0))
_SOCKET_LIMIT = 100  # bytes of a socket's path, with some room (Linux 107, macOS 103)
_POLL = 0.02
_CONFIGURE = r"""
printf %s "$2" > "$1/orisun.conf"
grep -q "^include 'orisun.conf'" "$1/postgresql.conf" || printf %s "$3" >> "$1/postgresql.conf"
"""


@dataclass(frozen=True)
class PostgresAddress:
    """How to connect: ``host`` is the directory of the socket."""

    host: str
    port: int
    user: str
    database: str


class EmbeddedPostgres:
    """Starts PostgreSQL on ``directory``, creating it and ``database`` the first time, and keeps it running.

    ``binaries`` takes another installation's ``bin`` directory and ``configuration`` overrides; both are for tests.
    """

    def __init__(
        self,
        directory: Path,
        *,
        database: str = "orisun",
        binaries: Path | None = None,
        configuration: Mapping[str, str] | None = None,
    ) -> None:
        self._wanted, self._database, self._binaries = directory, database, binaries
        self._port = SOCKET_PORT
        self._configuration = {**CONFIGURATION, **(configuration or {})}
        self._account: Account | None = None
        self._lock: Lock | None = None
        self._child: Child | None = None
        self._socket: Path | None = None
        self._made_socket = False
        self.data = directory

    @property
    def address(self) -> PostgresAddress:
        """Where it listens; known once started."""
        if self._socket is None:
            raise EmbeddedError("the embedded PostgreSQL is not started")
        return PostgresAddress(str(self._socket), self._port, USER, self._database)

    @property
    def pid(self) -> int | None:
        """The postmaster, None while there is none."""
        return self._child.pid if self._child else None

    @property
    def log_file(self) -> Path:
        """What PostgreSQL prints."""
        return self.data.with_name(self.data.name + ".log")

    async def start(self) -> PostgresAddress:
        """Returns when connections are accepted. Raises EmbeddedError saying what to do."""
        self._account = account = for_child(self._wanted.resolve())
        self.data = place.data(self._wanted, account)
        self._lock = Lock(self.data.with_name(self.data.name + ".lock"), "set ORISUN_DATA_DIR to another directory")
        self._lock.acquire()
        try:
            await self._end_leftover()
            await self._initialize()
            await self._configure()
            self._socket = self._make_socket_directory()
            self._child = Child(
                "PostgreSQL",
                self._command,
                self._ready,
                log_file=self.log_file,
                stop_signals=_STOP,
                account=account,
                start_timeout=600.0,  # recovery after a crash replays up to max_wal_size
            )
            await self._child.start()
            await self._create_database()
        except BaseException:
            await self.stop()
            raise
        return self.address

    async def stop(self) -> None:
        """Ends it by a fast shutdown: transactions are rolled back, what was committed is on disk."""
        if self._child is not None:
            await self._child.stop()
        if self._made_socket and self._socket is not None:
            shutil.rmtree(self._socket, ignore_errors=True)
            self._made_socket = False
        if self._lock is not None:
            self._lock.release()

    async def _initialize(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedError(f"{self.data} is not empty and holds no PostgreSQL: set ORISUN_DATA_DIR elsewhere")
        log.info("creating a database cluster", path=str(self.data))
        # Under another name first, so that an interrupted beginning is not taken for a database.
        unfinished = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(unfinished, self._account.uid, self._account.gid)
        options = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums", f"--username={USER}")
        no_sync = ("--no-sync",) if self._configuration["fsync"] == "off" else ()
        await run(
            [str(self._tool("initdb")), *options, *no_sync, "--pgdata", str(unfinished)], self.log_file, self._account
        )
        if self.data.exists():
            self.data.rmdir()
        unfinished.rename(self.data)

    async def _configure(self) -> None:
        """Write our part of the configuration; what a user adds to postgresql.conf below the include wins.

        Written by PostgreSQL's user: root must not follow links that this user may have made in its directory.
        """
        lines = [f"{name} = '{value}'" for name, value in self._configuration.items()]
        own = "# Written at every start; your own settings go to postgresql.conf\n" + "\n".join(lines) + "\n"
        include = "\n# Orisun's settings; those below win\ninclude 'orisun.conf'\n"
        await run(["/bin/sh", "-ec", _CONFIGURE, "sh", str(self.data), own, include], self.log_file, self._account)

    def _make_socket_directory(self) -> Path:
        is_short = len(os.fsencode(self.data / f".s.PGSQL.{self._port}")) < _SOCKET_LIMIT
        if is_short and not set(str(self.data)) & set(',"'):  # unix_socket_directories is a list
            return self.data
        made = Path(tempfile.mkdtemp(prefix="orisun-", dir="/tmp"))  # short; made 0700
        self._made_socket = True
        if self._account is not None:
            os.chown(made, self._account.uid, self._account.gid)
        return made

    async def _command(self) -> Sequence[str]:
        await self._end_leftover()
        postgres, data, socket = self._tool("postgres"), str(self.data), str(self._socket)
        options = {"listen_addresses": "", "port": self._port, "unix_socket_directories": socket}
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(postgres), "-D", data, *flags]

    async def _ready(self) -> None:
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await self._connect("postgres")
                await connection.close()
                return
            await asyncio.sleep(_POLL)

    async def _connect(self, database: str) -> asyncpg.Connection:
        address = self.address
        return await asyncpg.connect(
            host=address.host, port=address.port, user=address.user, database=database, ssl=False, timeout=10
        )

    async def _create_database(self) -> None:
        connection = await self._connect("postgres")
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", self._database):
                name = self._database.replace('"', '""')
                await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()

    async def _end_leftover(self) -> None:
        """End the postmaster of a server that died, and forget one that does not exist any more.

        PostgreSQL itself refuses to start when the process number in postmaster.pid belongs to anyone, which in a
        container it soon does.
        """
        file = self.data / "postmaster.pid"
        process = _postmaster(file, self.data)
        if process is None:
            file.unlink(missing_ok=True)
            return
        log.warning("ending the PostgreSQL that a server left behind", pid=process.pid)
        for number, patience in _STOP:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
            try:
                await asyncio.to_thread(process.wait, patience)
                return
            except psutil.TimeoutExpired:
                continue
        raise EmbeddedError(f"the PostgreSQL left behind, process {process.pid}, does not end; end it by hand")

    def _tool(self, name: str) -> Path:
        if self._binaries is None:
            self._binaries = place.binaries(self._account)
        return self._binaries / name


def running_address(directory: Path, database: str = "orisun") -> PostgresAddress | None:
    """Where the PostgreSQL of a server that runs on ``directory`` listens; None when none does."""
    data = directory.resolve()
    file = data / "postmaster.pid"
    if _postmaster(file, data) is None:
        return None
    lines = file.read_text().splitlines()
    return PostgresAddress(lines[4], SOCKET_PORT, USER, database) if len(lines) > 4 and lines[4] else None


def _postmaster(file: Path, data: Path) -> psutil.Process | None:
    """The running postmaster that postmaster.pid names, unless its number is another process's by now."""
    try:
        process = psutil.Process(int(file.read_text().splitlines()[0]))
        is_ours = process.name() == "postgres" and Path(process.cwd()) == data
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return process if is_ours else None
