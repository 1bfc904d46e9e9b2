"""Addresses, TLS, who is calling, deadlines, limits, retries and load balancing, against real servers."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import orisun
from orisun import NewEvent
from orisun.channels import addresses
from orisun.client import _named
from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from tests.harness import Connection, ServerProcess, eventually, free_port
from tests.integration.test_tls import AUTHORITY, issue, written

Make = Callable[..., orisun.Client]


@pytest.fixture
async def server_of_process(server_process: ServerProcess) -> str:
    """The address of a server that needs no loop of this process."""
    return server_process.address


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost", ["localhost:5005"]),
        ("a:1, b:2", ["a:1", "b:2"]),
        (["a:1", "b"], ["a:1", "b:5005"]),
        ("::1", ["[::1]:5005"]),
        ("[::1]:7", ["[::1]:7"]),
        ("[::1]", ["[::1]:5005"]),
        ("dns:///orisun:5005", ["dns:///orisun:5005"]),
    ],
)
def test_addresses(target: str | list[str], expected: list[str]) -> None:
    assert addresses(target) == expected


@pytest.mark.parametrize("target", ["", ",", "a:b", "a:0", "a:70000", ":5", "http://a:1", []])
def test_what_is_no_address(target: str | list[str]) -> None:
    with pytest.raises(orisun.InvalidArgument, match="address"):
        orisun.connect(target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"username": "a"}, "go together"),
        ({"username": "a:b", "password": "c"}, "no colon"),
        ({"username": "a", "password": "b", "token": "c"}, "not both"),
        ({"token": " \n"}, "token is empty"),
        ({"token": "s3cr\u00e9t"}, "characters that no token has"),
        ({"timeout": 0}, "lets no call succeed"),
        ({"timeout": None}, "timeout is a NoneType"),
        ({"keepalive": -1}, "keepalive -1 is negative"),
        ({"tls": "ca.pem"}, "tls is a str"),
        ({"retry": 3}, "retry is a int"),
        ({"types": {}}, "types is a dict"),
        ({"max_calls": 0}, "lets nothing through"),
        ({"tls": orisun.TLS(ca="/nowhere/ca.pem")}, "ca: /nowhere/ca.pem cannot be read"),
        ({"tls": orisun.TLS(certificate=b"x")}, "go together"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(orisun.InvalidArgument, match=message):
        orisun.connect("localhost", **options)  # type: ignore[arg-type]


async def test_ping_and_server_info(client: orisun.Client) -> None:
    await client.ping()
    info = await client.server_info()
    assert info.backend == "postgres"
    assert "command_context_consistency" in info.capabilities
    # a newer server may have what this library has no name for
    assert _named(pb.ServerCapability, 99, "SERVER_CAPABILITY_") == "99"


async def test_who_is_calling(server: Connection, make_client: Make) -> None:
    with pytest.raises(orisun.Unauthenticated, match="invalid credentials") as caught:
        await make_client(server.address, password="wrong one").ping()
    assert caught.value.code == "UNAUTHENTICATED"
    assert "wrong one" not in repr(caught.value)
    with pytest.raises(orisun.Unauthenticated, match=r"missing .*give connect"):
        await make_client(server.address, username=None, password=None).ping()


async def test_the_session_token_is_used_from_then_on(
    server: Connection, make_client: Make, settings: Settings
) -> None:
    client = make_client(server.address)
    await client.ping()
    ((name, token),) = client.calls._session.metadata()
    assert name == "x-auth-token"
    # another client may use it, a stream too
    other = make_client(server.address, token=f"{token}\n")  # as a file has it
    await other.ping()
    async with other.boundary(settings.boundaries[0].name).subscribe("a"):
        pass
    # one that is good no more is replaced by signing in again
    client.calls._session._token = (("x-auth-token", "1.spoilt.1.1.x"),)
    await client.ping()
    async with client.boundary(settings.boundaries[0].name).subscribe("b"):
        pass
    assert client.calls._session.metadata() == ((name, token),)


async def test_tokens_that_are_not_good(server: Connection, make_client: Make, settings: Settings) -> None:
    client = make_client(server.address, token="1.spoilt.1.1.x")
    with pytest.raises(orisun.Unauthenticated):
        await client.ping()
    with pytest.raises(orisun.Unauthenticated):
        await anext(client.boundary(settings.boundaries[0].name).subscribe("a"))


async def test_nobody_listens(make_client: Make) -> None:
    address = f"127.0.0.1:{free_port()}"
    client = make_client(address, retry=orisun.RetryPolicy(attempts=3, first=0.01, longest=0.01))
    with pytest.raises(orisun.Unavailable, match=address):
        await client.ping()
    with pytest.raises(orisun.Unavailable, match=address):
        async with client.boundary("orders").subscribe("a"):
            pass
    # the deadline ends retries too
    patient = make_client(address, retry=orisun.RetryPolicy(attempts=1_000, first=0.01, longest=0.01))
    with pytest.raises((orisun.Unavailable, orisun.DeadlineExceeded)):
        await asyncio.wait_for(patient.ping(timeout=0.3), 10)


async def test_a_server_that_comes_late_is_found(settings: Settings, make_client: Make) -> None:
    process = ServerProcess(settings)
    client = make_client(process.address, retry=orisun.RetryPolicy(attempts=1_000))
    appending = asyncio.ensure_future(client.boundary(settings.boundaries[0].name).append([NewEvent("A")]))
    try:
        await process.start()
        assert await appending == orisun.Position(1, 0)
    finally:
        await process.close()


async def test_deadlines(server: Connection, make_client: Make, settings: Settings) -> None:
    orders = make_client(server.address).boundary(settings.boundaries[0].name)
    with pytest.raises(orisun.DeadlineExceeded, match=f"{server.address}.*may be repeated"):
        await orders.append([NewEvent("A", {"text": "x" * 5_000_000}) for _ in range(5)], timeout=0.002)
    with pytest.raises(orisun.DeadlineExceeded) as caught:
        await orders.latest(orisun.where(text="x" * 20_000_000), timeout=0.002)
    assert "append" not in str(caught.value)


async def test_limits_refuse_at_once(server: Connection, make_client: Make, settings: Settings) -> None:
    client = make_client(server.address, max_calls=3)
    orders = client.boundary(settings.boundaries[0].name)
    results = await asyncio.gather(*(orders.append([NewEvent("A")]) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [orisun.Position] * 3 + [orisun.TooManyCalls] * 2
    # a subscription is no call that is under way
    async with orders.subscribe("a"), orders.subscribe("b"), orders.subscribe("c"), orders.subscribe("d"):
        await client.ping()


async def test_a_closed_client(server: Connection, make_client: Make, settings: Settings) -> None:
    client = make_client(server.address)
    orders = client.boundary(settings.boundaries[0].name)
    subscription = orders.subscribe("a")
    async with subscription:
        waiting = asyncio.ensure_future(anext(subscription, None))
        await client.close()
        assert await waiting is None
    with pytest.raises(orisun.ClientClosed):
        await client.ping()
    with pytest.raises(orisun.ClientClosed):
        await anext(orders.subscribe("a"))


def test_a_client_belongs_to_one_loop(server_of_process: str) -> None:
    client = orisun.connect(server_of_process, username="admin", password="changeit")
    asyncio.run(client.ping())

    async def again() -> None:
        with pytest.raises(orisun.OrisunError, match="another event loop"):
            await client.ping()
        with pytest.raises(orisun.OrisunError, match="another event loop"):
            await anext(client.boundary("orders").subscribe("a"))
        await client.close()

    asyncio.run(again())


def test_a_client_is_closed_after_its_loop(server_of_process: str, settings: Settings) -> None:
    """What was left open there is gone with the loop, and hinders nobody."""
    client = orisun.connect(server_of_process, username="admin", password="changeit")
    subscription: list[orisun.Subscription] = []

    async def leave_open() -> None:
        subscription.append(client.boundary(settings.boundaries[0].name).subscribe("a"))
        await subscription[0].__aenter__()

    asyncio.run(leave_open())
    asyncio.run(client.close())

    async def read() -> None:
        assert await anext(subscription[0], None) is None

    asyncio.run(read())


async def test_cancelling_a_call_is_no_error_of_the_client(client: orisun.Client, orders: orisun.Boundary) -> None:
    call = asyncio.ensure_future(orders.append([NewEvent("A")]))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await client.ping()


async def test_tls(
    tmp_path: Path, make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]],
    make_client: Make,
) -> None:  # fmt: skip
    settings = make_settings(**written(tmp_path, issue("localhost", AUTHORITY)), grpc_tls_client_auth_required=True)
    port = int((await make_server(settings)).address.rpartition(":")[2])
    mine = issue("client", AUTHORITY)
    (tmp_path / "client.crt").write_bytes(mine.certificate)
    (tmp_path / "client.key").write_bytes(mine.key)
    files = orisun.TLS(tmp_path / "ca.crt", str(tmp_path / "client.crt"), tmp_path / "client.key")
    await make_client(f"localhost:{port}", tls=files).ping()
    own = orisun.TLS(AUTHORITY.certificate, mine.certificate, mine.key, server_name="localhost")
    await make_client(f"127.0.0.1:{port}", tls=own).ping()
    impatient = {"retry": orisun.NEVER, "timeout": 5.0}
    for wrong in (orisun.TLS(AUTHORITY.certificate), orisun.TLS(), False):
        with pytest.raises(orisun.Unavailable):
            await make_client(f"localhost:{port}", tls=wrong, **impatient).ping()
    assert "PRIVATE" not in repr(own)


async def test_calls_go_round_several_addresses_and_past_one_that_is_down(
    make_server: Callable[..., Awaitable[Connection]], make_client: Make, settings: Settings
) -> None:
    servers = [await make_server(settings) for _ in range(2)]
    down = f"127.0.0.1:{free_port()}"
    client = make_client([servers[0].address, down, servers[1].address])
    nodes = {(await client.server_info()).node_id for _ in range(8)}
    assert len(nodes) == 2
    # what may be made only once never goes to the one that is down, not even as the first call of a client
    for _ in range(6):
        await client.publish("news", "x")
    for number in range(5):
        first = make_client([down, servers[number % 2].address])
        await first.publish("news", "x")
    # while none is up it is told at once
    with pytest.raises(orisun.Unavailable, match=down):
        await asyncio.wait_for(make_client([down, f"127.0.0.1:{free_port()}"]).publish("news", "x"), 5)


async def test_calls_go_past_an_address_that_takes_connections_and_is_silent(
    server: Connection, make_client: Make
) -> None:
    """A host that hangs is neither connected nor down, for as long as gRPC waits for it."""
    taken: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", 0)
    silent_address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    client = make_client([silent_address, server.address], retry=orisun.NEVER)
    for _ in range(6):
        await client.ping(timeout=10)
    listener = make_client([silent_address, server.address])
    async with asyncio.timeout(10), listener.messages("news", "screen"):
        pass
    # the deadline holds while it is not known whether any of them answers
    nobody = make_client([silent_address, silent_address])
    with pytest.raises(orisun.DeadlineExceeded):
        await asyncio.wait_for(nobody.ping(timeout=0.3), 5)
    # and closing ends the wait
    pending = make_client([silent_address, silent_address])
    waiting = asyncio.ensure_future(pending.ping())
    await asyncio.sleep(0)
    await pending.close()
    with pytest.raises(orisun.ClientClosed):
        await asyncio.wait_for(waiting, 5)
    silent.close()
    for writer in taken:
        writer.transport.abort()


async def test_a_name_that_stands_for_several_addresses(
    make_server: Callable[..., Awaitable[Connection]], make_client: Make, settings: Settings
) -> None:
    first, second = [(await make_server(settings)).address for _ in range(2)]
    # one target of two addresses: what gRPC makes of a name with two records
    client = make_client([f"ipv4:{first},{second}"])
    seen: set[str] = set()

    async def both() -> bool:
        seen.add((await client.server_info()).node_id)
        return len(seen) == 2

    await eventually(both)
    await make_client(f"dns:///localhost:{first.rpartition(':')[2]}").ping()


async def test_api_tokens(server: Connection, client: orisun.Client, make_client: Make, settings: Settings) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    made = await client.admin.create_token("reader", ["READER"], soon)
    assert made.token not in repr(made)
    reader = make_client(server.address, token=made.token)
    await reader.ping()
    await reader.ping()
    with pytest.raises(orisun.PermissionDenied):
        await reader.boundary(settings.boundaries[0].name).append([NewEvent("A")])
    assert [token.name for token in await client.admin.tokens()] == ["reader"]
    await client.admin.revoke_token(made.info.token_id)
    with pytest.raises(orisun.Unauthenticated):
        await reader.ping()
