"""The embedded PostgreSQL alone, for other processes: listens on TCP, asks for a password. For trying things out.

    python -m orisun_server.embedded.standalone

ORISUN_PG_HOST and ORISUN_PG_PORT say where to listen, ORISUN_PG_USER, ORISUN_PG_PASSWORD and ORISUN_PG_NAME whom to
let in and the database, ORISUN_DATA_DIR where the data is (below it, in ``postgres``). Ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from orisun_server import environment, logs
from orisun_server.embedded.postgres import EmbeddedPostgres
from orisun_server.embedded.process import run
from orisun_server.errors import OrisunError
from orisun_server.settings import Settings

log = structlog.get_logger(__name__)

#: The socket's directory is closed to others; whoever comes over the network shows a password.
_ACCESS = "local all all trust\nhost all all all scram-sha-256\n"
_WRITE = 'printf %s "$2" > "$1/pg_hba.conf"'


class StandalonePostgres(EmbeddedPostgres):
    """Listens on ``host:port`` besides its socket; ``user`` owns the database."""

    def __init__(
        self,
        directory: Path,
        *,
        host: str,
        port: int,
        user: str,
        password: str,
        database: str,
        binaries: Path | None = None,
    ) -> None:
        super().__init__(directory, database=database, binaries=binaries)
        self._host, self._port, self._user, self._password = host, port, user, password

    async def _configure(self) -> None:
        await super()._configure()
        await run(["/bin/sh", "-ec", _WRITE, "sh", str(self.data), _ACCESS], self.log_file, self._account)

    async def _command(self) -> Sequence[str]:
        # of an option that is given twice, PostgreSQL takes the last
        return [*await super()._command(), "-c", f"listen_addresses={self._host}"]

    async def _create_database(self) -> None:
        await super()._create_database()
        connection = await self._connect(self._database)
        try:
            exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", self._user)
            verb = "ALTER" if exists else "CREATE"
            # utility statements take no parameters: PostgreSQL itself quotes what stands in them
            for template, values in (
                (f"{verb} ROLE %I LOGIN PASSWORD %L", [self._user, self._password]),
                ("ALTER DATABASE %I OWNER TO %I", [self._database, self._user]),
                ("ALTER SCHEMA public OWNER TO %I", [self._user]),
            ):
                statement = await connection.fetchval("SELECT format($1, VARIADIC $2::text[])", template, values)
                await connection.execute(statement)
        finally:
            await connection.close()


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Raises EmbeddedError."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    postgres = StandalonePostgres(
        settings.data_dir / "postgres",
        host=settings.pg_host,
        port=settings.pg_port,
        user=settings.pg_user,
        password=settings.pg_password.get_secret_value(),
        database=settings.pg_name,
    )
    await postgres.start()
    log.info("PostgreSQL listens", host=settings.pg_host, port=settings.pg_port, data=str(postgres.data))
    try:
        await stop.wait()
    finally:
        await postgres.stop()
        log.info("stopped")


def main() -> int:
    try:
        settings = environment.load(os.environ).settings
        logs.configure(settings.logging_level, settings.logging_format)
        asyncio.run(serve(settings))
    except (OrisunError, environment.SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
