"""An archive holds all events of a boundary and the commands that led to them, exactly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from orisun_server.core.event import Command, NewEvent
from orisun_server.storage import archive
from orisun_server.storage.catalog import Boundary
from orisun_server.storage.database import Database
from orisun_server.storage.group_commit import Appender


class NoIndexes:
    def ready(self, _: str) -> tuple[()]:
        return ()


async def test_events_and_their_commands_are_archived_exactly(
    database: Database, boundary: Boundary, tmp_path: Path
) -> None:
    appender = Appender(database, NoIndexes())
    number = "123456789012345678901234567890.10"
    await appender.append(boundary, [NewEvent("a", "Paid", f'{{"amount": {number}}}', "{}")], None)
    command = Command("c1", "Pay", f'{{"limit": {number}}}', '{"by": "me"}')
    last = await appender.append(
        boundary, [NewEvent("b", "Paid", "{}", "{}"), NewEvent("c", "Closed", "{}", '{"by": "me"}')], None, command
    )
    manifest = await archive.write(database, boundary, tmp_path, "orders.jsonl.gz")
    assert (manifest.count, manifest.last_commit_position, manifest.last_prepare_position) == (3, *last)
    assert archive.check(tmp_path, "orders.jsonl.gz") == manifest
    with gzip.open(tmp_path / "orders.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = list(file)
    assert [json.loads(line)["event_id"] for line in lines] == ["a", "b", "c"]
    assert f'"amount": {number}' in lines[0]
    assert "command" not in json.loads(lines[1])
    told = json.loads(lines[2])["command"]
    assert (told["command_id"], told["type"], told["metadata"]) == ("c1", "Pay", {"by": "me"})
    assert f'"limit": {number}' in lines[2]
