"""What ``->>`` prints of a client's JSON, computed without PostgreSQL, against what PostgreSQL prints.

Group commit decides with it whether the events of a call match the context of the next one.
"""

from __future__ import annotations

import asyncio
import json

import asyncpg
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orisun_server.core.append import checked_events
from orisun_server.core.event import NewEvent
from orisun_server.core.jsonb import text_of, top_level
from orisun_server.errors import InvalidArgument
from orisun_server.storage.database import Database

#: White space that JSON allows, and what Python would take for it.
spaces = st.sampled_from(["", "", "", " ", "\n\t ", "\r\n"])
characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
SPELLINGS = {'"': ['\\"', "\\u0022"], "\\": ["\\\\", "\\u005c"], "/": ["/", "\\/", "\\u002F"], "\n": ["\\n", "\\u000a"]}


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _spelled(text: str, escape: bool) -> str:
    return '"' + "".join(_escaped(one) for one in text) + '"' if escape else json.dumps(text, ensure_ascii=False)


texts = st.one_of(
    st.text(characters, max_size=8),
    st.sampled_from(
        ["", "a", "aa", "b", "é", "\U0001f600", "\x7f", "\x01\x1f", "\u2028", 'q"\\/\b\f\n\r\t', "null", "1.0"]
    ),
)
strings = st.builds(_spelled, texts, st.booleans()) | st.sampled_from(
    ['"\\/"', '"\\u002F"', '"\\uD83D\\uDE00"', '"\\u00E9"']
)
digits = st.integers(0, 10**30).map(str)
numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.sampled_from(["0", "7", "10", "100", "1" + "0" * 30]) | digits,
    st.sampled_from(["", ".0", ".5", ".50", ".000", ".00001"]) | digits.map(lambda text: "." + text),
    st.sampled_from(["", "", "e0", "E1", "e+5", "E-7", "e00", "e-30", "e30", "e300"]),
)
keys = st.sampled_from(["a", "b", "aa", "é", "", "A", "eventType"]) | texts


def _object(pairs: list[tuple[str, str, str]]) -> str:
    return "{" + ",".join(f"{space}{key}{space}:{space}{value}{space}" for key, value, space in pairs) + "}"


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects in which keys come again, perhaps spelled in another way."""
    named = keys.flatmap(lambda key: st.booleans().map(lambda escape: _spelled(key, escape)))
    return st.lists(st.tuples(named, values, spaces), max_size=5).map(_object)


def arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.lists(values, max_size=4), spaces).map(lambda made: "[" + f"{made[1]},".join(made[0]) + "]")


scalars = strings | numbers | st.sampled_from(["true", "false", "null"])
documents = objects(st.recursive(scalars, lambda inner: objects(inner) | arrays(inner), max_leaves=6))


async def _printed(database: Database, document: str) -> dict[str, str | None] | None:
    """Each key and what ``->>`` prints for it; None when PostgreSQL does not take the document."""
    try:
        rows = await database.read.fetch(
            "SELECT key, $1::text::jsonb->>key FROM jsonb_object_keys($1::text::jsonb) AS key", document
        )
    except asyncpg.DataError:
        return None
    return {row[0]: row[1] for row in rows}


async def test_values_print_as_postgresql_prints_them(database: Database) -> None:
    loop = asyncio.get_running_loop()

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(documents)
    @example('{"a":1,"a":{"b":2,"b":[1e2,-0,-0.0,1E-3]},"\\u0061":"last"}')
    @example('{"a":{"ab":1,"b":2,"é":3,"aa":4,"":5,"\\u0062":6}}')
    @example('{"a":[1.10,0.0,-0e5,0e-5,100e-2,1e131071]}')
    def run(document: str) -> None:
        ((event, _),) = checked_events([NewEvent("id", "type", document, "{}")], 1)
        values = top_level(event.data)
        expected = asyncio.run_coroutine_threadsafe(_printed(database, document), loop).result(30)
        assert expected is not None, document
        assert {key: text_of(raw) for key, raw in values.items()} == expected

    await asyncio.to_thread(run)


async def test_what_one_refuses_the_other_does_not_take(database: Database) -> None:
    """Nothing passes the server's check that PostgreSQL refuses, but for numbers out of its range."""
    loop = asyncio.get_running_loop()
    noise = st.sampled_from(
        [
            *'{}[]",:\\/',
            "\\u0000",
            "\\ud800",
            "\\udc00",
            "nul",
            "True",
            "01",
            "1.",
            ".5",
            "+1",
            "\x0b",
            "\xa0",
            "\x01",
            "//",
        ]
    )
    broken = st.tuples(documents, st.integers(0, 200), noise).map(
        lambda made: made[0][: made[1] % (len(made[0]) + 1)] + made[2] + made[0][made[1] % (len(made[0]) + 1) :]
    )

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(broken)
    @example('{"a": 1}{')
    @example('{"a": "\\ud800"}')
    @example('{"a": "\\\\u0000"}')
    @example('\ufeff{"a": 1}')
    @example('{"a": Infinity}')
    def run(document: str) -> None:
        try:
            checked_events([NewEvent("id", "type", document, "{}")], 1)
        except InvalidArgument:
            return
        taken = asyncio.run_coroutine_threadsafe(_printed(database, document), loop).result(30)
        assert taken is not None, document

    await asyncio.to_thread(run)
