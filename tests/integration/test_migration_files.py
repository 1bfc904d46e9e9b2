"""Generated SQL files make a schema that a server which only verifies runs on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import asyncpg
from click.testing import CliRunner

from orisun.cli import main
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from orisun_server.storage.in_process import InProcessStore, NewEvent
from orisun_server.storage.migrate import Migrator
from tests.integration.stores import Store


async def test_what_the_files_make_fits_a_server_that_verifies(
    make_settings: Callable[..., Settings], pg_dsn: str, tmp_path: Path, database: Database
) -> None:
    settings = make_settings("orders", schema_migrations="verify")
    boundaries = [f"{boundary.name}:{boundary.schema}" for boundary in settings.boundaries]
    arguments = [part for pair in boundaries for part in ("--boundary", pair)]
    environ = {"ORISUN_ADMIN_BOUNDARY": settings.admin_boundary}
    done = CliRunner().invoke(main, ["migrations", "generate", "--output", str(tmp_path), *arguments], env=environ)
    assert done.exit_code == 0, done.output
    connection = await asyncpg.connect(pg_dsn)
    try:
        for path in sorted(tmp_path.iterdir()):  # noqa: ASYNC240 - a test
            async with connection.transaction():
                await connection.execute(path.read_text())
        event = NewEvent("o1", "Placed", json.dumps({"order": "o1"}), "{}")
        name = settings.boundaries[0].name
        assert await InProcessStore(settings.admin_schema).append(connection, name, [event]) == (1, 0)
    finally:
        await connection.close()
    migrator = Migrator(database, settings.admin_schema)
    scopes = await migrator.scopes()
    assert len(scopes) == len(boundaries) + 1
    await migrator.verify(scopes)
    assert await migrator.apply(scopes) == []
    async with Store(settings) as store:
        assert [found.event_id for found in await store.reader.page(store.boundary, (), 10)] == ["o1"]
