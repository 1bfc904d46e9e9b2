"""Which criteria are slow or have no index, and the index that would help.

Bounded in number, and without values: a criterion is known by its keys alone, since values are the users' data.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

from ..core.criteria import Criterion

_log = structlog.get_logger(__name__)

#: Shapes that are kept of one boundary, and that one request can add.
_MOST, _MOST_OF_REQUEST = 200, 10
_LONGEST_KEY = 255
#: Seconds between two lines of the log about one shape of criteria.
_TOLD_AGAIN = 600.0


class Shape(NamedTuple):
    """Criteria that one index would serve."""

    boundary: str
    #: append (a context check), page, latest or scan (a subscription).
    kind: str
    keys: tuple[str, ...]


class QueryEntry:
    """What is known of one shape."""

    __slots__ = ("count", "indexed", "last_at", "max_seconds", "shape", "slow", "told_at", "total_seconds")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.count = self.slow = 0
        self.total_seconds = self.max_seconds = 0.0
        self.indexed = True
        #: Seconds since 1970.
        self.last_at = 0.0
        self.told_at = float("-inf")

    @property
    def mean_seconds(self) -> float:
        return self.total_seconds / self.count if self.count else 0.0

    @property
    def index_name(self) -> str:
        """A name for the index that would help."""
        plain = "_".join("".join(c if c.isalnum() and c.isascii() else "_" for c in key) for key in self.shape.keys)
        return (plain or "by_key")[:55]

    @property
    def create_index(self) -> dict[str, object]:
        """The request of CreateIndex that would help, as JSON writes it."""
        fields = [{"json_key": key, "value_type": "TEXT"} for key in self.shape.keys]
        return {"boundary": self.shape.boundary, "name": self.index_name, "fields": fields}


class QueryLog:
    """The shapes of criteria that were slow (``slow_seconds`` or more) or without an index, of each boundary those
    used most, so that odd criteria by the hundred, or another boundary's, do not push out what matters."""

    def __init__(self, slow_seconds: float = 0.5, *, ignored: str = "", most: int = _MOST) -> None:
        """``ignored`` is a boundary whose queries are the server's own."""
        self._slow, self._ignored, self._most = slow_seconds, ignored, most
        self._entries: defaultdict[str, dict[Shape, QueryEntry]] = defaultdict(dict)
        #: How many there were in each boundary.
        self.slow: Counter[str] = Counter()
        self.unindexed: Counter[str] = Counter()

    @property
    def slow_seconds(self) -> float:
        return self._slow

    def note(self, boundary: str, kind: str, criteria: Iterable[tuple[Criterion, bool]], seconds: float) -> None:
        """A read or check of these criteria, each with whether an index served it, took that long."""
        if boundary == self._ignored:
            return
        slow = seconds >= self._slow
        if slow:
            self.slow[boundary] += 1
        noted = [(criterion, indexed) for criterion, indexed in criteria if criterion and (slow or not indexed)]
        self.unindexed[boundary] += sum(not indexed for _, indexed in noted)
        for criterion, indexed in noted[:_MOST_OF_REQUEST]:
            entry = self._entry(Shape(boundary, kind, _keys(criterion)))
            entry.count += 1
            entry.slow += slow
            entry.indexed = indexed
            entry.total_seconds += seconds
            entry.max_seconds = max(entry.max_seconds, seconds)
            entry.last_at = time.time()
            if slow:
                self._tell(entry, seconds)

    def entries(self, *, unindexed: bool | None = None) -> Sequence[QueryEntry]:
        """Those that cost most first."""
        found = [
            entry
            for of_one in self._entries.values()
            for entry in of_one.values()
            if unindexed is None or entry.indexed != unindexed
        ]
        return sorted(found, key=lambda entry: -entry.total_seconds)

    def clear(self) -> None:
        self._entries.clear()

    def _entry(self, shape: Shape) -> QueryEntry:
        entries = self._entries[shape.boundary]
        if shape not in entries:
            if len(entries) >= self._most:
                # what came once makes room, before what comes all the time
                del entries[min(entries, key=lambda one: (entries[one].count, entries[one].last_at))]
            entries[shape] = QueryEntry(shape)
        return entries[shape]

    def _tell(self, entry: QueryEntry, seconds: float) -> None:
        now = time.monotonic()
        if now - entry.told_at < _TOLD_AGAIN:
            return
        entry.told_at = now
        shape = entry.shape
        _log.warning(
            "slow query",
            boundary=shape.boundary,
            kind=shape.kind,
            keys=list(shape.keys),
            seconds=round(seconds, 3),
            indexed=entry.indexed,
            **({} if entry.indexed else {"create_index": entry.create_index}),
        )


def _keys(criterion: Criterion) -> tuple[str, ...]:
    # what is kept has a bound in bytes, too
    return tuple(dict.fromkeys(tag.key[:_LONGEST_KEY] for tag in criterion))
