"""What an index is, and its SQL: key expressions, condition and the statements that build and drop it.

Every index ends in (transaction_id, global_id), so that a probe for the latest match, or for a page of them, reads what
it returns and nothing else. A criterion compares texts (``data->>'key' = value``), whatever the type of an index's
field: the type only says how the index stores the key. An index serves a criterion through a predicate on its key
expression that the equality of the texts implies; so every key expression here is a function of the text alone,
immutable, never fails, and gives NULL (no match through this index) where the text does not convert.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ..core.criteria import EVENT_TYPE
from .names import BoundaryNames, literal, quote

#: A btree row ends at 2704 bytes on 8 kB pages; less its header, null bitmap, the two positions and padding.
_ROW_BUDGET = 2704 - 64
_TYPED_KEY_BYTES = 64
_MAX_CHARACTERS = 500
_BYTES_PER_CHARACTER = 4
#: The longest event_type (contract.md, SaveEvents); such an index needs no prefix.
_EVENT_TYPE_CHARACTERS = 255

#: What converts to NUMERIC, bounded so that neither an index row nor the work of an append can grow: no exponents
#: (jsonb prints none), 30 digits before and after the point.
_NUMBER = r"-?[0-9]{1,30}([.][0-9]{1,30})?"
_NUMBER_CHARACTERS = 62
_TIME = (
    r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[Tt ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?([Zz]|[+-](0[0-9]|1[0-5]):?[0-5][0-9])?"
)
_TIME_CHARACTERS = 35
_NUMBER_PATTERN = re.compile(_NUMBER, re.ASCII)
_TIME_PATTERN = re.compile(_TIME, re.ASCII)

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
OPERATORS = tuple(_COMPARISONS)


class ValueType(enum.Enum):
    """How an index stores a key. The names are those of the wire's enum."""

    TEXT = 0
    NUMERIC = 1
    BOOLEAN = 2
    TIMESTAMPTZ = 3


@dataclass(frozen=True, slots=True)
class IndexField:
    key: str
    value_type: ValueType = ValueType.TEXT

    @property
    def is_text(self) -> bool:
        return self.value_type is ValueType.TEXT

    def converts(self, value: str) -> bool:
        """Whether the key expression of an event with this text is not NULL; the same answer as the SQL's."""
        match self.value_type:
            case ValueType.TEXT:
                return True
            case ValueType.NUMERIC:
                return is_number(value)
            case ValueType.BOOLEAN:
                return value in {"true", "false"}
            case ValueType.TIMESTAMPTZ:
                return len(value) <= _TIME_CHARACTERS and _TIME_PATTERN.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class IndexCondition:
    """``=`` compares texts. The others compare numbers when ``value`` is one (then a text that is not a number is not
    in the index), else texts by code point."""

    key: str
    operator: str
    value: str

    def holds(self, text: str) -> bool:
        """Whether an event whose key has this text satisfies the condition; the same answer as the SQL's."""
        compare = _COMPARISONS[self.operator]
        if self.operator != "=" and is_number(self.value):
            return is_number(text) and compare(Decimal(text), Decimal(self.value))
        return compare(text, self.value)

    def sql(self, prefix: str = "") -> str:
        text = text_sql(self.key, prefix)
        if self.operator == "=":
            return f"{text} = {literal(self.value)}"
        if is_number(self.value):
            return f"{_number_sql(text)} {self.operator} {literal(self.value)}::numeric"
        return f'{text} COLLATE "C" {self.operator} {literal(self.value)}'


@dataclass(frozen=True, slots=True)
class IndexDefinition:
    """An index of a boundary, in normal form (``eventType`` in its one spelling); hashable, a cache key."""

    name: str
    fields: tuple[IndexField, ...]
    conditions: tuple[IndexCondition, ...] = ()
    #: AND or OR.
    combinator: str = "AND"

    def condition_sql(self) -> str:
        """The WHERE of a partial index, "" for none."""
        return f" {self.combinator} ".join(f"({condition.sql()})" for condition in self.conditions)

    def implied_sql(self, prefix: str) -> str:
        """What a query says so that the planner can prove that it implies the condition, also under a generic plan.

        That is the condition, word for word, but for a single equality: said as such it would invite the planner to
        use an index on that key instead, as if the rest of the criterion were not there.
        """
        if self.combinator == "OR" and len(self.conditions) > 1:
            return f"({' OR '.join(f'({condition.sql(prefix)})' for condition in self.conditions)})"
        return " AND ".join(
            f"{text_sql(c.key, prefix)} = ANY (ARRAY[{literal(c.value)}, {literal(c.value)}])"
            if c.operator == "="
            else c.sql(prefix)
            for c in self.conditions
        )

    def key_sql(self, field: IndexField, text: str) -> str:
        """The key expression of one of the fields, of an SQL expression of the text (an event's, or a parameter)."""
        match field.value_type:
            case ValueType.TEXT:
                characters = self.characters(field)
                return text if characters is None else f'"left"({text}, {characters}) COLLATE "C"'
            case ValueType.NUMERIC:
                return _number_sql(text)
            case ValueType.BOOLEAN:
                return f"CASE {text} WHEN 'true' THEN true WHEN 'false' THEN false END"
            case ValueType.TIMESTAMPTZ:
                return _time_sql(text)

    def characters(self, field: IndexField) -> int | None:
        """How many characters of a TEXT field's values are in the index; None: all."""
        texts = sum(1 for other in self.fields if other.value_type is ValueType.TEXT)
        budget = _ROW_BUDGET - (len(self.fields) - texts) * _TYPED_KEY_BYTES
        characters = min((budget // texts - 8) // _BYTES_PER_CHARACTER, _MAX_CHARACTERS)
        return None if field.key == EVENT_TYPE and characters >= _EVENT_TYPE_CHARACTERS else characters

    def is_exact(self, field: IndexField, value: str) -> bool:
        """Whether an equal key means an equal text for this value, so that nothing is left to be checked."""
        if field.value_type is not ValueType.TEXT:
            return False
        characters = self.characters(field)
        return characters is None or len(value) < characters

    def pg_name(self, names: BoundaryNames, incarnation: str) -> str:
        """A name in PostgreSQL: another shape or incarnation has another one, so that a new index never meets an old
        one of its name that is still being built or dropped."""
        return names.index(self.name, repr((self.fields, self.conditions, self.combinator, incarnation)))

    def create_sql(self, names: BoundaryNames, pg_name: str) -> str:
        keys = ", ".join(f"({self.key_sql(field, text_sql(field.key))})" for field in self.fields)
        condition = self.condition_sql()
        return f"{create_prefix(pg_name)} ON {names.q_events} USING btree ({keys}, transaction_id, global_id)" + (
            f" WHERE {condition}" if condition else ""
        )


def create_prefix(pg_name: str) -> str:
    """How the statement that builds an index begins; by this a running build is found."""
    return f"CREATE INDEX CONCURRENTLY {quote(pg_name)}"


def drop_sql(names: BoundaryNames, pg_name: str) -> str:
    return f"DROP INDEX CONCURRENTLY IF EXISTS {names.qualified(pg_name)}"


def text_sql(key: str, prefix: str = "") -> str:
    """The text of an event's key, as criteria compare it. ``prefix`` stands before columns: an alias and a dot."""
    return f"{prefix}event_type" if key == EVENT_TYPE else f"({prefix}data->>{literal(key)})"


def is_number(text: str) -> bool:
    """Whether a text converts to NUMERIC here."""
    return len(text) <= _NUMBER_CHARACTERS and _NUMBER_PATTERN.fullmatch(text) is not None


def _number_sql(text: str) -> str:
    return f"CASE WHEN \"left\"({text}, {_NUMBER_CHARACTERS + 1}) ~ '^{_NUMBER}$' THEN {text}::numeric END"


def _time_sql(text: str) -> str:
    """ISO 8601 to timestamptz by immutable functions (the cast is only stable: it depends on settings). Without an
    offset the time is UTC. A day beyond the month's end counts on into the next month, since it must not fail."""

    def part(start: int, length: int) -> str:
        return f"substr({text}, {start}, {length})::int"

    tail = f"substr({text}, 17)"
    seconds = rf"coalesce(substring({tail} from '^:([0-9.]+)'), '0')::float8"
    hours = rf"coalesce(substring({tail} from '([+-][0-9]{{2}}):?[0-9]{{2}}$'), '0')::int"
    minutes = rf"coalesce(substring({tail} from '([+-])') || substring({tail} from '[+-].*([0-9]{{2}})$'), '0')::int"
    return (
        f"CASE WHEN \"left\"({text}, {_TIME_CHARACTERS + 1}) ~ '^{_TIME}$' THEN "
        f"(make_timestamp({part(1, 4)}, {part(6, 2)}, 1, {part(12, 2)}, {part(15, 2)}, {seconds}) "
        f"+ make_interval(0, 0, 0, {part(9, 2)} - 1) - make_interval(0, 0, 0, 0, {hours}, {minutes})) "
        "AT TIME ZONE 'UTC' END"
    )
