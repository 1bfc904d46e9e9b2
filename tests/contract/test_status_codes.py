"""Every status and message that contract.md quotes, through the wire, on both transports.

Authentication and users are in integration/test_auth.py and integration/test_users.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.app import App
from orisun_server.settings import Settings
from orisun_server.storage import turns
from tests.harness import ADMIN, Connection, eventually, is_quick
from tests.integration.test_auth import refusal

Code = grpc.StatusCode
NOWHERE = pb.Position(commit_position=-1, prepare_position=-1)
NAME_RULE = r'invalid boundary "{}": .+'


@pytest.fixture(scope="module", params=["grpcio", "native"])
def settings(make_settings: Callable[..., Settings], request: pytest.FixtureRequest) -> Settings:
    return make_settings(grpc_transport=request.param, append_max_events=20, append_max_criteria=3, append_max_tags=2)


@pytest.fixture(scope="module")
async def server(settings: Settings) -> AsyncIterator[Connection]:
    app = App(settings)
    await app.start()
    connection = Connection(app.address)
    yield connection
    await connection.close()
    await app.stop()


@pytest.fixture
async def boundary(server: Connection) -> str:
    """A fresh boundary of the running server."""
    name = "b" + secrets.token_hex(6)
    await create(server, name)
    return name


async def create(server: Connection, name: str, backend: str = "postgres", namespace: str = "contract") -> Any:
    placement = admin_pb2.BoundaryPlacementInput(backend=backend, namespace=namespace)
    request = admin_pb2.CreateBoundaryRequest(name=name, description="d", placement=placement)
    return (await server.admin.CreateBoundary(request, metadata=ADMIN)).boundary


def event(event_id: str = "", event_type: str = "T", data: str = "{}", metadata: str = "{}") -> pb.EventToSave:
    return pb.EventToSave(
        event_id=event_id or secrets.token_hex(8), event_type=event_type, data=data, metadata=metadata
    )


def long_numbers(count: int) -> str:
    """JSON of numbers of nine characters; PostgreSQL writes out each as 131,072 digits."""
    return '{"a": [' + ",".join(["1e131071"] * count) + "]}"


def criteria(**tags: str) -> list[pb.Criterion]:
    return [pb.Criterion(tags=[pb.Tag(key=key, value=value) for key, value in tags.items()])]


async def save(server: Connection, boundary: str, *events: pb.EventToSave, query: pb.SaveQuery | None = None) -> Any:
    request = pb.SaveEventsRequest(boundary=boundary, events=events, query=query)
    return await server.events.SaveEvents(request, metadata=ADMIN)


async def get(server: Connection, **fields: Any) -> list[pb.Event]:
    answer = await server.events.GetEvents(pb.GetEventsRequest(**fields), metadata=ADMIN)
    return list(answer.events)


async def reason_of(call: Any) -> tuple[str, dict[str, str]]:
    """Reason and metadata of the ErrorInfo of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    status = rpc_status.from_call(refused.value)
    assert status is not None
    assert status.code == refused.value.code().value[0]
    assert status.message == refused.value.details()
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "orisun"
    return info.reason, dict(info.metadata)


# -- boundaries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "ä", "a" * 64])
async def test_a_boundary_name_that_cannot_be(server: Connection, name: str) -> None:
    calls = [
        save(server, name, event()),
        get(server, boundary=name, count=1),
        server.events.GetLatestByCriteria(
            pb.GetLatestByCriteriaRequest(boundary=name, criteria=criteria(a="1")), metadata=ADMIN
        ),
        server.events.CatchUpSubscribeToEvents(
            pb.CatchUpSubscribeToEventStoreRequest(boundary=name, subscriber_name="s"), metadata=ADMIN
        ).read(),
        server.events.ListIndexes(pb.ListIndexesRequest(boundary=name), metadata=ADMIN),
        create(server, name),
        server.admin.GetBoundary(admin_pb2.GetBoundaryRequest(name=name), metadata=ADMIN),
    ]
    for call in calls:
        code, message = await refusal(call)
        assert code is Code.INVALID_ARGUMENT
        assert re.fullmatch(NAME_RULE.format(name), message)


async def test_an_unknown_boundary(server: Connection) -> None:
    calls = [
        save(server, "unknown", event()),
        get(server, boundary="unknown", count=1),
        server.events.GetLatestByCriteria(pb.GetLatestByCriteriaRequest(boundary="unknown"), metadata=ADMIN),
        server.events.CatchUpSubscribeToEvents(
            pb.CatchUpSubscribeToEventStoreRequest(boundary="unknown", subscriber_name="s"), metadata=ADMIN
        ).read(),
        server.events.CreateIndex(
            pb.CreateIndexRequest(boundary="unknown", name="i", fields=[pb.IndexField(json_key="a")]), metadata=ADMIN
        ),
        server.events.ListIndexes(pb.ListIndexesRequest(boundary="unknown"), metadata=ADMIN),
        server.admin.GetEventCount(admin_pb2.GetEventCountRequest(boundary="unknown"), metadata=ADMIN),
    ]
    for call in calls:
        assert await refusal(call) == (Code.FAILED_PRECONDITION, 'boundary "unknown" is not active')
    unknown = server.admin.GetBoundary(admin_pb2.GetBoundaryRequest(name="unknown"), metadata=ADMIN)
    assert (await refusal(unknown))[0] is Code.NOT_FOUND


async def test_creating_boundaries(server: Connection, boundary: str) -> None:
    assert await refusal(create(server, boundary)) == (
        Code.ALREADY_EXISTS,
        f'boundary "{boundary}" already exists',
    )
    bare = server.admin.CreateBoundary(admin_pb2.CreateBoundaryRequest(name="bare"), metadata=ADMIN)
    assert await refusal(bare) == (Code.INVALID_ARGUMENT, "boundary placement is required")
    assert (await refusal(create(server, "other", backend="sqlite")))[0] is Code.INVALID_ARGUMENT
    assert (await refusal(create(server, "other", namespace="no-schema")))[0] is Code.INVALID_ARGUMENT
    found = (await server.admin.GetBoundary(admin_pb2.GetBoundaryRequest(name=boundary), metadata=ADMIN)).boundary
    assert found.status == admin_pb2.BOUNDARY_LIFECYCLE_STATUS_ACTIVE
    assert (found.description, found.placement.backend, found.placement.namespace) == ("d", "postgres", "contract")
    assert not found.existed_before_catalog
    listed = (await server.admin.ListBoundaries(admin_pb2.ListBoundariesRequest(), metadata=ADMIN)).boundaries
    assert found in listed


# -- SaveEvents ----------------------------------------------------------------------------------------------------


async def test_the_checks_come_in_order(server: Connection) -> None:
    nothing = (Code.INVALID_ARGUMENT, "Invalid request: no events provided")
    assert await refusal(save(server, "no name")) == nothing
    assert await refusal(save(server, "unknown")) == nothing
    assert (await refusal(save(server, "no name", event(data="junk"))))[1].startswith('invalid boundary "no name": ')
    assert await refusal(save(server, "unknown", event(data="junk"))) == (
        Code.FAILED_PRECONDITION,
        'boundary "unknown" is not active',
    )


@pytest.mark.parametrize("text", ["junk", "[1]", "1", '"a"', "{", '{"a": 1} {}', "{'a': 1}", '{"a": NaN}', " "])
async def test_what_is_no_json_object(server: Connection, boundary: str, text: str) -> None:
    for field in ("data", "metadata"):
        code, message = await refusal(save(server, boundary, event(), event(**{field: text})))
        assert code is Code.INVALID_ARGUMENT
        assert message.startswith(f"invalid event JSON: event 1 {field}: ")


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (pb.EventToSave(event_type="T"), "event_id"),
        (pb.EventToSave(event_id="i"), "event_type"),
        (event(event_id="x" * 256), "event_id"),
        (event(event_type="x" * 256), "event_type"),
        (event(event_id="a\0"), "event_id"),
        (event(event_type="a\0"), "event_type"),
        (event(data='{"a": "\\u0000"}'), "data"),
        (event(data='{"a\\u0000": 1}'), "data"),
        (event(metadata='{"a": ["\\u0000"]}'), "metadata"),
        (event(data='{"a": "\\ud800"}'), "data"),
        (event(data='{"a": {"b": "\\udc00x"}}'), "data"),
        (event(metadata='{"a": "\\ud800\\u0041"}'), "metadata"),
        (event(data='{"a": 1e999999}'), "data"),
        (event(data=long_numbers(9)), "data"),
        (event(metadata=long_numbers(9)), "metadata"),
    ],
)
async def test_what_an_event_cannot_be(server: Connection, boundary: str, bad: pb.EventToSave, field: str) -> None:
    good = asyncio.gather(*(save(server, boundary, event()) for _ in range(5)))
    code, message = await refusal(save(server, boundary, event(), bad))
    assert code is Code.INVALID_ARGUMENT
    assert f"event 1 {field}" in message
    await good


async def test_the_longest_text_that_numbers_may_make_is_read_and_delivered(server: Connection, boundary: str) -> None:
    await save(server, boundary, event("long", data=long_numbers(8), metadata=long_numbers(8)), event("next"))
    printed = '{"a": [' + ", ".join(["1" + "0" * 131071] * 8) + "]}"
    (found,) = await get(server, boundary=boundary, count=1)
    assert found.data == found.metadata == printed
    call = server.events.CatchUpSubscribeToEvents(
        pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="s"), metadata=ADMIN
    )
    assert [(await call.read()).event_id, (await call.read()).event_id] == ["long", "next"]
    await save(server, boundary, event("live", data=long_numbers(8)), event("after"))
    assert [(await call.read()).data, (await call.read()).event_id] == [printed, "after"]
    call.cancel()


async def test_text_that_is_not_utf8(server: Connection, boundary: str) -> None:
    raw = pb.SaveEventsRequest(boundary=boundary, events=[event(), event("QQQ")]).SerializeToString()
    call = server.channel.unary_unary("/orisun.EventStore/SaveEvents")
    refused = await refusal(call(raw.replace(b"QQQ", b"\xff\xfe\xfd"), metadata=ADMIN))
    assert refused == (Code.INVALID_ARGUMENT, "invalid request: events[1].event_id: the text is not UTF-8")


async def test_empty_and_null_become_an_object(server: Connection, boundary: str) -> None:
    await save(server, boundary, event("a", data="", metadata="null"), event("b", data="null", metadata=""))
    assert [(one.data, one.metadata) for one in await get(server, boundary=boundary, count=9)] == [("{}", "{}")] * 2


async def test_event_type_in_data_belongs_to_the_server(server: Connection, boundary: str) -> None:
    await save(server, boundary, event(event_type="Real", data='{"eventType": "Fake", "a": 1}'))
    for key in ("eventType", "event_type"):
        query = pb.Query(criteria=criteria(**{key: "Real"}))
        (found,) = await get(server, boundary=boundary, count=9, query=query)
        assert json.loads(found.data) == {"a": 1}
        fake = pb.Query(criteria=criteria(**{key: "Fake"}))
        assert await get(server, boundary=boundary, count=9, query=fake) == []


async def test_positions_and_the_write_result(server: Connection, boundary: str) -> None:
    first = await save(server, boundary, event())
    assert first == pb.WriteResult(
        log_position=pb.Position(commit_position=1, prepare_position=0),
        new_global_id=0,
        latest_transaction_id=1,
        latest_global_id=0,
    )
    batch = await save(server, boundary, event(), event(), event())
    assert (batch.log_position.commit_position, batch.log_position.prepare_position) == (
        batch.latest_transaction_id,
        batch.latest_global_id,
    )
    stored = await get(server, boundary=boundary, count=9)
    assert [one.position.prepare_position for one in stored[1:]] == [
        batch.new_global_id - 2,
        batch.new_global_id - 1,
        batch.new_global_id,
    ]
    assert {one.position.commit_position for one in stored[1:]} == {batch.new_global_id + 1}


@pytest.mark.parametrize(
    ("expected", "actual"),
    [((-1, -1), (1, 0)), ((0, 0), (1, 0)), ((1, 1), (1, 0)), ((9, 9), (1, 0)), ((2, 0), (1, 0))],
)
async def test_a_conflict_tells_both_positions(
    server: Connection, boundary: str, expected: tuple[int, int], actual: tuple[int, int]
) -> None:
    await save(server, boundary, event(data='{"a": 1}'))
    place = pb.Position(commit_position=expected[0], prepare_position=expected[1])
    query = pb.SaveQuery(expected_position=place, criteria=criteria(a="1"))
    assert await refusal(save(server, boundary, event(), query=query)) == (
        Code.ALREADY_EXISTS,
        f"OptimisticConcurrencyException:StreamVersionConflict: Expected {expected}, Actual {actual}",
    )
    assert await reason_of(save(server, boundary, event(), query=query)) == (
        "CONTEXT_CHANGED",
        {
            "expected_transaction_id": str(expected[0]),
            "expected_global_id": str(expected[1]),
            "actual_transaction_id": str(actual[0]),
            "actual_global_id": str(actual[1]),
        },
    )


async def test_a_conflict_comes_before_the_deadline(
    server: Connection, boundary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that lost one context are told one after the other: here after minutes, if they waited so long."""
    monkeypatch.setattr(turns, "LONGEST_WAIT", 600.0)
    monkeypatch.setattr(turns, "_FLUSHES", 1e6)
    await save(server, boundary, event(data='{"a": 1}'))
    query = pb.SaveQuery(criteria=criteria(a="1"))
    stale = [pb.SaveEventsRequest(boundary=boundary, events=[event()], query=query) for _ in range(30)]
    calls = (server.events.SaveEvents(request, metadata=ADMIN, timeout=2) for request in stale)
    assert {code for code, _ in await asyncio.gather(*map(refusal, calls))} == {Code.ALREADY_EXISTS}


async def test_zeros_conflict_on_an_empty_context(server: Connection, boundary: str) -> None:
    query = pb.SaveQuery(expected_position=pb.Position(), criteria=criteria(a="1"))
    assert (await refusal(save(server, boundary, event(), query=query)))[1].endswith("Expected (0, 0), Actual (-1, -1)")


async def test_scopes_of_an_expected_position(server: Connection, boundary: str) -> None:
    await save(server, boundary, event(data='{"a": 1}'))
    empty_subset = pb.SaveQuery(expected_position=NOWHERE, subsetQuery=pb.Query())
    no_tags = pb.SaveQuery(expected_position=NOWHERE, criteria=[pb.Criterion()])
    unscoped = pb.SaveQuery(expected_position=NOWHERE)
    missing = pb.SaveQuery(criteria=criteria(a="1"))
    for query in (empty_subset, no_tags, unscoped, missing):
        assert (await refusal(save(server, boundary, event(), query=query)))[0] is Code.ALREADY_EXISTS
    elsewhere = pb.SaveQuery(criteria=criteria(a="2"))
    await save(server, boundary, event(), query=elsewhere)
    await save(server, boundary, event())
    both = pb.SaveQuery(criteria=criteria(a="1"), subsetQuery=pb.Query())
    assert (await refusal(save(server, boundary, event(), query=both)))[0] is Code.INVALID_ARGUMENT


async def test_repeats_and_duplicates(server: Connection, boundary: str) -> None:
    one, two = event("user-001", data='{"a": 1, "b": 2}'), event("user-002")
    first = await save(server, boundary, one, two)
    again = event("user-001", data='{"b":2,"a":1}')
    stale = pb.SaveQuery(expected_position=NOWHERE)
    assert await save(server, boundary, again, two, query=stale) == first
    changed = [
        (event("user-001", data='{"a": 2}'), two),
        (one, event("user-002", event_type="Other")),
        (one,),
        (two, one),
        (one, two, event()),
    ]
    for events in changed:
        code, message = await refusal(save(server, boundary, *events))
        assert code is Code.ALREADY_EXISTS
        assert message.startswith("DuplicateEventId: ")
        assert (await reason_of(save(server, boundary, *events)))[0] == "DUPLICATE_EVENT_ID"
    assert (await refusal(save(server, boundary, event("x"), event("x"))))[0] is Code.INVALID_ARGUMENT
    assert len(await get(server, boundary=boundary, count=9)) == 2


async def test_uuids_are_kept_in_lower_case(server: Connection, boundary: str) -> None:
    upper = "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0"
    first = await save(server, boundary, event(upper), event("Not-A-Uuid"))
    assert await save(server, boundary, event(upper.lower()), event("Not-A-Uuid")) == first
    assert [one.event_id for one in await get(server, boundary=boundary, count=9)] == [upper.lower(), "Not-A-Uuid"]


async def test_limits(server: Connection, boundary: str) -> None:
    assert (await refusal(save(server, boundary, *(event() for _ in range(21)))))[0] is Code.INVALID_ARGUMENT
    await save(server, boundary, *(event() for _ in range(20)))
    many = pb.SaveQuery(criteria=criteria(a="1") * 4)
    assert (await refusal(save(server, boundary, event(), query=many)))[0] is Code.INVALID_ARGUMENT
    wide = pb.SaveQuery(criteria=criteria(a="1", b="2", c="3"))
    assert (await refusal(save(server, boundary, event(), query=wide)))[0] is Code.INVALID_ARGUMENT


async def test_commands_refusals(server: Connection, boundary: str) -> None:
    def told(**command: str) -> pb.SaveEventsRequest:
        return pb.SaveEventsRequest(boundary=boundary, events=[event()], command=pb.Command(**command))

    for command, message in (
        ({}, "invalid command: command_id: must not be empty"),
        ({"command_id": "c"}, "invalid command: type: must not be empty"),
        (
            {"command_id": "c" * 256, "type": "t"},
            "invalid command: command_id: 256 characters; at most 255 are allowed",
        ),
        ({"command_id": "c\0", "type": "t"}, "invalid command: command_id: must not contain NUL characters"),
    ):
        request = server.events.SaveEvents(told(**command), metadata=ADMIN)
        assert await refusal(request) == (Code.INVALID_ARGUMENT, message)
    bad = {"command_id": "c", "type": "t", "data": "[]"}
    code, message = await refusal(server.events.SaveEvents(told(**bad), metadata=ADMIN))
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("invalid command JSON: data: ")
    huge = {"command_id": "c", "type": "t", "metadata": '{"n": 1e200000}'}
    code, message = await refusal(server.events.SaveEvents(told(**huge), metadata=ADMIN))
    assert (code, message) == (
        Code.INVALID_ARGUMENT,
        "invalid command JSON: metadata: a number is out of PostgreSQL's range",
    )
    for count, expected in ((0, "Count cannot be 0"), (10_001, "Count cannot exceed 10000")):
        asked = pb.GetCommandsRequest(boundary=boundary, count=count)
        found = await refusal(server.events.GetCommands(asked, metadata=ADMIN))
        assert found == (Code.INVALID_ARGUMENT, expected)


async def test_an_unknown_rpc_is_unimplemented(server: Connection) -> None:
    unknown = server.channel.unary_unary("/orisun.EventStore/Nothing")(b"", metadata=ADMIN)
    assert (await refusal(unknown))[0] is Code.UNIMPLEMENTED


# -- reading -------------------------------------------------------------------------------------------------------


async def test_get_events_refusals(server: Connection, boundary: str) -> None:
    zero = (Code.INVALID_ARGUMENT, "Count cannot be 0")
    assert await refusal(get(server, boundary="no name")) == zero
    assert await refusal(get(server, boundary=boundary)) == zero
    assert await refusal(get(server, boundary=boundary, count=10_001)) == (
        Code.INVALID_ARGUMENT,
        "Count cannot exceed 10000",
    )
    assert await get(server, boundary=boundary, count=10_000) == []
    both = get(server, boundary=boundary, count=1, from_position=NOWHERE, after_position=NOWHERE)
    assert (await refusal(both))[0] is Code.INVALID_ARGUMENT


async def test_get_events_positions_and_directions(server: Connection, boundary: str) -> None:
    await save(server, boundary, event("a"), event("b"), event("c"))

    async def ids(**fields: Any) -> str:
        return "".join(one.event_id for one in await get(server, boundary=boundary, count=10, **fields))

    middle = pb.Position(commit_position=3, prepare_position=1)
    desc = pb.DESC
    assert await ids() == "abc"
    assert await ids(direction=desc) == "cba"
    assert await ids(from_position=middle) == "bc"
    assert await ids(from_position=middle, direction=desc) == "ba"
    assert await ids(after_position=middle) == "c"
    assert await ids(after_position=middle, direction=desc) == "a"
    assert await ids(from_position=NOWHERE) == "abc"
    assert await ids(from_position=NOWHERE, direction=desc) == ""
    assert await ids(direction=7) == "abc"


async def test_latest_refusals_and_answers(server: Connection, boundary: str) -> None:
    async def latest(*asked: pb.Criterion, of: str = boundary) -> Any:
        request = pb.GetLatestByCriteriaRequest(boundary=of, criteria=asked)
        return await server.events.GetLatestByCriteria(request, metadata=ADMIN)

    assert await refusal(latest()) == (Code.INVALID_ARGUMENT, "at least one criterion is required")
    assert await refusal(latest(*criteria(a="1"), pb.Criterion())) == (
        Code.INVALID_ARGUMENT,
        "criterion 1 has no tags",
    )
    assert await refusal(latest(of="unknown")) == (Code.FAILED_PRECONDITION, 'boundary "unknown" is not active')
    assert (await latest(*criteria(a="1"))).context_position == NOWHERE
    await save(server, boundary, event("one", data='{"a": 1}'), event("two", data='{"a": 2}'))
    answer = await latest(*criteria(a="2"), *criteria(a="3"), *criteria(a="1"))
    assert [result.event.event_id if result.HasField("event") else None for result in answer.results] == [
        "two",
        None,
        "one",
    ]
    assert [result.criterion for result in answer.results] == [
        *criteria(a="2"),
        *criteria(a="3"),
        *criteria(a="1"),
    ]
    assert answer.context_position == answer.results[0].event.position


# -- subscriptions and pub/sub -------------------------------------------------------------------------------------


def subscribe(server: Connection, boundary: str, name: str = "s", **fields: Any) -> Any:
    request = pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name=name, **fields)
    return server.events.CatchUpSubscribeToEvents(request, metadata=ADMIN)


async def test_subscription_refusals(server: Connection, boundary: str) -> None:
    assert (await refusal(subscribe(server, boundary, "").read()))[0] is Code.INVALID_ARGUMENT
    assert (await refusal(subscribe(server, boundary, "x" * 256).read()))[0] is Code.INVALID_ARGUMENT
    await save(server, boundary, event("a"))
    beyond = pb.Position(commit_position=99, prepare_position=98)
    assert (await refusal(subscribe(server, boundary, after_position=beyond).read()))[0] is Code.OUT_OF_RANGE


async def test_a_subscriber_s_name_is_exclusive_and_free_after_cancel(server: Connection, boundary: str) -> None:
    await save(server, boundary, event("a"))
    for name in ("s", "x" * 255, "a b/ü\0*.>'\""):

        async def taken(name: str = name) -> Any:
            """A stream of the name, unless somebody has it."""
            stream = subscribe(server, boundary, name)
            with contextlib.suppress(grpc.aio.AioRpcError):
                if (await stream.read()).event_id == "a":
                    return stream
            return None

        async def frees(name: str = name, taken: Callable[[], Any] = taken) -> float:
            first = await eventually(taken)
            refused = subscribe(server, boundary, name).read()
            assert (await refusal(asyncio.wait_for(refused, 30)))[0] is Code.ALREADY_EXISTS
            began = time.monotonic()
            first.cancel()
            (await eventually(taken)).cancel()
            return time.monotonic() - began

        await is_quick(frees, 1)


@pytest.mark.parametrize("after", [None, NOWHERE, pb.Position()])
async def test_beginnings_of_a_subscription(server: Connection, boundary: str, after: pb.Position | None) -> None:
    await save(server, boundary, event("a"), event("b"))
    stream = subscribe(server, boundary, after_position=after)
    assert [(await stream.read()).event_id for _ in range(2)] == ["a", "b"]
    stream.cancel()


@pytest.mark.parametrize("subject", ["", "a*", "a.>", ">", "a b", "$SYS.a", "a.$b", "a..b", ".a", "a.", "a\t"])
async def test_subjects_that_cannot_be(server: Connection, subject: str) -> None:
    publish = server.events.PublishToPubSub(pb.PublishRequest(subject=subject, data="x"), metadata=ADMIN)
    assert (await refusal(publish))[0] is Code.INVALID_ARGUMENT
    request = pb.SubscribeRequest(subject=subject, consumer_name="c")
    assert (await refusal(server.events.SubscribeToPubSub(request, metadata=ADMIN).read()))[0] is Code.INVALID_ARGUMENT


# -- indexes and counts --------------------------------------------------------------------------------------------


def index(boundary: str, name: str = "i", key: str = "a", **fields: Any) -> pb.CreateIndexRequest:
    return pb.CreateIndexRequest(boundary=boundary, name=name, fields=[pb.IndexField(json_key=key)], **fields)


@pytest.mark.parametrize("service", ["events", "admin"])
async def test_index_refusals(server: Connection, boundary: str, service: str) -> None:
    stub: Any = getattr(server, service)

    async def create_index(request: pb.CreateIndexRequest) -> Any:
        return await stub.CreateIndex(request, metadata=ADMIN)

    missing = (Code.INVALID_ARGUMENT, "boundary, name, and at least one field are required")
    assert await refusal(create_index(index(""))) == missing
    assert await refusal(create_index(index(boundary, name=""))) == missing
    assert await refusal(create_index(pb.CreateIndexRequest(boundary=boundary, name="i"))) == missing
    assert await refusal(create_index(index(boundary, key=""))) == (
        Code.INVALID_ARGUMENT,
        "each field must have a json_key",
    )
    no_key = index(boundary, conditions=[pb.IndexCondition(operator="=", value="1")])
    assert await refusal(create_index(no_key)) == (Code.INVALID_ARGUMENT, "each condition must have a key")
    like = index(boundary, conditions=[pb.IndexCondition(key="a", operator="LIKE", value="1")])
    assert await refusal(create_index(like)) == (
        Code.INVALID_ARGUMENT,
        'invalid operator "LIKE": must be one of =, >, <, >=, <=',
    )
    name = "i" + service
    await create_index(index(boundary, name))
    await create_index(index(boundary, name))
    assert (await refusal(create_index(index(boundary, name, key="b"))))[0] is Code.ALREADY_EXISTS
    await stub.DropIndex(pb.DropIndexRequest(boundary=boundary, name=name), metadata=ADMIN)
    await stub.DropIndex(pb.DropIndexRequest(boundary=boundary, name="nothing"), metadata=ADMIN)


async def test_reading_indexes(server: Connection, boundary: str) -> None:
    unknown = server.events.GetIndex(pb.GetIndexRequest(boundary=boundary, name="nothing"), metadata=ADMIN)
    assert (await refusal(unknown))[0] is Code.NOT_FOUND
    request = pb.CreateIndexRequest(
        boundary=boundary,
        name="placed",
        fields=[pb.IndexField(json_key="amount", value_type=pb.NUMERIC), pb.IndexField(json_key="event_type")],
        conditions=[pb.IndexCondition(key="eventType", operator="=", value="Placed")],
        condition_combinator=pb.OR,
    )
    await server.admin.CreateIndex(request, metadata=ADMIN)

    async def definition() -> pb.IndexDefinition:
        answer = await server.events.GetIndex(pb.GetIndexRequest(boundary=boundary, name="placed"), metadata=ADMIN)
        found: pb.IndexDefinition = answer.index
        return found

    async def ready() -> bool:
        return (await definition()).state == pb.INDEX_STATE_READY

    await eventually(ready)
    found = await definition()
    assert [(field.json_key, field.value_type) for field in found.fields] == [("amount", pb.NUMERIC), ("eventType", 0)]
    assert found.conditions == request.conditions
    assert found.condition_combinator == pb.OR
    listed = await server.events.ListIndexes(pb.ListIndexesRequest(boundary=boundary), metadata=ADMIN)
    assert list(listed.indexes) == [found]


async def test_event_count(server: Connection, boundary: str) -> None:
    missing = server.admin.GetEventCount(admin_pb2.GetEventCountRequest(), metadata=ADMIN)
    assert await refusal(missing) == (Code.INVALID_ARGUMENT, "boundary is required")
    await save(server, boundary, event(), event())
    counted = await server.admin.GetEventCount(admin_pb2.GetEventCountRequest(boundary=boundary), metadata=ADMIN)
    assert counted.count == 2


async def test_server_info(server: Connection) -> None:
    info = await server.events.GetServerInfo(pb.GetServerInfoRequest(), metadata=ADMIN)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", info.version)
    assert info.backend == pb.STORAGE_BACKEND_POSTGRES
    assert info.node_id
    assert sorted(info.capabilities) == [1, 2, 3, 4, 5]


async def test_long_values_in_messages_fit_into_metadata(server: Connection) -> None:
    code, message = await refusal(get(server, boundary="ü" * 100_000, count=1))
    assert code is Code.INVALID_ARGUMENT
    assert len(message.encode()) < 2_000
