"""Criteria as SQL: which indexes serve one, and the condition and order that let PostgreSQL use them.

A criterion that READY indexes serve is read in the order (transaction_id, global_id), in which these indexes end and
the primary key does not, so that no plan can walk the primary key past rows that do not match. Any other criterion is
read along the primary key. Which of the two is chosen here, by what the server knows; knowing wrong costs time, never
a match.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..core.criteria import Criterion
from ..errors import InvalidArgument
from .index_sql import IndexDefinition, text_sql

#: Keys, conditions and table of a template stand between these; no text of PostgreSQL holds one.
_MARK = "\0"
_TABLE = "t"
_PREFIX = f"{_MARK}{_TABLE}{_MARK}"
#: More indexes than this for one criterion only cost planning.
_MAX_INDEXES = 4
#: Shapes of criteria that are remembered; clients that make keys up must not fill the memory.
_MAX_SHAPES = 1_000

#: What the first key of an index is compared with: the value ({}), said in a way that the planner takes for dear. As
#: the bound of an index scan it is computed once; what reads the whole table, or collects rows in a bitmap in order to
#: sort them, would pay for it with each row. So neither ever looks cheap, however few rows the planner knows of: a
#: generic plan lives on while its table grows from nothing to millions of rows. The dear part is never computed: the
#: planner counts a procost of 100 for every second element of the array. (pg_backend_pid also keeps parallel workers
#: away, which start too slowly for any of this.)
_DEAR = "CASE WHEN pg_backend_pid() < 0 AND '' @@ ANY (array_fill(''::text, ARRAY[64])) THEN NULL ELSE {} END"
#: Every row, by the primary key.
_ANY_ROW = f"{_PREFIX}global_id >= {_DEAR.format('0::bigint')}"


class Access(NamedTuple):
    """How one criterion is looked up."""

    #: The values of the criterion's tags, in their order: the parameters of ``condition``.
    values: tuple[str, ...]
    #: Whether an index serves it; then the order is (transaction_id, global_id), else global_id.
    indexed: bool
    #: Same key, same SQL.
    key: str

    def condition(self, parameters: Sequence[str], table: str = "") -> str:
        """The WHERE with SQL expressions of type text for the values, such as ``["$3"]`` or ``["c.v1"]``."""
        pieces = self.key.split(_MARK)
        prefix = f"{table}." if table else ""
        pieces[1::2] = [prefix if piece == _TABLE else parameters[int(piece)] for piece in pieces[1::2]]
        return "".join(pieces)

    def order(self, *, descending: bool = False, table: str = "") -> str:
        """The ORDER BY, position order in either case: transaction_id is monotone in global_id."""
        columns = ("transaction_id", "global_id") if self.indexed else ("global_id",)
        return order_by(columns, descending=descending, table=table)


def order_by(columns: Iterable[str], *, descending: bool, table: str = "") -> str:
    prefix = f"{table}." if table else ""
    return ", ".join(f"{prefix}{column}{' DESC' if descending else ''}" for column in columns)


def access(criterion: Criterion, indexes: Sequence[IndexDefinition]) -> Access:
    """How to look up a criterion with these READY indexes.

    InvalidArgument: a NUL in a key or value, which no text in PostgreSQL has.
    """
    if any("\0" in tag.key or "\0" in tag.value for tag in criterion):
        raise InvalidArgument("a criterion's key or value holds a NUL character")
    uses = _chosen([use for index in indexes if (use := _use(criterion, index)) is not None])
    parts: dict[str, None] = {}
    exact: set[int] = set()
    for use in uses:
        for place, (field, number) in enumerate(zip(use.index.fields, use.tags, strict=False)):
            key, value = (use.index.key_sql(field, text) for text in (text_sql(field.key, _PREFIX), _parameter(number)))
            parts[f"{key} = {value if place else _DEAR.format(value)}"] = None
            if use.index.is_exact(field, criterion[number].value):
                exact.add(number)
        if use.index.conditions:
            parts[use.index.implied_sql(_PREFIX)] = None
    tags = [f"{text_sql(tag.key, _PREFIX)} = {_parameter(n)}" for n, tag in enumerate(criterion) if n not in exact]
    # Within CASE the comparisons count as one of unknown selectivity: the planner knows nothing of the texts, and would
    # multiply a guess for each of them.
    rest = " AND ".join(tags) or "true"
    if not uses:
        parts[_ANY_ROW] = None
    if tags or not uses:
        # event_id stands here because no index but its own has it: an index-only scan of one that ends in global_id
        # would look cheaper than the primary key
        parts[f"CASE WHEN {_PREFIX}global_id < 0 THEN {_PREFIX}event_id = '' ELSE {rest} END"] = None
    return Access(tuple(tag.value for tag in criterion), bool(uses), " AND ".join(parts))


class Plans:
    """``access`` for one set of READY indexes, remembered by a criterion's shape: its keys, and what of its values
    decides which indexes serve it."""

    def __init__(self, indexes: Sequence[IndexDefinition]) -> None:
        self.indexes = indexes
        self._checks: dict[str, list[Callable[[str], bool]]] = {}
        #: By a criterion's keys: what of its values decides, as (number of the tag, check).
        self._deciding: dict[tuple[str, ...], list[tuple[int, Callable[[str], bool]]]] = {}
        self._known: dict[tuple[object, ...], tuple[bool, str]] = {}
        for index in indexes:
            for field in index.fields:
                if not field.is_text:
                    self._checks.setdefault(field.key, []).append(field.converts)
                elif (characters := index.characters(field)) is not None:
                    # as is_exact
                    self._checks.setdefault(field.key, []).append(functools.partial(_is_shorter, characters))
            for condition in index.conditions:
                self._checks.setdefault(condition.key, []).append(condition.holds)

    def access(self, criterion: Criterion) -> Access:
        """As the function of that name."""
        keys, values = zip(*criterion, strict=True) if criterion else ((), ())
        deciding = self._deciding.get(keys)
        if deciding is None:
            if len(self._deciding) >= _MAX_SHAPES:
                self._deciding.clear()
            deciding = [(number, check) for number, key in enumerate(keys) for check in self._checks.get(key, ())]
            self._deciding[keys] = deciding
        shape = (keys, *[check(values[number]) for number, check in deciding])
        known = self._known.get(shape)
        if known is None or "\0" in "".join(values):
            found = access(criterion, self.indexes)
            if len(self._known) >= _MAX_SHAPES:
                self._known.clear()
            self._known[shape] = found.indexed, found.key
            return found
        return Access(values, *known)


def _is_shorter(characters: int, value: str) -> bool:
    return len(value) < characters


def latest_sql(
    events_table: str,
    access: Access,
    parameters: Sequence[str],
    columns: str = "transaction_id, global_id",
    *,
    after: str = "",
) -> str:
    """SELECT of the latest event that matches, or no row. ``events_table`` is quoted and qualified; ``after`` is an
    expression for a global_id behind which it has to lie."""
    condition = access.condition(parameters) + (f" AND global_id > {after}" if after else "")
    return f"SELECT {columns} FROM {events_table} WHERE {condition} ORDER BY {access.order(descending=True)} LIMIT 1"


@dataclass(frozen=True, slots=True)
class _Use:
    """How an index serves a criterion: with which tag (its number) each of the index's first fields is compared."""

    index: IndexDefinition
    tags: tuple[int, ...]
    #: The keys that the index decides, by its fields or its condition.
    keys: frozenset[str]

    @property
    def full(self) -> bool:
        """Whether every field is compared, so that the matches stand in the order of their positions."""
        return len(self.tags) == len(self.index.fields)

    def dominates(self, other: _Use) -> bool:
        return self.full >= other.full and self.keys > other.keys


def _use(criterion: Criterion, index: IndexDefinition) -> _Use | None:
    """None when the index may lack a match: no tag for its first field, or a condition that the tags do not imply."""
    tags: list[int] = []
    for field in index.fields:
        usable = (n for n, tag in enumerate(criterion) if tag.key == field.key and field.converts(tag.value))
        number = next(usable, None)
        if number is None:
            break
        tags.append(number)
    if not tags:
        return None
    keys = {field.key for field in index.fields[: len(tags)]}
    if index.conditions:
        held = [any(tag.key == c.key and c.holds(tag.value) for tag in criterion) for c in index.conditions]
        if not (any(held) if index.combinator == "OR" else all(held)):
            return None
        if index.combinator == "AND" or len(held) == 1:
            keys |= {condition.key for condition in index.conditions if condition.operator == "="}
    return _Use(index, tuple(tags), frozenset(keys))


def _chosen(uses: Sequence[_Use]) -> list[_Use]:
    """The indexes that no other one makes needless; which of these is best, the planner judges by its statistics."""
    best = [use for use in uses if not any(other.dominates(use) for other in uses)]
    best.sort(key=lambda use: (not use.full, -len(use.keys), not use.index.conditions, use.index.name))
    distinct: dict[frozenset[str], _Use] = {}
    for use in best:
        distinct.setdefault(use.keys, use)
    return list(distinct.values())[:_MAX_INDEXES]


def _parameter(number: int) -> str:
    return f"{_MARK}{number}{_MARK}"
