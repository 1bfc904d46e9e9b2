"""Decision models: one read, many states, and a condition that conflicts exactly when it should."""

from __future__ import annotations

import asyncio
import functools
import json
import operator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import orisun
from orisun import NewEvent, Projector, where


def total(name: str, *types: str, **keys: object) -> Projector[int]:
    return Projector(name, where(*types, **keys), 0, lambda state, event: state + event.data["amount"])


async def test_many_states_by_one_read(orders: orisun.Boundary) -> None:
    await orders.append([
        NewEvent("Deposited", {"account": "a", "amount": 100}),
        NewEvent("Deposited", {"account": "b", "amount": 5}),
        NewEvent("Deposited", {"account": "c", "amount": 7}),
    ])  # fmt: skip
    a, b, empty = total("a", account="a"), total("b", account="b"), total("x", account="x")
    decision = await orders.decide(a, b, empty)
    assert (decision[a], decision["b"], decision[empty], decision.events) == (100, 5, 0, 2)
    # an event that none of them is about changes nothing
    await orders.append([NewEvent("Deposited", {"account": "c", "amount": 1})])
    await orders.append([NewEvent("Deposited", {"account": "a", "amount": 1})], condition=decision.condition)
    with pytest.raises(orisun.Conflict):
        await orders.append([NewEvent("Deposited", {"account": "b", "amount": 1})], condition=decision.condition)


async def test_nothing_is_a_state_too(orders: orisun.Boundary) -> None:
    decision = await orders.decide(total("a", account="a"))
    assert (decision["a"], decision.position) == (0, orisun.NOTHING)
    await orders.append([NewEvent("Deposited", {"account": "a", "amount": 1})], condition=decision.condition)
    with pytest.raises(orisun.Conflict):
        await orders.append([NewEvent("Deposited", {"account": "a", "amount": 1})], condition=decision.condition)


async def test_initial_states_are_not_shared(orders: orisun.Boundary) -> None:
    def add(state: list[int], event: orisun.Event) -> list[int]:
        state.append(event.data["amount"])
        return state

    await orders.append([NewEvent("Deposited", {"account": "a", "amount": 1})])
    seen: Projector[list[int]] = Projector("seen", where(account="a"), [], add)
    assert (await orders.decide(seen))[seen] == (await orders.decide(seen))[seen] == [1]


async def test_mistakes(orders: orisun.Boundary) -> None:
    with pytest.raises(orisun.InvalidArgument, match="at least one"):
        await orders.decide()
    with pytest.raises(orisun.InvalidArgument, match=r"made of projectors, .* this is a list"):
        await orders.decide([total("a", account="a")])  # type: ignore[arg-type]
    with pytest.raises(orisun.InvalidArgument, match="one name: a, a"):
        await orders.decide(total("a", account="a"), total("a", account="b"))
    with pytest.raises(orisun.InvalidArgument, match="has no state"):
        (await orders.decide(total("a", account="a")))["b"]


async def test_a_decision_over_pages_is_of_one_moment(orders: orisun.Boundary) -> None:
    await orders.append([NewEvent("Deposited", {"account": "a", "amount": 1}) for _ in range(25)])
    decision = await orisun.decide(orders, total("a", account="a"), total("b", account="b"), page_size=4)
    assert decision["a"] == decision.events == 25
    await orders.append([NewEvent("Deposited", {"account": "a", "amount": 1})], condition=decision.condition)


ACCOUNTS = ("a", "b", "c")
TYPES = ("Deposited", "Withdrawn", "Noted")
events = st.builds(
    lambda kind, account, amount, on: NewEvent(kind, {"account": account, "amount": amount, "on": on}),
    st.sampled_from(TYPES),
    st.sampled_from(ACCOUNTS),
    st.integers(-3, 3),
    st.booleans() | st.none(),
)
criteria = st.one_of(
    st.builds(lambda kinds: where(*kinds), st.lists(st.sampled_from(TYPES), min_size=1, max_size=2, unique=True)),
    st.builds(lambda account: where(account=account), st.sampled_from(ACCOUNTS)),
    st.builds(lambda kind, amount: where(kind, amount=amount), st.sampled_from(TYPES), st.integers(-3, 3)),
    st.builds(lambda on: where(on=on), st.booleans()),
    st.just(orisun.EVERYTHING),
)
queries = st.lists(criteria, min_size=1, max_size=2).map(lambda found: functools.reduce(operator.or_, found))


def matches(query: orisun.Query, event: NewEvent) -> bool:
    """By hand, from what was sent: no line of this is the library's."""
    texts = {key: json.dumps(value).strip('"') for key, value in event.data.items() if value is not None}
    texts["eventType"] = event.event_type
    return not query.criteria or any(
        all(texts.get(key) == value for key, value in criterion.tags) for criterion in query.criteria
    )


def replay(query: orisun.Query, log: list[NewEvent]) -> list[str]:
    return [event.event_id for event in log if matches(query, event)]


async def test_a_decision_equals_replaying_the_log_by_hand(orders: orisun.Boundary) -> None:
    log: list[NewEvent] = []  # of all examples: they share the boundary

    async def check(
        batches: list[list[NewEvent]], between: list[NewEvent], asked: list[orisun.Query], size: int
    ) -> None:
        for batch in batches:
            await orders.append(batch)
            log.extend(batch)
        projectors = [
            Projector[list[str]](str(number), query, [], lambda seen, event: [*seen, event.event_id])
            for number, query in enumerate(asked)
        ]
        decision = await orisun.decide(orders, *projectors, page_size=size)
        for projector in projectors:
            assert decision[projector] == replay(projector.criteria, log)
        for event in between:
            await orders.append([event])
            log.append(event)
        mine = NewEvent("Mine", {"account": "z"})
        if any(matches(query, event) for query in asked for event in between):
            with pytest.raises(orisun.Conflict) as caught:
                await orders.append([mine], condition=decision.condition)
            assert caught.value.expected == decision.position < caught.value.actual
        else:
            await orders.append([mine], condition=decision.condition)
            log.append(mine)

    loop = asyncio.get_running_loop()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.lists(events, min_size=1, max_size=4), max_size=3),
        st.lists(events, max_size=2),
        st.lists(queries, min_size=1, max_size=4),
        st.sampled_from([1, 3, 50, 500]),
    )
    def run(batches: list[list[NewEvent]], between: list[NewEvent], asked: list[orisun.Query], size: int) -> None:
        # ids of their own: an example that is drawn again is not a repeat
        fresh = [[NewEvent(event.event_type, event.data) for event in batch] for batch in [*batches, between]]
        asyncio.run_coroutine_threadsafe(check(fresh[:-1], fresh[-1], asked, size), loop).result(60)

    await asyncio.to_thread(run)


async def test_decisions_made_at_once_never_overdraw(orders: orisun.Boundary) -> None:
    await orders.append([NewEvent("Changed", {"account": "a", "amount": 10})])
    balance = total("balance", account="a")

    async def withdraw() -> bool:
        while True:
            decision = await orders.decide(balance)
            if decision[balance] < 3:
                return False
            try:
                await orders.append([NewEvent("Changed", {"account": "a", "amount": -3})], condition=decision.condition)
                return True
            except orisun.Conflict:
                continue

    results = await asyncio.gather(*(withdraw() for _ in range(20)))
    assert (sum(results), (await orders.decide(balance))[balance]) == (3, 1)
