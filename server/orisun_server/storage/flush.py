"""One flush: the arguments of a boundary's append function for a group of calls.

The distinct criteria of the group are numbered; those of one shape are probed by one statement. Which events of the
group match criteria that a later call uses is found by hashing: for each set of keys in use, an event's values of those
keys are looked up among the criteria. So the cost grows with events times sets of keys, not with pairs of calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ..core.append import CheckedEvent, Context
from ..core.criteria import EVENT_TYPE, Criterion
from ..core.event import Command
from ..core.jsonb import text_of, top_level
from .catalog import Boundary
from .criteria_sql import Access, Plans, latest_sql
from .survey import Seen

_WHOLE: Criterion = ()
_NOTHING_SEEN: Mapping[Criterion, Seen] = {}


class Flush:
    """Collects calls with ``add``; then ``statement`` and ``arguments`` say what to execute."""

    def __init__(self, boundary: Boundary, plans: Plans) -> None:
        self._boundary, self._plans = boundary, plans
        self._calls: list[tuple[list[CheckedEvent], Context | None]] = []
        self._commands: list[tuple[int, Command]] = []
        self._seen: dict[Criterion, Seen] = {}

    def add(
        self,
        events: list[CheckedEvent],
        context: Context | None,
        command: Command | None = None,
        seen: Mapping[Criterion, Seen] = _NOTHING_SEEN,
    ) -> None:
        """``seen`` holds what was looked up of the context's criteria before."""
        self._calls.append((events, context))
        if seen:
            self._seen.update(seen)
        if command is not None:
            self._commands.append((len(self._calls), command))

    @property
    def statement(self) -> str:
        return f"SELECT * FROM {self._boundary.names.q_append}({_PARAMETERS})"

    def last_of_call(self) -> list[int]:
        """Number of each call's last event in the group, from 1."""
        last, total = [], 0
        for events, _ in self._calls:
            total += len(events)
            last.append(total)
        return last

    def arguments(self) -> tuple[object, ...]:
        """The function's arguments, in its order (see migrations/boundary/0003_append.sql)."""
        calls = self._calls
        last = self.last_of_call()
        counts = [len(events) for events, _ in calls]
        starts = [end - count + 1 for end, count in zip(last, counts, strict=True)]
        group = [checked.event for events, _ in calls for checked in events]
        ids, types, data, metadata = zip(*group, strict=True)
        contexts = _Contexts(self._boundary, self._plans, self._seen)
        for number, (_, context) in enumerate(calls, start=1):
            if context is not None:
                contexts.add(number, context)
        probes = contexts.probes()
        match_event, match_criterion = self._matches(contexts) if len(calls) > 1 and contexts.numbers else ([], [])
        return (
            ids,
            types,
            data,
            metadata,
            [end for end, count in zip(last, counts, strict=True) for _ in range(count)],
            starts,
            counts,
            [context.expected.commit if context else -1 for _, context in calls],
            [context.expected.prepare if context else -1 for _, context in calls],
            # NULL takes less time than an array without elements
            *(array or None for array in (*probes, *contexts.uses(), match_event, match_criterion)),
            any(_may_hold_type_key(text) for text in data),
            *(
                zip(*((call, *command) for call, command in self._commands), strict=True)
                if self._commands
                else (None,) * 5
            ),
        )

    def _matches(self, contexts: _Contexts) -> tuple[list[int], list[int]]:
        """Which event (from 1) matches which criterion that a later call uses, sorted by event."""
        match_event: list[int] = []
        match_criterion: list[int] = []
        key_sets = contexts.key_sets()
        number = 0
        for call, (events, _) in enumerate(self._calls, start=1):
            for checked in events:
                number += 1
                data = top_level(checked.event.data)
                for keys, criteria in key_sets.items():
                    values = _values(checked.event.event_type, data, keys)
                    found = criteria.get(values) if values is not None else None
                    if found is not None and contexts.last_use[found] > call:
                        match_event.append(number)
                        match_criterion.append(found)
        return match_event, match_criterion


class _Contexts:
    """The distinct criteria of a group, numbered from 1 so that those of one shape stand together."""

    def __init__(self, boundary: Boundary, plans: Plans, seen: Mapping[Criterion, Seen]) -> None:
        self._boundary, self._plans, self._seen = boundary, plans, seen
        self._shapes: dict[tuple[str, bool], list[tuple[Criterion, Access | None, tuple[str, ...]]]] = {}
        self._known: set[Criterion] = set()
        self._by_call: list[tuple[int, Sequence[Criterion]]] = []
        self.numbers: dict[Criterion, int] = {}
        self.last_use: dict[int, int] = {}
        self._use_call: list[int] = []
        self._use_criterion: list[int] = []

    def add(self, call: int, context: Context) -> None:
        criteria = context.query or (_WHOLE,)
        self._by_call.append((call, criteria))
        for criterion in criteria:
            if criterion not in self._known:
                self._known.add(criterion)
                plan = self._plans.access(criterion) if criterion else None
                seen = self._seen.get(criterion)
                values = plan.values if plan else ()
                if seen is not None:
                    values = (*values, str(seen.latest.commit), str(seen.latest.prepare), str(seen.head))
                shape = plan.key if plan else "", seen is not None
                self._shapes.setdefault(shape, []).append((criterion, plan, values))

    def probes(self) -> tuple[list[str], list[int], list[int], list[str]]:
        """For each shape: its SQL, the values of a criterion, the number of criteria; and all values, by column."""
        statements: list[str] = []
        widths: list[int] = []
        rows: list[int] = []
        values: list[str] = []
        for (_, seen), members in self._shapes.items():
            _, plan, first = members[0]
            statements.append(probe_sql(self._boundary, plan, lone=len(members) == 1, seen=seen))
            widths.append(len(first))
            rows.append(len(members))
            for criterion, _, _ in members:
                self.numbers[criterion] = len(self.numbers) + 1
            for column in range(len(first)):
                values.extend(own[column] for _, _, own in members)
        for call, criteria in self._by_call:
            for criterion in criteria:
                number = self.numbers[criterion]
                self._use_call.append(call)
                self._use_criterion.append(number)
                self.last_use[number] = call
        return statements, widths, rows, values

    def uses(self) -> tuple[list[int], list[int]]:
        """Which call has which criterion, sorted by call; known after ``probes``."""
        return self._use_call, self._use_criterion

    def key_sets(self) -> dict[tuple[str, ...], dict[tuple[str, ...], int]]:
        """For each set of keys in use, the criteria by their values."""
        sets: dict[tuple[str, ...], dict[tuple[str, ...], int]] = {}
        for criterion, number in self.numbers.items():
            keys, values = zip(*criterion, strict=True) if criterion else ((), ())
            sets.setdefault(keys, {})[values] = number
        return sets


def probe_sql(boundary: Boundary, plan: Access | None, *, lone: bool, seen: bool = False) -> str:
    """SQL that gives the latest positions for $2 criteria of one shape, whose values stand in $1 column by column.

    ``lone``: there is one criterion, which gives no row where nothing matches; PostgreSQL plans that in a third of the
    time. ``seen``: after the values come the parts of what was looked up before (``Seen``), behind whose head the rest
    lies.
    """
    table = boundary.names.q_events
    if lone and not seen:
        values = [f"($1)[{number + 1}]" for number in range(len(plan.values) if plan else 0)]
        return _latest(table, plan, values, "ARRAY[transaction_id], ARRAY[global_id]")
    columns = [f"v{number}" for number in range((len(plan.values) if plan else 0) + 3 * seen)]
    after, commit, prepare = "", "-1", "-1"
    if seen:
        commit, prepare, after = (f"c.{column}::bigint" for column in columns[-3:])
    latest = _latest(table, plan, [f"c.{column}" for column in columns], after=after)
    commit, prepare = f"coalesce(m.transaction_id, {commit})", f"coalesce(m.global_id, {prepare})"
    slices = ", ".join(f"($1)[{number} * $2 + 1 : {number + 1} * $2]" for number in range(len(columns)))
    return (
        f"SELECT array_agg({commit} ORDER BY c.n), array_agg({prepare} ORDER BY c.n) "
        f"FROM unnest({slices}) WITH ORDINALITY AS c({', '.join(columns)}, n) LEFT JOIN LATERAL ({latest}) AS m ON true"
    )


def _latest(
    table: str, plan: Access | None, values: Sequence[str], columns: str = "transaction_id, global_id", after: str = ""
) -> str:
    if plan is None:
        return f"SELECT {columns} FROM {table} ORDER BY global_id DESC LIMIT 1"
    return latest_sql(table, plan, values, columns, after=after)


def _values(event_type: str, data: Mapping[str, msgspec.Raw], keys: tuple[str, ...]) -> tuple[str, ...] | None:
    """The event's texts of some keys; None when one is missing or null, which matches no criterion."""
    values = []
    for key in keys:
        value = event_type if key == EVENT_TYPE else text_of(data.get(key))
        if value is None:
            return None
        values.append(value)
    return tuple(values)


def _may_hold_type_key(data: str) -> bool:
    """Whether data may have a top-level key eventType, which belongs to the server; escapes could hide it."""
    return EVENT_TYPE in data or "\\u" in data


_PARAMETERS = ", ".join(
    f"${number}::{kind}"
    for number, kind in enumerate(
        (
            *("text[]",) * 4,
            *("int[]",) * 3,
            *("bigint[]",) * 2,
            "text[]",
            *("int[]",) * 2,
            "text[]",
            *("int[]",) * 4,
            "boolean",
            "int[]",
            *("text[]",) * 4,
        ),
        start=1,
    )
)
