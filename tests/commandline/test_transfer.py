"""Export and import: word for word, resumed after kills, each event once."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

import orisun
from tests.commandline.conftest import EXECUTABLE, Orisun
from tests.harness import eventually
from tests.integration.terminal import Terminal

pytestmark = pytest.mark.timeout(120)


def lines(count: int, prefix: str = "e") -> str:
    return "".join(
        f'{{"event_id": "{prefix}-{n}", "event_type": "T", "data": {{"n": {n}, "price": {n}.50}}, "metadata": {{}}}}\n'
        for n in range(count)
    )


async def ids(api: orisun.Client, boundary: str) -> list[str]:
    return [event.event_id async for event in api.boundary(boundary).read(page_size=10_000)]


async def test_a_round_trip_keeps_every_digit(cli: Orisun, name: str, api: orisun.Client, tmp_path: Path) -> None:
    numbers = {"big": 2**80, "price": 0.1, "text": "Zoë ☃ \u2028"}
    given = {"event_id": "a", "event_type": "Übung", "data": numbers, "metadata": {"m": [1.0, None, {"x": True}]}}
    text = json.dumps(given).replace("0.1", "0.1000000000000000000000001")
    await cli.ok("events", "import", name, "-", given=text)
    file = tmp_path / "out.jsonl"
    await cli.ok("events", "export", name, "--file", str(file))
    assert "0.1000000000000000000000001" in file.read_text()
    other = f"{name}_copy"
    await cli.ok("boundary", "create", other)
    await cli.ok("events", "import", other, str(file))
    again = await cli.ok("events", "export", other)
    exported, copied = json.loads(file.read_text()), json.loads(again.out)
    for key in ("event_id", "event_type", "data", "metadata"):
        assert exported[key] == copied[key] == given[key] or key == "data"
    assert copied["data"]["big"] == 2**80


async def test_an_import_says_what_was_new_and_what_was_known(cli: Orisun, name: str, api: orisun.Client) -> None:
    async def imported(text: str, *options: str) -> tuple[int, int]:
        done = await cli.ok("events", "import", name, "-", "-o", "json", *options, given=text)
        return done.json["new"], done.json["known"]

    assert await imported(lines(250), "--batch", "100") == (250, 0)
    assert await imported(lines(250), "--batch", "100") == (0, 250)
    assert await imported(lines(300), "--batch", "70") == (50, 250)
    assert await imported(lines(5, "f") + lines(2, "f") + "\n" + lines(1, "F")) == (6, 2)
    assert await imported(lines(300), "--from-line", "291") == (0, 10)
    expected = [f"e-{n}" for n in range(300)] + [f"f-{n}" for n in range(5)] + ["F-0"]
    assert await ids(api, name) == expected


async def test_a_killed_import_is_run_again(cli: Orisun, name: str, api: orisun.Client, tmp_path: Path) -> None:
    count = 40_000
    file = tmp_path / "in.jsonl"
    file.write_text(lines(count))
    process = await cli.start("events", "import", name, str(file), "--batch", "50")

    async def some() -> bool:
        async for event in api.boundary(name).read(descending=True, limit=1):
            return event.position.prepare > 2_000
        return False

    await eventually(some, 30)
    process.kill()
    await asyncio.wait_for(process.communicate(), 60)
    before = len(await ids(api, name))
    assert 2_000 < before < count
    done = await cli.ok("events", "import", name, str(file), "--batch", "50", "-o", "json")
    known = done.json["known"]
    # the server may have stored what was on its way when the import was killed
    assert known in (before, before + 50)
    assert done.json["new"] == count - known
    assert await ids(api, name) == [f"e-{n}" for n in range(count)]


async def test_an_import_stops_at_the_line_that_cannot_be_stored(cli: Orisun, name: str, api: orisun.Client) -> None:
    broken = await cli("events", "import", name, "-", given=lines(3) + '{"event_id": "x"}\n')
    assert broken.code == 2
    assert broken.err.startswith("Error: -, line 4: event_type is missing")
    assert "3 events are new" in broken.err
    refused = await cli(
        "events", "import", name, "-",
        given=lines(2, "f") + '{"event_id": "z", "event_type": "T", "data": {"secret": "\\u0000"}}\n',
    )  # fmt: skip
    assert refused.code == 2
    assert "-, line 3: invalid event JSON" in refused.err
    assert "secret" not in refused.err
    assert await ids(api, name) == ["e-0", "e-1", "e-2"]
    checked = await cli.ok("events", "import", name, "-", "--check", given=lines(2, "g"))
    assert "nothing was sent" in checked.err
    assert len(await ids(api, name)) == 3


async def test_an_export_goes_on_after_the_last_whole_line(
    cli: Orisun, name: str, api: orisun.Client, tmp_path: Path
) -> None:
    await cli.ok("events", "import", name, "-", "--batch", "7", given=lines(100))
    file = tmp_path / "out.jsonl"
    await cli.ok("events", "export", name, "--file", str(file))
    whole = file.read_bytes()
    assert [json.loads(line)["event_id"] for line in whole.splitlines()] == [f"e-{n}" for n in range(100)]
    for left in (b"", whole[:10], whole[: len(whole) // 2], whole[:-1], whole + b'{"boundary": "half'):
        file.write_bytes(left)
        await cli.ok("events", "export", name, "--file", str(file))
        assert file.read_bytes() == whole
    await api.boundary(name).append([orisun.NewEvent("T", event_id="late")])
    await cli.ok("events", "export", name, "--file", str(file))
    assert file.read_bytes().startswith(whole)
    assert json.loads(file.read_bytes().splitlines()[-1])["event_id"] == "late"


async def test_an_export_spares_files_of_others(cli: Orisun, name: str, tmp_path: Path) -> None:
    await cli.ok("events", "import", name, "-", given=lines(3))
    file = tmp_path / "out.jsonl"
    await cli.ok("events", "export", name, "--file", str(file))
    other_history = file.read_bytes().replace(b'"e-2"', b'"x-2"')
    other_boundary = file.read_bytes().replace(name.encode(), b"other")
    for content, told in (
        (b"dear diary\n", "no export"),
        (b"dear diary", "no export"),
        (other_boundary, 'boundary "other"'),
        (other_history, "another history"),
    ):
        file.write_bytes(content)
        refused = await cli("events", "export", name, "--file", str(file))
        assert (refused.code, told in refused.err) == (2, True), refused
        assert file.read_bytes() == content


async def test_on_a_terminal_a_bar_shows_how_far_it_is(cli: Orisun, name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines(3_000))
    for *arguments, what, told in (
        ["events", "import", name, str(source), f"Importing {source}", "3,000 events are new"],
        ["events", "export", name, "--file", str(target), f"Exporting {name}", "3,000 events exported"],
    ):
        async with Terminal(EXECUTABLE, *arguments, environ=cli.environ()) as terminal:
            assert await terminal.end() == 0
            assert re.search(rf"{re.escape(what)} +\[#*-*\] +\d+%", terminal.raw)
            assert "100%" in terminal.raw
            assert told in terminal.raw
        # and none where nobody looks
        piped = await cli.ok(*arguments)
        assert "%" not in piped.out + piped.err
