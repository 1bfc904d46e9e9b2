"""The grpcurl examples of the product's documents work as they are printed there.

``seeds/`` holds their commands verbatim. Boundaries that they name are created first, and positions and identities that
they cannot know (placeholders) are replaced by returned ones; nothing else is.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from orisun_api import admin_pb2, eventstore_pb2
from orisun_server.settings import Settings
from tests.contract.examples import (
    REFLECTIONS,
    Client,
    Example,
    Grpcurl,
    Json,
    Reflected,
    Refused,
    commands,
    parse,
    without_comments,
)
from tests.harness import Connection, basic, eventually
from tests.integration.test_tls import AUTHORITY, issue, written

EXCERPTS = Path(__file__).parent / "seeds"
DOCUMENTS = Path(__file__).parents[3] / "shared/seeds"

#: What the examples take for granted: (boundary, event type, data).
STORED = {
    "banking": [
        ("AccountOpened", '{"account_holder": "alice", "balance": 1000}'),
        ("AccountOpened", '{"account_holder": "bob", "balance": 500}'),
    ],
    "orisun_test_2": [
        ("OrderCreated", '{"order_id": "1"}'),
        ("Other", '{"order_id": "1"}'),
        ("PaymentInitiated", '{"order_id": "1"}'),
        ("PaymentProcessed", '{"order_id": "1"}'),
        ("OrderShipped", '{"order_id": "1"}'),
    ],
}


class Walk:
    """Runs the examples of one excerpt in order, on a server whose boundaries are as yet empty."""

    def __init__(self, connection: Connection, client: Client, *, prepared: bool = True) -> None:
        self._connection, self._client, self._prepared = connection, client, prepared
        self._schema = f"examples_{secrets.token_hex(4)}"
        #: Positions that were returned, by boundary.
        self.returned: dict[str, list[Json]] = {}
        self.user: Json = {}

    async def run(self, excerpt: str) -> list[Any]:
        return [await self.step(example) for example in parse((EXCERPTS / excerpt).read_text())]

    async def step(self, example: Example) -> Any:
        """The services of ``list``, the message of a call, the messages of a subscription."""
        if example.method == "list":
            return await self._client.services(example)
        if example.body is None and "@" in example.arguments:
            # it shows how to give the credentials, and leaves the rest to the reader
            with pytest.raises(Refused) as refused:
                await self._client.call(example, None)
            return refused.value
        body = example.body or {}
        if "boundary" in body:
            await self._create(body["boundary"])
        rpc = example.method.partition("/")[2]
        if rpc in ("ChangePassword", "DeleteUser"):
            return await self._of_the_user(example, body)
        if rpc == "CatchUpSubscribeToEvents":
            stored = await self._get_events(example, body, 1000)
            return await self._followed(example, body, len(stored)), stored
        await self._replace_placeholders(example, body)
        answer = await self._client.call(example, body)
        if rpc == "SaveEvents":
            self.returned[body["boundary"]].append(answer["logPosition"])
        if rpc == "CreateUser":
            self.user = answer["user"]
        return answer

    async def _create(self, boundary: str) -> None:
        if boundary in self.returned:
            return
        self.returned[boundary] = []
        placement = admin_pb2.BoundaryPlacementInput(backend="postgres", namespace=self._schema)
        request = admin_pb2.CreateBoundaryRequest(name=boundary, placement=placement)
        created = await self._connection.admin.CreateBoundary(request, metadata=self._connection.metadata)
        assert created.boundary.status == admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE
        for number, (kind, data) in enumerate(STORED.get(boundary, []) if self._prepared else []):
            await self._save(boundary, f"stored-{number}", kind, data)

    async def _save(self, boundary: str, event_id: str, kind: str, data: str) -> None:
        event = eventstore_pb2.EventToSave(event_id=event_id, event_type=kind, data=data)
        asked = eventstore_pb2.SaveEventsRequest(boundary=boundary, events=[event])
        result = await self._connection.events.SaveEvents(asked, metadata=self._connection.metadata)
        place = result.log_position
        position = {"transaction_id": str(place.commit_position), "global_id": str(place.prepare_position)}
        self.returned[boundary].append(position)

    async def _followed(self, example: Example, body: Json, stored: int) -> list[Json]:
        """What is stored comes first; then, as it is saved, what is new."""
        async with aclosing(self._client.stream(example, body)) as stream:  # type: ignore[type-var]
            came = [await anext(stream) for _ in range(stored)]
            await self._save(body["boundary"], f"new-{secrets.token_hex(4)}", came[-1]["eventType"], came[-1]["data"])
            new = await anext(stream)
        assert new["eventId"].startswith("new-")
        assert (new["eventType"], new["data"]) == (came[-1]["eventType"], came[-1]["data"])
        return came

    async def _replace_placeholders(self, example: Example, body: Json) -> None:
        for field in ("from_position", "after_position"):
            if field in body:
                body[field] = _as_spelled(body[field], self.returned[body["boundary"]][0])
        expected = body.get("query", {}).get("expected_position")
        if expected and "-1" not in map(str, expected.values()):
            latest = await self._get_events(example, body, 1, direction="DESC")
            body["query"]["expected_position"] = _as_spelled(expected, latest[0]["position"])

    async def _get_events(self, example: Example, body: Json, count: int, direction: str = "ASC") -> list[Json]:
        question = {"boundary": body["boundary"], "count": count, "direction": direction}
        if criteria := body.get("query", {}).get("criteria"):
            question["query"] = {"criteria": criteria}
        answer = await self._client.call(_like(example, "orisun.EventStore/GetEvents"), question)
        events: list[Json] = answer.get("events", [])
        return events

    async def _of_the_user(self, example: Example, body: Json) -> Json:
        """The user that the examples created; a password is changed by its owner."""
        body["user_id"] = self.user["userId"]
        if "new_password" in body:
            body["current_password"] = "securePass123"
            with pytest.raises(Refused, match="PERMISSION_DENIED: can only change your own password"):
                await self._client.call(example, body)
            example = _like(example, example.method, header=basic("janedoe", "securePass123")[0][1])
        return await self._client.call(example, body)


def _as_spelled(placeholder: Json, position: Json) -> Json:
    # protobuf's JSON leaves zeros out
    return dict(zip(placeholder, (position["transaction_id"], position.get("global_id", "0")), strict=True))


def _like(example: Example, method: str, header: str | None = None) -> Example:
    """A call of another method, with standard input, or with another Authorization."""
    header = f"Authorization: {header}" if header else ": ".join(example.headers[0])
    return Example("", ("-H", header, "-d", "@", "localhost:5005", method), None)


def _ids(answer: Json) -> list[str]:
    return [event["eventId"] for event in answer.get("events", [])]


@pytest.fixture(params=["reflection", "grpcurl"])
async def connected(
    request: pytest.FixtureRequest, make_server: Callable[..., Awaitable[Connection]], settings: Settings
) -> tuple[Connection, Client]:
    """A fresh server and what runs the examples."""
    program = request.getfixturevalue("grpcurl") if request.param == "grpcurl" else None
    connection = await make_server(settings)
    client = Grpcurl(program, connection.address) if program else Reflected(connection.channel)
    return connection, client


@pytest.fixture
def walk(connected: tuple[Connection, Client]) -> Walk:
    return Walk(*connected)


SERVICES = ["grpc.health.v1.Health", "orisun.Admin", "orisun.EventStore"]


async def test_the_older_guide(walk: Walk) -> None:
    (
        services, registered, batch, everything, after, alice, subscribed, filtered,
        accounts, transferred, created, paid, shipped, history, nothing_to_save,
        user, users, valid, changed, deleted, user_count, event_count,
    ) = await walk.run("000_guide.txt")  # fmt: skip

    assert [name for name in services if not name.startswith("grpc.reflection")] == SERVICES
    assert registered == {
        "logPosition": {"transaction_id": "1"},
        "new_global_id": "0",
        "latest_transaction_id": "1",
        "latest_global_id": "0",
    }
    assert batch["new_global_id"] == batch["latest_global_id"] == "2"
    assert _ids(everything) == ["user-001", "profile-001", "email-001"]
    assert (
        everything["events"][1]["position"]["transaction_id"] == everything["events"][2]["position"]["transaction_id"]
    )
    assert _ids(after) == ["profile-001", "email-001"]
    assert _ids(alice) == ["user-001"]
    event = alice["events"][0]
    assert event["eventType"] == "UserRegistered"
    assert event["data"] == '{"email": "alice@example.com", "username": "alice", "full_name": "Alice Smith"}'
    assert event["metadata"] == '{"ip": "192.168.1.100", "source": "web_signup"}'
    assert event["position"] == {"transaction_id": "1"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", event["dateCreated"])
    for got, stored in (subscribed, filtered):
        assert got == stored
    assert len(subscribed[0]) == 3
    assert [item["eventType"] for item in filtered[0]] == ["UserRegistered", "UserProfileCompleted"]

    assert _ids(accounts) == ["stored-1", "stored-0"]
    assert transferred["new_global_id"] == "2"
    assert [created["new_global_id"], paid["new_global_id"], shipped["new_global_id"]] == ["0", "1", "2"]
    assert _ids(history) == ["order-created-001", "payment-001", "shipped-001"]
    assert nothing_to_save.code == "INVALID_ARGUMENT"
    assert "no events provided" in nothing_to_save.message

    assert user["user"]["username"] == "janedoe"
    assert user["user"]["roles"] == ["USER"]
    assert [item["username"] for item in users["users"]] == ["admin", "janedoe"]
    assert valid == {"success": True, "user": users["users"][1]}
    assert changed == {"success": True}
    assert deleted == {"success": True}
    assert user_count == {"count": "1"}
    assert event_count == {"count": "5"}  # each subscription had one come


async def test_the_older_reference(walk: Walk) -> None:
    saved, orders, (payments, stored) = await walk.run("000_reference.txt")
    assert saved["new_global_id"] == "1"
    assert saved["latest_transaction_id"] == "2"
    assert _ids(orders) == ["stored-0", "stored-3", "stored-4"]
    assert payments == stored
    assert [event["eventType"] for event in payments] == ["PaymentInitiated"]


async def test_the_older_bounded_contexts(connected: tuple[Connection, Client]) -> None:
    users, orders = await Walk(*connected, prepared=False).run("000_contexts.txt")
    assert users["new_global_id"] == orders["new_global_id"] == "0"


async def test_the_newer_guide(connected: tuple[Connection, Client]) -> None:
    connection, _ = connected
    services, registered, batch, everything, page, alice, subscribed, filtered, *indexes = await Walk(*connected).run(
        "002.txt"
    )
    assert [name for name in services if not name.startswith("grpc.reflection")] == SERVICES
    assert {"new_global_id", "latest_transaction_id", "latest_global_id"} <= registered.keys()
    assert registered["new_global_id"] == registered["latest_global_id"] == "0"
    assert batch["new_global_id"] == "2"
    assert _ids(everything) == _ids(page) == ["user-001", "profile-001", "email-001"]
    assert _ids(alice) == ["user-001"]
    for got, stored in (subscribed, filtered):
        assert got == stored
    assert (len(subscribed[0]), len(filtered[0])) == (3, 1)
    assert indexes == [{}] * 4

    async def ready() -> bool:
        request = eventstore_pb2.ListIndexesRequest(boundary="orders")
        answer = await connection.events.ListIndexes(request, metadata=connection.metadata)
        states = {index.name: index.state for index in answer.indexes}
        return states == dict.fromkeys(["category_priority", "placed_amount"], eventstore_pb2.INDEX_STATE_READY)

    await eventually(ready, message="the indexes of the examples")


async def test_both_reflections_give_the_same_descriptors(server: Connection) -> None:
    symbols = ("orisun.EventStore", "orisun.Admin", "grpc.health.v1.Health")
    files = [await Reflected(server.channel, name).files(server.metadata, *symbols) for name in REFLECTIONS]
    assert files[0] == files[1]
    assert {"orisun_api/eventstore.proto", "orisun_api/admin.proto", "google/protobuf/timestamp.proto"} <= files[
        0
    ].keys()
    with pytest.raises(Refused, match="not found"):
        await Reflected(server.channel).files(server.metadata, "orisun.Nothing")


async def test_examples_over_the_older_reflection(server: Connection) -> None:
    client = Reflected(server.channel, REFLECTIONS[1])
    answers = await Walk(server, client, prepared=False).run("000_contexts.txt")
    assert [answer["new_global_id"] for answer in answers] == ["0", "0"]


async def test_a_conflict_as_the_guide_tells(server: Connection) -> None:
    """If there are new events (concurrent modification), you'll get an ALREADY_EXISTS error."""
    guide = parse((EXCERPTS / "000_guide.txt").read_text())
    asked, transfer = (example for example in guide if (example.body or {}).get("boundary") == "banking")
    walk = Walk(server, Reflected(server.channel))
    assert _ids(await walk.step(asked)) == ["stored-1", "stored-0"]
    assert transfer.body is not None
    with pytest.raises(Refused, match=r"ALREADY_EXISTS: .*Expected \(123, 456\), Actual \(2, 1\)"):
        await Reflected(server.channel).call(transfer, transfer.body)


async def test_tls(make_server: Callable[..., Awaitable[Connection]], make_settings: Callable[..., Settings],
                   grpcurl: Path, data_dir: Path) -> None:  # fmt: skip
    """The native transport has no TLS."""
    tls = written(data_dir, issue("localhost", AUTHORITY))
    client = issue("client", AUTHORITY)
    (data_dir / "client.crt").write_bytes(client.certificate)
    (data_dir / "client.key").write_bytes(client.key)
    insecure, verified, mutual = parse((EXCERPTS / "000_tls.txt").read_text())

    async def services(example: Example, server: Connection) -> list[str]:
        port = server.address.rpartition(":")[2]
        return await Grpcurl(grpcurl, f"localhost:{port}", plaintext=False, files=data_dir).services(example)

    server = await make_server(make_settings(**tls))
    assert "orisun.EventStore" in await services(insecure, server)
    assert "orisun.EventStore" in await services(verified, server)
    server = await make_server(make_settings(**tls, grpc_tls_client_auth_required=True))
    assert "orisun.EventStore" in await services(mutual, server)


@pytest.mark.parametrize("document", ["000", "002"])
def test_the_excerpts_are_the_documents_commands(document: str) -> None:
    if not DOCUMENTS.exists():
        pytest.skip("NOT TESTED: the documents are not beside the project; their excerpts are tested all the same")
    (path,) = DOCUMENTS.glob(f"{document}_*")
    text = path.read_text()
    excerpts = [excerpt.read_text() for excerpt in EXCERPTS.glob(f"{document}*")]
    assert sorted(commands("\n".join(excerpts))) == sorted(commands(text))
    for line in re.findall(r"^AUTH=.*$", "\n".join(excerpts), re.M):
        assert line in text


def test_comments_are_removed_and_texts_are_not() -> None:
    assert without_comments('{"a": "//b\\"//", // c\n "d": 1} // e') == '{"a": "//b\\"//", \n "d": 1} '
