"""Archives: what is written is what PostgreSQL holds, and what is broken is noticed."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orisun_server.archive_cli import archive as command
from orisun_server.core.position import NOTHING
from orisun_server.errors import NotFound
from orisun_server.settings import Settings
from orisun_server.storage.archive import ArchiveBroken, check, read_back, summary, write
from orisun_server.storage.boundaries import Boundary
from orisun_server.storage.database import Database
from tests.harness import environment

FILE = "orders.jsonl.gz"


async def fill(database: Database, boundary: Boundary, count: int, *, first: int = 0) -> None:
    """Events with what JSON can hold and floats cannot."""
    await database.write.execute(
        f"INSERT INTO {boundary.names.q_events}"
        " (global_id, transaction_id, pg_transaction_id, event_id, event_type, data, metadata, date_created)"
        " SELECT n, n + 1, pg_current_xact_id(), 'e' || n, 'Happened',"
        """ jsonb_build_object('n', n, 'big', 123456789012345678901234567890.10, 'text', E'line\\nbreak "ü"'), '{}',"""
        " '2026-01-31 10:00:00.5+02' FROM generate_series($1::bigint, $2) AS n",
        first,
        first + count - 1,
    )


async def test_an_archive_holds_the_events_as_they_are(database: Database, boundary: Boundary, tmp_path: Path) -> None:
    await fill(database, boundary, 2345)
    manifest = await write(database, boundary, tmp_path, FILE)
    assert (manifest.count, manifest.last_commit_position, manifest.last_prepare_position) == (2345, 2345, 2344)
    assert check(tmp_path, FILE) == manifest
    assert await summary(database, boundary) == (2345, (2345, 2344))
    lines = gzip.decompress((tmp_path / FILE).read_bytes()).decode().splitlines()
    assert [json.loads(line)["prepare_position"] for line in lines] == list(range(2345))
    event = json.loads(lines[7])
    assert (event["event_id"], event["event_type"], event["commit_position"]) == ("e7", "Happened", 8)
    assert event["date_created"] == "2026-01-31T08:00:00.500000Z"
    assert event["data"]["text"] == 'line\nbreak "ü"'
    assert "123456789012345678901234567890.10" in lines[7]
    assert files(tmp_path) == [FILE, f"{FILE}.manifest.json"]
    # the same events give the same file
    before = (tmp_path / FILE).read_bytes()
    await write(database, boundary, tmp_path, FILE)
    assert (tmp_path / FILE).read_bytes() == before


async def test_an_empty_boundary(database: Database, boundary: Boundary, tmp_path: Path) -> None:
    manifest = await write(database, boundary, tmp_path, FILE)
    assert (manifest.count, manifest.last_prepare_position) == (0, -1)
    assert read_back(tmp_path / FILE)[:2] == (0, NOTHING)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fits(directory: Path) -> bool:
    """Whether the archive is what its manifest says."""
    try:
        check(directory, FILE)
    except ArchiveBroken:
        return False
    return True


async def test_what_is_broken_is_noticed(database: Database, boundary: Boundary, tmp_path: Path) -> None:
    await fill(database, boundary, 50)
    await write(database, boundary, tmp_path, FILE)
    file = tmp_path / FILE
    whole = file.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    broken = {
        "cut": whole[:-20],
        "a bit": whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
        "a line less": gzip.compress(b"".join(lines[:10] + lines[11:])),
        "no JSON": gzip.compress(b"".join([*lines, b"x\n"])),
        "out of order": gzip.compress(b"".join([*lines[1:], lines[0]])),
        "no object": gzip.compress(b"".join([*lines, b"7\n"])),
    }
    for name, content in broken.items():
        file.write_bytes(content)
        assert not fits(tmp_path), name
    file.write_bytes(whole)
    assert fits(tmp_path)


async def test_a_boundary_without_tables(database: Database, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match='boundary "nothing" has no tables in schema "nowhere"'):
        await write(database, Boundary.at("nothing", "nowhere"), tmp_path, FILE)
    assert files(tmp_path) == []


async def test_the_command(database: Database, boundary: Boundary, pg_settings: Settings, tmp_path: Path) -> None:
    await fill(database, boundary, 3)
    variables = {key: value for key, value in environment(pg_settings).items() if key.startswith("ORISUN_PG_")}
    del variables["ORISUN_PG_SCHEMAS"]

    def run(*arguments: str) -> tuple[int, str]:
        # in a thread of its own: the command has an event loop of its own
        result = CliRunner().invoke(command, arguments, env=variables)
        return result.exit_code, result.output

    report = tmp_path / "report"
    code, said = await asyncio.to_thread(
        run, boundary.name, "--schema", boundary.schema, "--output", str(tmp_path), "--report", str(report)
    )
    assert code == 0, said
    assert json.loads(said) == json.loads(report.read_text())
    assert check(tmp_path, f"{boundary.name}.jsonl.gz").count == 3
    for arguments, message in (
        ((boundary.name, "--schema", "nowhere", "--output", str(tmp_path)), "has no tables"),
        (("9lives", "--output", str(tmp_path)), 'invalid boundary "9lives"'),
        ((boundary.name, "--output", str(tmp_path / "missing")), "does not exist"),
    ):
        code, said = await asyncio.to_thread(run, *arguments)
        assert code != 0
        assert message in said
        assert "Traceback" not in said
