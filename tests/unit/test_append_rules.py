"""The rules for events, before PostgreSQL sees them (contract.md, SaveEvents)."""

import contextlib
import json
import tracemalloc

import pytest

from orisun_server.core.append import checked_command, checked_events
from orisun_server.core.event import Command, NewEvent
from orisun_server.errors import InvalidArgument

GOOD = NewEvent("e-1", "Placed", '{"a": 1}', "{}")


def check(event: NewEvent) -> NewEvent:
    return checked_events([event], 10)[0].event


def refusal(event: NewEvent) -> str:
    with pytest.raises(InvalidArgument) as caught:
        checked_events([GOOD, event], 10)
    return str(caught.value)


@pytest.mark.parametrize("empty", ["", "null", " null "])
def test_empty_and_null_become_an_empty_object(empty: str) -> None:
    event = check(GOOD._replace(data=empty, metadata=empty))
    assert (event.data, event.metadata) == ("{}", "{}")


def test_uuids_are_kept_in_lower_case_and_other_ids_as_they_are() -> None:
    assert check(GOOD._replace(event_id="0191B93C-5F3C-75C8-92CE-5A3300709178")).event_id == (
        "0191b93c-5f3c-75c8-92ce-5a3300709178"
    )
    assert check(GOOD._replace(event_id="USER-001")).event_id == "USER-001"


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        ({"event_id": ""}, "invalid event: event 1 event_id: must not be empty"),
        ({"event_type": ""}, "invalid event: event 1 event_type: must not be empty"),
        ({"event_id": "x" * 256}, "invalid event: event 1 event_id: 256 characters"),
        ({"event_type": "a\0b"}, "invalid event: event 1 event_type: must not contain NUL"),
        ({"data": "{"}, "invalid event JSON: event 1 data: "),
        ({"data": "[]"}, "invalid event JSON: event 1 data: "),
        ({"data": '{"a": NaN}'}, "invalid event JSON: event 1 data: "),
        ({"metadata": "7"}, "invalid event JSON: event 1 metadata: "),
        ({"data": '{"a": "\\ud800"}'}, "invalid event JSON: event 1 data: "),
        ({"data": '{"a": "x\\u0000y"}'}, "invalid event JSON: event 1 data: \\u0000 cannot be stored"),
        ({"data": '{"a": ' + "[" * 5000 + "]" * 5000 + "}"}, "invalid event JSON: event 1 data: nested too deeply"),
        ({"event_id": "e-1"}, "invalid event: event 1 event_id: the same as that of event 0"),
    ],
)
def test_a_broken_rule_names_event_and_field(change: dict[str, str], beginning: str) -> None:
    event = GOOD._replace(**{"event_id": "e-2", **change})
    assert refusal(event).startswith(beginning)


@pytest.mark.parametrize("spelled", ["1e131071", "1E131071", "1e+131071", "-1e-131071", "1e" + "9" * 5000])
def test_numbers_that_are_far_longer_written_out_than_sent_are_refused(spelled: str) -> None:
    def holding(count: int) -> str:
        return '{"a": {"b": [' + ", ".join([spelled] * count) + "]}}"

    assert check(GOOD._replace(data=holding(1))).data == holding(1)
    for field in ("data", "metadata"):
        assert refusal(GOOD._replace(event_id="e-2", **{field: holding(100)})).startswith(
            f"invalid event JSON: event 1 {field}: its numbers with exponents are "
        )
    with pytest.raises(InvalidArgument, match="invalid command JSON: metadata: its numbers with exponents are"):
        checked_command(Command("c", "t", "{}", holding(100)))


def test_texts_and_ordinary_numbers_with_exponents_are_no_long_numbers() -> None:
    text = '{"' + "1e131071" * 100 + '": "' + '\\"1e131071' * 100 + '"}'
    assert check(GOOD._replace(data=text)).data == text
    floats = json.dumps({"noise": [1.2345678901234567e-17] * 100_000})
    assert check(GOOD._replace(data=floats)).data == floats


@pytest.mark.parametrize("piece", ['""', '"1e99"', "1e10", "0e131071", "1e0000009", "true"])
def test_numbers_are_counted_in_little_memory(piece: str) -> None:
    """However many pieces a text has."""
    text = '{"k": [1e10, ' + ", ".join([piece] * 300_000) + "]}"
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidArgument):
            check(GOOD._replace(data=text))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100_000


@pytest.mark.parametrize("literal", ["1e0000001", "1e-000000000003", "0.5E+00"])
def test_zeros_before_an_exponent_make_no_long_number(literal: str) -> None:
    text = '{"k": [' + ", ".join([literal] * 100) + "]}"
    assert check(GOOD._replace(data=text)).data == text


def test_an_object_of_many_small_keys_takes_no_more_memory_than_its_text() -> None:
    """It waits in a queue whose bytes are counted by the length of texts."""
    event = GOOD._replace(data=json.dumps({f"{n:x}": 1 for n in range(50_000)}))
    tracemalloc.start()
    try:
        (checked,) = checked_events([event], 1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert checked.event == event
    assert most < len(event.data)


def test_an_escaped_backslash_before_u0000_is_text() -> None:
    assert check(GOOD._replace(data='{"a": "\\\\u0000"}')).data == '{"a": "\\\\u0000"}'


def test_no_events_and_too_many_events_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^Invalid request: no events provided$"):
        checked_events([], 10)
    with pytest.raises(InvalidArgument, match="11 events; one call appends at most 10"):
        checked_events([GOOD._replace(event_id=str(n)) for n in range(11)], 10)


def test_messages_never_carry_the_payload() -> None:
    secret = "4111-1111"
    assert secret not in refusal(GOOD._replace(event_id="e-2", data='{"card": "' + secret + '",}'))
