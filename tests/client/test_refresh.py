"""What changes while a client runs: the addresses behind a name, and the files of certificates."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import grpc
import pytest

import orisun
from orisun import NewEvent, endpoints
from orisun.names import Answers, name_of
from orisun_server.app import App
from orisun_server.settings import Settings
from tests.client.test_reconnect import PATIENT
from tests.harness import Connection, eventually, free_port
from tests.integration.test_tls import AUTHORITY, Pair, issue, written

Make = Callable[..., orisun.Client]

#: A process with files of its own in the place of the machine's; for root, or where users may have namespaces.
_OWN_FILES = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("orisun:5005", ("orisun", 5005)),
        ("dns:///orisun.shop.svc:7", ("orisun.shop.svc", 7)),
        ("localhost:5005", None),
        ("127.0.0.1:5005", None),
        ("[::1]:5005", None),
        ("dns:///127.0.0.1:5005", None),
        ("dns://10.0.0.10/orisun:5005", None),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", None),
        ("unix:/run/orisun.sock", None),
    ],
)
def test_names_that_are_watched(address: str, expected: tuple[str, int] | None) -> None:
    assert name_of(address) == expected


def added(*answers: str | None) -> list[str]:
    """What was added at each look, made use of at once; an answer is the letters of its addresses."""
    found, looked = [], Answers()
    for answer in answers:
        looked.look(None if answer is None else frozenset(answer))
        found.append("".join(sorted(looked.added)))
        looked.added = frozenset()
    return found


def test_servers_that_were_added_behind_a_name() -> None:
    assert added("ab", "ab", "a", "ac") == ["", "", "", "c"], "the first look only shows what there is"
    assert added("ab", None, "abc", None, "abc") == ["", "", "c", "", ""]
    assert added("ab", "a", "ab") == ["", "", "b"], "a server that was down for a while"
    assert added("abc", "abd", "aed") == ["", "d", "e"], "a roll-out"
    with pytest.raises(orisun.InvalidArgument, match="refresh -1 is negative"):
        orisun.connect(refresh=-1)


def test_a_name_server_that_tells_a_part_at_a_time_adds_none() -> None:
    """Each is added once; who is connected to any of them stays there from then on."""
    assert added("ab", "cd", "ab", "cd", "bc", "ad", "ef", "ab") == ["", "cd", "", "", "", "", "ef", ""]
    # as with caches in between, each answer twice
    assert added("ab", "ab", "cd", "cd", "ab", "ab", "cd") == ["", "", "cd", "", "", "", ""]
    # what was long ago is not remembered
    assert added("ab", "ac", *["ac"] * 10, "abc")[-1] == "b"


def test_what_was_added_counts_until_it_is_used_or_gone() -> None:
    answers = Answers()
    for answer, expected in (("a", ""), ("ab", "b"), ("ab", "b"), ("abc", "bc"), ("ac", "c")):
        answers.look(frozenset(answer))
        assert answers.added == frozenset(expected), "no connection was made of it yet"


def test_a_name_server_that_is_silent_keeps_no_program_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def silent(*_: object, **__: object) -> None:
        asked.set()
        answered.wait(60)
        raise OSError("no answer")

    async def program() -> None:
        async with orisun.connect("orisun.invalid:5005", retry=orisun.NEVER) as client:
            with pytest.raises((orisun.Unavailable, orisun.DeadlineExceeded)):
                await client.ping(timeout=5)
            await eventually(asked.is_set)

    monkeypatch.setattr("socket.getaddrinfo", silent)
    late = threading.Timer(20, answered.set)
    late.start()
    try:
        asyncio.run(program())
        assert not answered.is_set()
    finally:
        late.cancel()
        answered.set()


async def _may_have_own_files() -> bool:
    if shutil.which("unshare") is None:
        return False
    process = await asyncio.create_subprocess_exec(
        *_OWN_FILES, "true", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


async def test_servers_added_behind_a_name_are_found_and_subscriptions_spread(
    make_server: Callable[..., Awaitable[Connection]], make_settings: Callable[..., Settings], make_client: Make,
    tmp_path: Path, pg_dsn: str,
) -> None:  # fmt: skip
    """Nobody disconnects; the name has one more address, and that is all."""
    if not await _may_have_own_files():
        pytest.skip("the machine lets nobody have an /etc/hosts of their own (unshare -m)")
    port, count = free_port(), 12
    settings = make_settings(grpc_host="127.0.0.1", grpc_port=port)
    boundary = settings.boundaries[0].name
    first = await make_server(settings)
    orders = make_client(first.address).boundary(boundary)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 orisun.test\n")
    asked = json.dumps({"target": f"orisun.test:{port}", "boundary": boundary, "count": count})
    process = await asyncio.create_subprocess_exec(
        *_OWN_FILES, "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh",
        sys.executable, "-m", "tests.client.names_client", asked, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    connection = await asyncpg.connect(pg_dsn)

    async def held() -> list[int]:
        """How many subscriptions each server has."""
        rows = await connection.fetch(
            f"SELECT count(*) AS n FROM {settings.admin_schema}.orisun_lease"
            " WHERE boundary = $1 AND name LIKE 'spread-%' AND node_id IS NOT NULL GROUP BY node_id",
            boundary,
        )
        return sorted(row["n"] for row in rows)

    async def line() -> str:
        assert process.stdout is not None
        return (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()

    number = 0

    async def append() -> None:
        nonlocal number
        await orders.append([NewEvent("Counted", {"number": number})])
        number += 1

    try:
        lines = sorted([await line() for _ in range(count + 1)])
        assert lines[0].startswith("node ")
        assert lines[1:] == ["subscribed"] * count
        await append()
        await make_server(settings.model_copy(update={"grpc_host": "127.0.0.2"}))
        with hosts.open("a") as file:
            file.write("127.0.0.2 orisun.test\n")
        assert (await line()).startswith("node "), "another server answers"

        async def spread() -> bool:
            await append()
            shares = await held()
            return len(shares) == 2 and sum(shares) == count

        await eventually(spread, 30, 0.05)
        await append()
        await orders.append([NewEvent("Last")])
        assert json.loads(await line()) == [list(range(number))] * count, "each event once, in order"
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await connection.close()


# -- certificates --------------------------------------------------------------------------------------------------


def renew(directory: Path, authority: Pair, *names: str) -> None:
    """Certificates of an authority for these names, each file replaced in one step; the authority is what to trust."""
    contents = {"ca.crt": authority.certificate}
    for name in names:
        pair = issue("localhost" if name == "server" else name, authority)
        contents |= {f"{name}.crt": pair.certificate, f"{name}.key": pair.key}
    for name, content in contents.items():
        (directory / f"{name}.new").write_bytes(content)
        (directory / f"{name}.new").replace(directory / name)


def tls_of(directory: Path) -> orisun.TLS:
    return orisun.TLS(directory / "ca.crt", directory / "client.crt", directory / "client.key")


async def test_renewed_certificates_are_used_when_a_connection_is_made_anew(
    tmp_path: Path, make_settings: Callable[..., Settings], make_client: Make
) -> None:
    port = free_port()
    files = written(tmp_path, issue("localhost", AUTHORITY))
    renew(tmp_path, AUTHORITY, "server", "client")
    settings = make_settings(**files, grpc_tls_client_auth_required=True, grpc_port=port)
    first, second = App(settings), App(settings)
    await first.start()
    try:
        # no look by the clock comes to its help
        clients = [
            make_client(f"localhost:{port}", tls=tls_of(tmp_path), refresh=refresh, retry=PATIENT, timeout=60)
            for refresh in (3600, 0)
        ]
        orders = clients[0].boundary(settings.boundaries[0].name)
        async with orders.subscribe("mailer") as subscription:
            await orders.append([NewEvent("A")])
            assert (await anext(subscription)).event_type == "A"
            await clients[1].ping()
            await first.stop()
            renew(tmp_path, issue("another authority"), "server", "client")
            await second.start()
            await orders.append([NewEvent("B")])
            assert (await asyncio.wait_for(anext(subscription), 30)).event_type == "B"
            with pytest.raises((orisun.Unavailable, orisun.DeadlineExceeded)):
                await clients[1].ping(timeout=3)
    finally:
        await first.stop()
        await second.stop()


async def test_a_renewed_certificate_is_taken_up_while_the_connection_lives(
    tmp_path: Path, make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]],
    make_client: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(endpoints, "_PATIENCE", 0.5)
    caplog.set_level("INFO", "orisun")
    renew(tmp_path, AUTHORITY, "client")
    settings = make_settings(**written(tmp_path, issue("localhost", AUTHORITY)), grpc_tls_client_auth_required=True)
    port = int((await make_server(settings)).address.rpartition(":")[2])
    client = make_client(f"localhost:{port}", tls=tls_of(tmp_path), refresh=0.1)
    orders = client.boundary(settings.boundaries[0].name)
    async with orders.subscribe("mailer") as subscription:
        await client.ping()
        # what is half renewed, or is not there for a moment, does not end what works
        (tmp_path / "client.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
        await eventually(lambda: "the present one stays" in caplog.text)
        await client.ping()
        (tmp_path / "client.crt").unlink()
        await eventually(lambda: "client.crt cannot be read" in caplog.text)
        await client.ping()
        renew(tmp_path, AUTHORITY, "client")
        await eventually(lambda: "a new connection, for its TLS" in caplog.text)
        await orders.append([NewEvent("A")])
        assert (await asyncio.wait_for(anext(subscription), 10)).event_type == "A"
        assert subscription.reconnects == 0, "what works on the old connection stays there"
    # which is closed when its calls have ended
    await eventually(lambda: not client.calls._endpoints._retired)
    assert "PRIVATE" not in caplog.text


async def test_a_client_that_closes_closes_the_connections_that_were_replaced(
    server: Connection, make_client: Make, settings: Settings
) -> None:
    """Also those whose calls had not ended, which end with them."""
    client = make_client(server.address)
    orders = client.boundary(settings.boundaries[0].name)
    connections = client.calls._endpoints
    async with orders.subscribe("mailer"), orders.subscribe("printer"):
        (old,) = connections._endpoints
        assert await connections._replace(0, old.pems)
        assert list(connections._retired.values()) == [old]
        append = asyncio.create_task(orders.append([NewEvent("A")]))
        await asyncio.sleep(0)
        assert await connections._replace(0, old.pems)
        await client.close()
    for endpoint in (old, *connections._endpoints):
        assert endpoint.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    assert isinstance((await asyncio.gather(append, return_exceptions=True))[0], orisun.Position | orisun.ClientClosed)


async def test_a_connection_that_was_replaced_is_closed_when_its_last_call_ends(
    server: Connection, make_client: Make, settings: Settings
) -> None:
    client = make_client(server.address)
    orders = client.boundary(settings.boundaries[0].name)
    connections = client.calls._endpoints
    async with orders.subscribe("mailer") as subscription:
        (old,) = connections._endpoints
        assert await connections._replace(0, old.pems)
        await orders.append([NewEvent("A")])
        assert (await anext(subscription)).event_type == "A"
        assert old.channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    await eventually(lambda: old.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN)
    assert not connections._retired
    await client.ping()


async def test_servers_that_are_added_get_subscriptions_that_certificates_had_left_in_place(
    server: Connection, make_client: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "_SPREAD", 0.05)
    client = make_client(server.address)
    orders = client.boundary(settings.boundaries[0].name)
    connections = client.calls._endpoints
    async with orders.subscribe("mailer") as subscription:
        answers = connections._endpoints[0].answers
        answers.look(frozenset({"a"}))
        assert await connections._replace(0, (b"renewed", None, None))
        assert subscription.reconnects == 0
        answers.look(frozenset({"a", "b"}))
        assert await connections._replace(0, (b"renewed", None, None))
        await eventually(lambda: subscription.reconnects == 1)
        await eventually(lambda: not connections._retired)
        await orders.append([NewEvent("A")])
        assert (await asyncio.wait_for(anext(subscription), 10)).event_type == "A"
