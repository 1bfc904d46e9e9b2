"""The store over the wire against a model of it: a Python list.

The model is written from contract.md alone and shares no code with the server: what ``->>`` prints of each value is
written down here, positions compare as tuples, a context's position is the greatest that matches.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

import grpc
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pydantic import SecretStr

from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.storage.database import Database
from orisun_server.storage.names import BoundaryNames
from tests.harness import ADMIN, Connection, eventually

T = TypeVar("T")
Place = tuple[int, int]
Criteria = tuple[tuple[tuple[str, str], ...], ...]
NOTHING = (-1, -1)

#: JSON values and what ``->>`` prints of them.
PRINTED = {
    '"a"': "a",
    '"b"': "b",
    '""': "",
    '"\\u00e9 \\"\\n"': 'é "\n',
    "1": "1",
    "1.0": "1.0",
    "1e2": "100",
    "-0.00001": "-0.00001",
    "1000000": "1000000",
    "true": "true",
    "null": None,
    '{"b":1,"a":[1,"x"]}': '{"a": [1, "x"], "b": 1}',
    "[]": "[]",
}
TYPES = ("T1", "T2")
UUID = "0191B93C-5F3C-75C8-92CE-5A3300709178"


@dataclass(frozen=True)
class New:
    """An event to append; ``data`` is from key to JSON value."""

    event_id: str
    event_type: str
    data: tuple[tuple[str, str], ...]
    metadata: str = "{}"

    @property
    def text(self) -> str:
        return "{" + ", ".join(f'"{key}": {value}' for key, value in self.data) + "}"

    @property
    def stored_data(self) -> Any:
        return {key: value for key, value in json.loads(self.text).items() if key != "eventType"}

    @property
    def identity(self) -> tuple[str, str, object, object]:
        """What makes two events the same to a repeat."""
        event_id = self.event_id.lower() if self.event_id.upper() == UUID else self.event_id
        numbers: Any = {"parse_float": Decimal, "parse_int": Decimal}
        data = {key: value for key, value in json.loads(self.text, **numbers).items() if key != "eventType"}
        return event_id, self.event_type, _typed(data), _typed(json.loads(self.metadata or "{}", **numbers))

    def matches(self, criteria: Criteria) -> bool:
        return not criteria or any(all(self.has(*tag) for tag in criterion) for criterion in criteria)

    def has(self, key: str, value: str) -> bool:
        if key in ("eventType", "event_type"):
            return self.event_type == value
        printed = PRINTED[dict(self.data)[key]] if key in dict(self.data) else None
        return printed is not None and printed == value


def _typed(value: object) -> object:
    """Equal where jsonb is equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return "object", frozenset((key, _typed(item)) for key, item in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_typed, value))
    return type(value).__name__, value


@dataclass
class Model:
    """One boundary: the events with their positions, in order, and the calls that stored them."""

    name: str
    events: list[tuple[Place, New]] = field(default_factory=list)
    calls: dict[tuple[object, ...], Place] = field(default_factory=dict)

    @property
    def ids(self) -> set[str]:
        return {event.identity[0] for _, event in self.events}

    def latest(self, criteria: Criteria) -> Place:
        return max((place for place, event in self.events if event.matches(criteria)), default=NOTHING)

    def answer(self, events: Iterable[New], criteria: Criteria | None, expected: Place) -> str | Place | None:
        """A refusal's message, the position of an earlier call, or None when the events are to be stored."""
        identities = tuple(event.identity for event in events)
        if identities in self.calls:
            return self.calls[identities]
        if self.ids & {identity[0] for identity in identities}:
            return "DuplicateEventId: "
        if criteria is not None and (actual := self.latest(criteria)) != expected:
            return _conflict(expected, actual)
        return None

    def store(self, events: tuple[New, ...], last: Place) -> None:
        commit, prepare = last
        assert commit == prepare + 1
        first = prepare - len(events) + 1
        assert not self.events or (first > self.events[-1][0][1] and last > self.events[-1][0])
        assert first >= 0
        self.events += [((commit, first + number), event) for number, event in enumerate(events)]
        self.calls[tuple(event.identity for event in events)] = last

    def page(
        self, criteria: Criteria, count: int, descending: bool, start: Place | None, after: Place | None
    ) -> list[tuple[Place, New]]:
        def inside(place: Place) -> bool:
            if descending:
                return (start is None or place <= start) and (after is None or place < after)
            return (start is None or place >= start) and (after is None or place > after)

        found = [(place, event) for place, event in self.events if inside(place) and event.matches(criteria)]
        return (found[::-1] if descending else found)[:count]


def _conflict(expected: Place, actual: Place) -> str:
    return f"OptimisticConcurrencyException:StreamVersionConflict: Expected {expected}, Actual {actual}"


def _position(place: Place) -> pb.Position:
    return pb.Position(commit_position=place[0], prepare_position=place[1])


def _place(position: pb.Position) -> Place:
    return position.commit_position, position.prepare_position


def _criteria(criteria: Criteria) -> list[pb.Criterion]:
    return [pb.Criterion(tags=[pb.Tag(key=key, value=value) for key, value in tags]) for tags in criteria]


ids = st.sampled_from([*(f"id-{number}" for number in range(40)), UUID, UUID.lower()])
data = st.dictionaries(
    st.sampled_from(["account", "kind", "eventType", "event_type"]), st.sampled_from(sorted(PRINTED)), max_size=3
)
new_events = st.builds(
    New, ids, st.sampled_from(TYPES), data.map(lambda pairs: tuple(pairs.items())), st.sampled_from(["", '{"m": 1}'])
)
batches = st.lists(new_events, min_size=1, max_size=4, unique_by=lambda event: event.identity[0]).map(tuple)
keys = st.sampled_from(["account", "account", "kind", "eventType", "event_type", "missing"])
texts = st.sampled_from([*TYPES, *sorted(filter(None, PRINTED.values())), "", "other"])
tags = st.lists(st.tuples(keys, texts), min_size=1, max_size=2).map(tuple)
some_criteria = st.lists(tags, min_size=1, max_size=3).map(tuple)
boundaries = st.sampled_from([0, 1])
anywhere = st.tuples(st.sampled_from(["event", "before", "behind", "made up"]), st.integers(0, 60), st.integers(-2, 60))


class StoreMachine(RuleBasedStateMachine):
    """The rules; ``wire`` makes a call on the server's loop and waits for its answer."""

    connection: Connection
    models: list[Model]
    wire: Callable[[Callable[[], Awaitable[Any]]], Any]
    reset: Callable[[], Awaitable[None]]

    @initialize()
    def empty(self) -> None:
        self.wire(self.reset)
        self.models = [Model(model.name) for model in type(self).models]
        self.fresh = itertools.count()

    # -- appends ---------------------------------------------------------------------------------------------------

    @rule(at=boundaries, events=batches)
    def append(self, at: int, events: tuple[New, ...]) -> None:
        self._append(at, events, None, None, NOTHING)

    @rule(
        at=boundaries,
        events=batches,
        criteria=some_criteria,
        expect=st.sampled_from(["right", "right", "right", "unset", "nothing", "zero", "older", "newer"]),
        newer_spelling=st.booleans(),
    )
    def append_in_context(
        self, at: int, events: tuple[New, ...], criteria: Criteria, expect: str, newer_spelling: bool
    ) -> None:
        expected = self._expected(at, criteria, expect)
        query = pb.SaveQuery() if expected is None else pb.SaveQuery(expected_position=_position(expected))
        if newer_spelling:
            query.subsetQuery.criteria.extend(_criteria(criteria))
        else:
            query.criteria.extend(_criteria(criteria))
        self._append(at, events, query, criteria, NOTHING if expected is None else expected)

    @rule(at=boundaries, events=batches, expect=st.sampled_from(["right", "right", "nothing", "older", "newer"]),
          spelling=st.sampled_from(["no criteria", "empty subset", "empty criterion"]))  # fmt: skip
    def append_in_the_whole_boundary(self, at: int, events: tuple[New, ...], expect: str, spelling: str) -> None:
        expected = self._expected(at, (), expect)
        assert expected is not None
        query = pb.SaveQuery(expected_position=_position(expected))
        if spelling == "empty subset":
            query.subsetQuery.SetInParent()
        elif spelling == "empty criterion":
            query.criteria.add()
        self._append(at, events, query, (), expected)

    @rule(
        at=boundaries, which=st.integers(0, 100), kind=st.sampled_from(["whole", "whole", "first", "changed", "more"])
    )
    def repeat(self, at: int, which: int, kind: str) -> None:
        """A stored call again, whole (whatever the context) or not quite."""
        stored = self.models[at].events
        if not stored:
            return
        commit = stored[which % len(stored)][0][0]
        events = tuple(event for place, event in stored if place[0] == commit)
        if kind == "first":
            events = events[:1]
        elif kind == "changed":
            last = events[-1]
            events = (*events[:-1], New(last.event_id, last.event_type, (*last.data, ("extra", "1"))))
        elif kind == "more":
            events = (*events, self._fresh(()))
        query = pb.SaveQuery(expected_position=_position((7, 3)), criteria=_criteria(((("account", "a"),),)))
        self._append(at, events, query, ((("account", "a"),),), (7, 3))

    @rule(at=boundaries, callers=st.integers(2, 6))
    def race_for_one_context(self, at: int, callers: int) -> None:
        """Of several that decided on one context and change it, one wins."""
        criteria: Criteria = ((("account", "race"),), (("account", "b"),))
        model, expected = self.models[at], self.models[at].latest(criteria)
        query = pb.SaveQuery(expected_position=_position(expected), criteria=_criteria(criteria))
        calls = [(self._fresh((("account", '"b"'),)),) for _ in range(callers)]
        answers = self.wire(lambda: asyncio.gather(*(self._save(at, events, query) for events in calls)))
        (winner,) = (number for number, answer in enumerate(answers) if not isinstance(answer, str))
        model.store(calls[winner], answers[winner])
        lost = _conflict(expected, answers[winner])
        assert [answer for answer in answers if isinstance(answer, str)] == [lost] * (callers - 1)

    @rule(sizes=st.lists(st.tuples(boundaries, st.integers(1, 3)), min_size=2, max_size=8))
    def append_at_once(self, sizes: list[tuple[int, int]]) -> None:
        """Without contexts all are stored, in some order."""
        calls = [(at, tuple(self._fresh((("kind", "1"),)) for _ in range(size))) for at, size in sizes]
        answers = self.wire(lambda: asyncio.gather(*(self._save(at, events, None) for at, events in calls)))
        assert not any(isinstance(answer, str) for answer in answers), answers
        for last, (at, events) in sorted(zip(answers, calls, strict=True)):
            self.models[at].store(events, last)

    # -- reads -----------------------------------------------------------------------------------------------------

    @rule(
        at=boundaries,
        criteria=st.just(()) | some_criteria,
        count=st.integers(1, 12),
        descending=st.booleans(),
        bound=st.sampled_from(["", "from", "after"]),
        place=anywhere,
    )
    def read(
        self, at: int, criteria: Criteria, count: int, descending: bool, bound: str, place: tuple[str, int, int]
    ) -> None:
        model, chosen = self.models[at], self._anywhere(at, place)
        start, after = (chosen if bound == name else None for name in ("from", "after"))
        request = pb.GetEventsRequest(
            boundary=model.name,
            query=pb.Query(criteria=_criteria(criteria)),
            count=count,
            direction=pb.DESC if descending else pb.ASC,
            from_position=_position(start) if start else None,
            after_position=_position(after) if after else None,
        )
        _same(self._read(request), model.page(criteria, count, descending, start, after))

    @rule(at=boundaries, criteria=some_criteria)
    def read_latest(self, at: int, criteria: Criteria) -> None:
        model = self.models[at]
        request = pb.GetLatestByCriteriaRequest(boundary=model.name, criteria=_criteria(criteria))
        answer = self.wire(lambda: self.connection.events.GetLatestByCriteria(request, metadata=ADMIN, timeout=10))
        assert [result.criterion for result in answer.results] == list(request.criteria)
        for result, criterion in zip(answer.results, criteria, strict=True):
            latest = model.page((criterion,), 1, True, None, None)
            _same([result.event] if result.HasField("event") else [], latest)
        assert _place(answer.context_position) == model.latest(criteria)

    @invariant()
    def everything_is_there_in_order(self) -> None:
        for model in self.models:
            _same(self._read(pb.GetEventsRequest(boundary=model.name, count=10_000)), model.events)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _append(
        self, at: int, events: tuple[New, ...], query: pb.SaveQuery | None, criteria: Criteria | None, expected: Place
    ) -> None:
        model = self.models[at]
        wanted = model.answer(events, criteria, expected)
        got = self.wire(lambda: self._save(at, events, query))
        if wanted is None:
            assert not isinstance(got, str), got
            model.store(events, got)
        elif isinstance(wanted, str):
            assert isinstance(got, str), got
            assert got.startswith(wanted), (got, wanted)
        else:
            assert got == wanted

    async def _save(self, at: int, events: tuple[New, ...], query: pb.SaveQuery | None) -> Place | str:
        sent = [
            pb.EventToSave(
                event_id=event.event_id, event_type=event.event_type, data=event.text, metadata=event.metadata
            )
            for event in events
        ]
        request = pb.SaveEventsRequest(boundary=self.models[at].name, query=query, events=sent)
        try:
            result = await self.connection.events.SaveEvents(request, metadata=ADMIN, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.ALREADY_EXISTS:
                raise
            return error.details() or ""
        assert result.new_global_id == result.latest_global_id == result.log_position.prepare_position
        assert result.latest_transaction_id == result.log_position.commit_position
        return _place(result.log_position)

    def _read(self, request: pb.GetEventsRequest) -> list[pb.Event]:
        return list(self.wire(lambda: self.connection.events.GetEvents(request, metadata=ADMIN, timeout=10)).events)

    def _fresh(self, pairs: tuple[tuple[str, str], ...]) -> New:
        return New(f"fresh-{next(self.fresh)}", "T1", pairs)

    def _expected(self, at: int, criteria: Criteria, expect: str) -> Place | None:
        actual = self.models[at].latest(criteria)
        older = max((place for place, _ in self.models[at].events if place < actual), default=(0, 0))
        return {
            "right": actual,
            "unset": None,
            "nothing": NOTHING,
            "zero": (0, 0),
            "older": older,
            "newer": (actual[0] + 1, actual[1] + 1),
        }[expect]

    def _anywhere(self, at: int, place: tuple[str, int, int]) -> Place:
        kind, one, other = place
        if kind == "made up" or not self.models[at].events:
            return one, other
        commit, prepare = self.models[at].events[one % len(self.models[at].events)][0]
        return {"event": (commit, prepare), "before": (commit, prepare - 1), "behind": (commit, prepare + 1)}[kind]


def _same(got: list[pb.Event], wanted: list[tuple[Place, New]]) -> None:
    assert [(_place(event.position), event.event_id, event.event_type) for event in got] == [
        (place, event.identity[0], event.event_type) for place, event in wanted
    ]
    for event, (_, stored) in zip(got, wanted, strict=True):
        assert json.loads(event.data) == stored.stored_data
        assert json.loads(event.metadata) == json.loads(stored.metadata or "{}")


@pytest.mark.parametrize("transport", ["grpcio", "native"])
async def test_the_store_is_as_its_model(
    make_server: Callable[..., Awaitable[Connection]],
    make_settings: Callable[..., Settings],
    database: Database,
    transport: str,
) -> None:
    """The second boundary has indexes of all kinds, so that every way to look events up is taken."""
    # no NATS: appends and reads do without it, and no publisher minds that a boundary is emptied
    settings = make_settings("plain", "indexed", grpc_transport=transport, nats_url=SecretStr("nats://127.0.0.1:1"))
    connection = await make_server(settings)
    plain, indexed, _ = settings.boundaries
    await _create_indexes(connection, indexed.name)

    async def reset() -> None:
        for boundary in (plain, indexed):
            names = BoundaryNames(boundary.schema, boundary.name)
            await database.write.execute(f"TRUNCATE {names.q_events}")
            await database.write.execute("SELECT setval($1::text::regclass, 0, false)", names.q_sequence)

    loop = asyncio.get_running_loop()

    async def answer(call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    def machine() -> StoreMachine:
        made = StoreMachine()
        made.connection = connection
        made.reset = reset
        made.wire = lambda call: asyncio.run_coroutine_threadsafe(answer(call), loop).result(30)
        return made

    StoreMachine.models = [Model(plain.name), Model(indexed.name)]
    budget = hypothesis_settings(
        max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    await asyncio.to_thread(run_state_machine_as_test, machine, settings=budget)


async def _create_indexes(connection: Connection, boundary: str) -> None:
    only_t1 = [pb.IndexCondition(key="eventType", operator="=", value="T1")]
    definitions = {
        "account": ([pb.IndexField(json_key="account")], []),
        "type_account": ([pb.IndexField(json_key="eventType"), pb.IndexField(json_key="account")], []),
        "kind": ([pb.IndexField(json_key="kind", value_type=pb.NUMERIC)], []),
        "of_t1": ([pb.IndexField(json_key="kind")], only_t1),
    }
    for name, (fields, conditions) in definitions.items():
        request = pb.CreateIndexRequest(boundary=boundary, name=name, fields=fields, conditions=conditions)
        await connection.events.CreateIndex(request, metadata=ADMIN)

    async def ready() -> bool:
        answer = await connection.events.ListIndexes(pb.ListIndexesRequest(boundary=boundary), metadata=ADMIN)
        return [index.state for index in answer.indexes] == [pb.INDEX_STATE_READY] * len(definitions)

    await eventually(ready, 20, message="the indexes")
