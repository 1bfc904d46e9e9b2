"""Boundaries, indexes, users, tokens, events, and how commands fail, with the real executable."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import yaml

import orisun
from orisun_server.settings import Settings
from tests.commandline.conftest import EXECUTABLE, Orisun
from tests.harness import ServerProcess, environment, eventually, free_port

pytestmark = pytest.mark.timeout(120)


async def test_boundaries(cli: Orisun, name: str) -> None:
    made = await cli.ok("boundary", "create", f"{name}_x", "--description", "Orders", "--output", "json")
    assert made.json == {
        "name": f"{name}_x", "description": "Orders", "schema": f"{name}_x", "status": "active", "last_error": "",
    }  # fmt: skip
    assert {name, f"{name}_x"} <= {one["name"] for one in (await cli.ok("boundary", "list", "-o", "json")).json}
    assert f"NAME         {name}\n" in (await cli.ok("boundary", "get", name)).out
    again = await cli("boundary", "create", name)
    assert (again.code, again.out) == (3, "")
    assert again.err == f'Error: boundary "{name}" already exists\n'


async def test_events_are_saved_under_a_condition_and_read_word_for_word(cli: Orisun, name: str) -> None:
    data = '{"order": "o-1", "amount": 10.10, "n": 123456789012345678901234567890}'
    saved = await cli.ok("events", "save", name, "--type", "OrderPlaced", "--data", data, "--id", "e-1", "-o", "json")
    assert saved.json == {"position": {"commit_position": 1, "prepare_position": 0}, "event_ids": ["e-1"]}

    context = ("--where", "order=o-1", "--where", "eventType=OrderPlaced")
    conflict = await cli(
        "events", "save", name, "--type", "X", *context, "--expected", "none", "--data", '{"order":"o-1"}'
    )
    assert conflict.code == 3
    assert "the latest matching event is at (1, 0)" in conflict.err
    assert conflict.err.count("\n") == 1
    await cli.ok(
        "events", "save", name, "--type", "OrderPaid", *context, "--expected", "1,0", "--data", "-",
        given='{"order": "o-2"}',
    )  # fmt: skip

    read = await cli.ok("events", "get", name, "-o", "json")
    assert [event["event_type"] for event in read.json] == ["OrderPlaced", "OrderPaid"]
    assert '"amount": 10.10' in read.out
    assert '"n": 123456789012345678901234567890' in read.out
    either = await cli.ok("events", "get", name, *context, "--or", "--where", "order=o-2", "-o", "yaml")
    assert yaml.safe_load(either.out)[0]["event_id"] == "e-1"
    assert len(yaml.safe_load(either.out)) == 2
    table = (await cli.ok("events", "get", name, "--limit", "1")).out.splitlines()
    assert table[0].split() == ["POSITION", "TIME", "(UTC)", "TYPE", "DATA"]
    assert len(table) == 2


async def test_several_events_are_saved_all_or_none(cli: Orisun, name: str, api: orisun.Client) -> None:
    lines = '{"event_id":"a","event_type":"T","data":{"x":1}}\n{"event_id":"b","event_type":"T","data":"{}"}\n'
    await cli.ok("events", "save", name, "--file", "-", given=lines)
    assert [event.position async for event in api.boundary(name).read()] == [(2, 0), (2, 1)]
    refused = await cli("events", "save", name, "--file", "-", given=lines.replace("a", "c", 1) + "[]")
    assert (refused.code, refused.err) == (2, "Error: -, line 3: no JSON object\n")


async def test_indexes(cli: Orisun, name: str) -> None:
    made = await cli.ok(
        "index", "create", name, "large", "--field", "amount:numeric", "--field", "shop",
        "--if", "eventType=OrderPlaced", "--if", "amount >= 100", "-o", "json",
    )  # fmt: skip
    assert made.json["state"] == "ready"
    assert made.json["fields"] == [{"key": "amount", "type": "numeric"}, {"key": "shop", "type": "text"}]
    assert made.json["conditions"][1] == {"key": "amount", "operator": ">=", "value": "100"}
    assert "amount:numeric, shop:text" in (await cli.ok("index", "list", name)).out
    unsure = await cli("index", "drop", name, "large")
    assert (unsure.code, "--yes" in unsure.err) == (2, True)
    await cli.ok("index", "drop", name, "large", "--yes")
    empty = await cli.ok("index", "list", name)
    assert empty.out == ""
    assert f"orisun index create {name} NAME --field KEY" in empty.err


async def test_waiting_for_an_index_tells_how_far_it_is(
    cli: Orisun, api: orisun.Client, name: str, pg_dsn: str
) -> None:
    writer = await asyncpg.connect(pg_dsn)
    spawn = "import os,pty,sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    try:
        async with writer.transaction():
            # a build waits for writers that were there before it
            await writer.execute(f'LOCK TABLE "{name}"."{name}_orisun_es_event" IN ROW EXCLUSIVE MODE')
            process = await cli.start(
                "-c", spawn, EXECUTABLE, "index", "create", name, "slow", "--field", "shop", program=sys.executable
            )
            assert process.stdout is not None
            said = ""
            async with asyncio.timeout(60):
                while "Building slow: 1 %, waiting for writers before build, " not in said:
                    said += (await process.stdout.read(4_096)).decode()
            assert (await api.admin.index_build(name, "slow")).phase == "waiting for writers before build"
    finally:
        await writer.close()
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert "ready" in out.decode()
    build = await api.admin.index_build(name, "slow")
    assert (build.ready, build.percent, build.phase) == (True, 100, "")


async def test_users_change_their_own_password(cli: Orisun, name: str) -> None:
    user = f"user_{name}"
    await cli.ok("user", "create", user, "--role", f"reader:{name}", "--new-password-file", "-", given="first-1\n")
    changed = await cli.ok("user", "roles", user, f"USER:{name}", f"READER:{name}", "-o", "json")
    assert sorted(changed.json["roles"]) == [f"READER:{name}", f"USER:{name}"]
    assert "no boundary" not in changed.err
    told = "There is no boundary nosuch yet"
    assert told in (await cli.ok("user", "roles", user, f"USER:{name}", "READER:nosuch")).err

    me = {"ORISUN_CLIENT_USERNAME": user, "ORISUN_CLIENT_PASSWORD": "first-1"}
    done = await cli.ok("user", "password", "--new-password-file", "-", given="second-2\n", environ=me)
    assert "second-2" not in done.out + done.err
    refused = await cli("events", "get", name, environ=me)
    assert refused.code == 1
    assert refused.err.startswith(f'Error: user "{user}" is refused: invalid credentials')
    me["ORISUN_CLIENT_PASSWORD"] = "second-2"
    await cli.ok("events", "get", name, environ=me)
    denied = await cli("user", "list", environ=me)
    assert denied.code == 1
    assert denied.err.endswith(f'user "{user}" may not do this; it needs the role ADMIN\n')
    denied = await cli("events", "get", "orisun_test_1", environ=me)
    assert denied.err.endswith('it needs the role ADMIN or OPERATIONS or USER or READER for boundary "orisun_test_1"\n')
    assert "ADMIN or OPERATIONS" in (await cli.ok("status", environ=me)).err

    await cli.ok("user", "delete", user, "--yes")
    assert (await cli("user", "delete", user, "--yes")).err.startswith(f'Error: there is no user "{user}"')


async def test_tokens(cli: Orisun, name: str) -> None:
    made = await cli.ok("token", "create", name, "--role", f"READER:{name}", "--expires", "12h")
    as_token = {"ORISUN_CLIENT_TOKEN": made.out.strip(), "ORISUN_CLIENT_USERNAME": "", "ORISUN_CLIENT_PASSWORD": ""}
    await cli.ok("events", "get", name, environ=as_token)
    listed = await cli.ok("token", "list", "-o", "json")
    assert [one["state"] for one in listed.json if one["name"] == name] == ["valid"]
    assert made.out.strip() not in listed.out
    await cli.ok("token", "revoke", name, "-y")

    async def refused() -> bool:
        return (await cli("events", "get", name, environ=as_token)).code == 1

    await eventually(refused)


async def test_tail_follows_and_ends_quietly_at_ctrl_c(cli: Orisun, name: str, api: orisun.Client) -> None:
    first = await api.boundary(name).append([orisun.NewEvent("T", {"n": 1}), orisun.NewEvent("T", {"n": 2})])
    process = await cli.start("events", "tail", name, "--last", "1", "-o", "json")
    assert process.stdout is not None
    assert b'"n": 2' in await asyncio.wait_for(process.stdout.readline(), 60)
    await api.boundary(name).append([orisun.NewEvent("T", {"n": 3})])
    assert b'"n": 3' in await asyncio.wait_for(process.stdout.readline(), 60)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.strip()) == (130, b"")
    limited = await cli.ok("events", "tail", name, "--after", f"{first.commit},0", "--limit", "2", "-o", "yaml")
    assert [event["data"]["n"] for event in yaml.safe_load_all(limited.out)] == [2, 3]


async def test_a_reader_that_goes_away_is_no_error_to_talk_about(cli: Orisun, name: str, api: orisun.Client) -> None:
    for _ in range(4):
        await api.boundary(name).append([orisun.NewEvent("T", {"filler": "x" * 200}) for _ in range(1000)])
    for command in (f"events get {name} --limit 0", f"events export {name}"):
        script = f"{EXECUTABLE} {command} | head -n 1; echo ${{PIPESTATUS[0]}}"
        process = await cli.start("-c", script, program="bash")
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert out.decode().splitlines()[-1] == "141"
        assert err == b""


async def test_failures_are_one_line_with_what_to_do(cli: Orisun, name: str) -> None:
    wrong = await cli("boundary", "list", environ={"ORISUN_CLIENT_PASSWORD": "hush-hush"})
    assert wrong.code == 1
    assert "hush-hush" not in wrong.err
    away = await cli("status", "--server", f"localhost:{free_port()}")
    assert away.code == 4
    assert "orisun serve" in away.err
    assert away.err.count("\n") == 1
    nobody = await cli("status", environ={"ORISUN_CLIENT_USERNAME": "", "ORISUN_CLIENT_PASSWORD": ""})
    assert nobody.code == 2
    assert "ORISUN_CLIENT_TOKEN" in nobody.err
    unknown = await cli("events", "get", "nope")
    assert (unknown.code, "orisun boundary list" in unknown.err) == (1, True)
    bad = await cli("events", "save", name, "--type", "T", "--data", "{")
    assert (bad.code, bad.err.count("\n")) == (2, 1)


async def test_a_password_is_asked_for_on_a_terminal_and_not_shown(cli: Orisun, name: str) -> None:
    spawn = "import os,pty,sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    arguments = ("-c", spawn, EXECUTABLE, "boundary", "get", name)
    process = await cli.start(*arguments, environ={"ORISUN_CLIENT_PASSWORD": ""}, program=sys.executable)
    assert process.stdout is not None
    assert process.stdin is not None
    seen = await asyncio.wait_for(process.stdout.readuntil(b"Password of admin: "), 60)
    process.stdin.write(b"changeit\n")
    rest = await asyncio.wait_for(process.stdout.readuntil(b"active"), 60)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert b"changeit" not in seen + rest


async def test_status_shows_servers_and_boundaries(cli: Orisun, name: str, api: orisun.Client) -> None:
    await api.boundary(name).append([orisun.NewEvent("T"), orisun.NewEvent("T")])
    shown = await cli.ok("status", name, "-o", "json")
    (server,), (boundary,) = shown.json["servers"], shown.json["boundaries"]
    assert (server["health"], server["problem"]) == ("serving", None)
    assert boundary["position"] == {"commit_position": 2, "prepare_position": 1}
    both = await cli("status", "--server", f"localhost:{free_port()},{cli.server.address}")
    assert both.code == 1
    assert "unreachable" in both.out
    assert "connection refused" in both.out


async def test_doctor_looks_at_everything_and_says_what_to_do(
    cli: Orisun, make_settings: Callable[..., Settings], name: str, api: orisun.Client
) -> None:
    settings = make_settings("doctor", admin_port=free_port(), admin_metrics_public=False)
    async with ServerProcess(settings) as server:
        async with orisun.connect(server.address, username="admin", password="changeit") as client:
            query = orisun.where(k="v")
            assert [event async for event in client.boundary(settings.boundaries[0].name).read(query)] == []
        environ = environment(settings) | {
            "ORISUN_SERVER": server.address, "ORISUN_ADMIN_URL": f"http://127.0.0.1:{settings.admin_port}",
        }  # fmt: skip
        found = (await cli("doctor", "-o", "json", environ=environ)).json
    levels = {finding["check"]: finding["level"] for finding in found}
    assert levels[f"server {server.address}"] == levels["NATS"] == levels["clocks"] == levels["schema"] == "ok"
    assert levels["PostgreSQL's clock"] == levels["NATS's quorum"] == levels["boundaries"] == "ok"
    assert levels["password"] == "warning"
    # metrics that are not for everybody are asked for as the caller; a criterion without an index is told of
    assert levels[f"boundary {settings.boundaries[0].name}"] == "warning"
    todo = next(one["todo"] for one in found if one["check"] == f"boundary {settings.boundaries[0].name}")
    assert todo == f"orisun index create {settings.boundaries[0].name} k --field k"
    assert "queries" not in levels
    assert levels["PostgreSQL's fsync"] == "problem"  # the tests' PostgreSQL
    assert next(one["todo"] for one in found if one["check"] == "PostgreSQL's fsync") == "ALTER SYSTEM SET fsync = on"
    assert "ORISUN_PG" not in str(levels)


async def test_doctor_goes_on_where_parts_cannot_be_reached(cli: Orisun) -> None:
    port = str(free_port())
    environ = {
        "ORISUN_PG_HOST": "127.0.0.1", "ORISUN_PG_PORT": port, "ORISUN_PG_PASSWORD": "hush-hush",
        "ORISUN_NATS_URL": f"nats://user:hush-hush@127.0.0.1:{port}", "ORISUN_SERVER": f"127.0.0.1:{port}",
    }  # fmt: skip
    done = await cli("doctor", environ=environ)
    assert done.code == 1
    assert done.out.count("problem   ") == 3
    assert "3 problems" in done.err
    assert "hush-hush" not in done.out + done.err


@pytest.mark.parametrize(("environ", "told"), [
    ({}, True), ({"ORISUN_CLIENT_TLS": "1"}, False),
    ({"ORISUN_CLIENT_USERNAME": "", "ORISUN_CLIENT_PASSWORD": "", "ORISUN_CLIENT_TOKEN": "orisun_a_b"}, True),
])  # fmt: skip
async def test_doctor_tells_no_page_the_password_in_the_clear_where_calls_speak_tls(
    cli: Orisun, environ: dict[str, str], told: bool
) -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        is_metrics = heads[-1].startswith(b"GET /metrics ")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\n" if is_metrics else b"HTTP/1.1 200 OK\r\n")
        writer.write(b'Content-Length: 31\r\n\r\n{"nats":"ok","postgresql":"ok"}')
        await writer.drain()
        writer.close()

    page = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{page.sockets[0].getsockname()[1]}"
    down = {"ORISUN_SERVER": f"127.0.0.1:{free_port()}", "ORISUN_ADMIN_URL": url}
    async with page:
        done = await cli("doctor", environ=down | environ)
    assert any(b"\r\nauthorization: " in head.lower() for head in heads) is told
    assert "the metrics may not be read" in done.out
    # with TLS the certificate that nobody shows is another one
    assert ("\n1 problem, 0 warnings;" if "ORISUN_CLIENT_TLS" not in environ else "\n2 problems,") in done.err


async def test_bench_measures_in_a_new_boundary(cli: Orisun, name: str) -> None:
    done = await cli.ok("bench", "--boundary", f"{name}_b", "--callers", "4", "--seconds", "0.3", "--yes", "-o", "json")
    work = {one["work"]: one for one in done.json}
    assert work["append"]["events_per_second"] == work["append"]["calls_per_second"] > 0
    assert 0 < work["append 100"]["milliseconds"]["p50"] <= work["append 100"]["milliseconds"]["max"]
    assert (await cli("bench", "--boundary", name, "--yes")).code == 3


async def test_completion_knows_commands_and_options(cli: Orisun) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_ORISUN_COMPLETE" in (await cli.ok("completion", shell)).out
    asked = {"_ORISUN_COMPLETE": "bash_complete", "COMP_WORDS": "orisun events exp", "COMP_CWORD": "2"}
    assert (await cli.ok(environ=asked)).out == "plain,export\n"


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("orisun even", "events"),
        ("orisun events exp", "export"),
        ("orisun index create orders a --fie", "--field"),
        ("orisun user list --output j", "json"),
        ("orisun migrate status --output y", "yaml"),
    ],
)
def test_bash_completes(cli: Orisun, line: str, completed: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    words = line.split()
    script = (
        'eval "$(orisun completion bash)"; '
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _orisun_completion orisun {words[-1]} {words[-2]}; "
        'echo "${COMPREPLY[*]}"'
    )
    environ = cli.environ() | {"PATH": f"{Path(EXECUTABLE).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([bash, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == completed
