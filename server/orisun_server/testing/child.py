"""The process behind a LocalStore: prints where it serves as one line of JSON, and ends when its input does.

So it ends with the process that started it, however that one ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

from pydantic import SecretStr

from orisun_server import logs
from orisun_server.app import App
from orisun_server.embedded import with_postgres
from orisun_server.embedded.postgres import EmbeddedPostgres
from orisun_server.errors import OrisunError
from orisun_server.setting_types import BoundarySetting
from orisun_server.settings import Settings

#: What a test run can do without: a power failure costs it nothing that matters.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "64MB"}


async def serve(directory: Path, password: str, boundaries: list[str], *, durable: bool) -> None:
    """Serve on free ports, with the data in ``directory``, until standard input ends."""
    settings = Settings(
        boundaries=tuple(BoundarySetting(name, "", "events") for name in boundaries),
        grpc_host="127.0.0.1",
        grpc_port=0,
        nats_port=0,
        nats_store_dir=directory / "nats",
        # nothing is reserved, so that thousands of boundaries fit, and what is old goes
        nats_event_stream_storage="memory",
        nats_max_store=256 * 1024 * 1024,
        admin_password=SecretStr(password),
        otel_enabled=False,
        admin_enabled=False,
    )
    postgres = EmbeddedPostgres(directory / "postgres", configuration={} if durable else _FAST)
    ended = await _end_of_input()
    try:
        address = await postgres.start()
        app = App(with_postgres(settings, address))
        await app.start()
        try:
            dsn = f"postgresql://{address.user}@/{address.database}?host={address.host}&port={address.port}"
            schema = settings.admin_schema
            print(json.dumps({"address": app.address, "dsn": dsn, "admin_schema": schema}), flush=True)
            await ended.wait()
        finally:
            await app.stop()
    finally:
        await postgres.stop()


async def _end_of_input() -> asyncio.Event:
    """Set when the other end of standard input is closed; no thread, which could not be cancelled."""
    ended, descriptor, loop = asyncio.Event(), sys.stdin.fileno(), asyncio.get_running_loop()

    def on_readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            ended.set()

    loop.add_reader(descriptor, on_readable)
    return ended


def main() -> None:
    """``python -m orisun_server.testing.child '{"directory": ..., "boundaries": [...], "durable": false,
    "temporary": true}'``; the administrator's password stands in ORISUN_ADMIN_PASSWORD."""
    asked = json.loads(sys.argv[1])
    logs.configure("WARN", "console")
    work = serve(
        Path(asked["directory"]), os.environ["ORISUN_ADMIN_PASSWORD"], asked["boundaries"], durable=asked["durable"]
    )
    try:
        asyncio.run(work)
    except OrisunError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)
    finally:
        # here, because the process that made it may have been killed
        if asked["temporary"]:
            shutil.rmtree(asked["directory"], ignore_errors=True)


if __name__ == "__main__":
    main()
