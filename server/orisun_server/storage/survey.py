"""Looking up criteria that no index serves before a boundary's lock is taken.

Such a lookup may read the whole log. Under the lock it would hold up everybody, so it is done before, in one snapshot
with the head; under the lock, what came after that head is all that is left to read. (Order comes from the lock, so the
snapshot holds everything up to its head.)
"""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..core.criteria import Criterion, Query
from ..core.position import NOTHING, Position
from ..errors import FailedPrecondition
from .catalog import Boundary
from .criteria_sql import Access, latest_sql
from .database import Database
from .read_sql import head
from .shared import SharedReads

#: Lookups at the same time, of all boundaries: reading whole logs must leave room for everything else. And of one
#: boundary: the others' lookups must not wait for its.
_OF_ALL, _OF_ONE = 4, 2

#: Seconds after which a call's lookups are given up, whether they read or wait for their turn.
PATIENCE = 60.0

#: Why a lookup takes long, and what helps; of a boundary's name.
UNSERVED = 'no index of boundary "{}" serves one of its criteria; create one with CreateIndex for its keys'


#: Of a query, the criteria that no index serves now, each with how it is looked up (``Lane.long_lookups``).
LongLookups = Callable[[Query], list[tuple[Criterion, Access]]]


class Seen(NamedTuple):
    """The latest position that matches among the events up to ``head``, a global_id (-1 in an empty boundary)."""

    latest: Position
    head: int

    @classmethod
    def of(cls, row: Sequence[int]) -> Seen:
        """What the row of ``lookup_sql`` says."""
        commit, prepare, head = row
        return cls(Position(commit, prepare) if prepare >= 0 else NOTHING, head)


def lookup_sql(boundary: Boundary, plan: Access) -> str:
    """SQL that gives what is seen of a criterion, whose values are its parameters, as one row."""
    table = boundary.names.q_events
    latest = latest_sql(table, plan, [f"${number}::text" for number in range(1, len(plan.values) + 1)])
    return (
        "SELECT coalesce(m.transaction_id, -1), coalesce(m.global_id, -1), coalesce(h.global_id, -1) "
        f"FROM (SELECT) AS always LEFT JOIN ({head(table)}) AS h ON true LEFT JOIN ({latest}) AS m ON true"
    )


class Survey:
    """Looks criteria up; equal ones at the same time share one lookup."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lookups: SharedReads[Seen | None] = SharedReads()
        self._room = asyncio.Semaphore(_OF_ALL)
        self._rooms: defaultdict[Boundary, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_OF_ONE))

    async def __call__(self, boundary: Boundary, query: Query, long_lookups: LongLookups) -> Mapping[Criterion, Seen]:
        """What is seen of each criterion that no index serves when its turn comes.

        Raises FailedPrecondition when it takes too long, Unavailable.
        """
        found: dict[Criterion, Seen] = {}
        try:
            async with asyncio.timeout(PATIENCE):
                for criterion, _ in long_lookups(query):
                    look = functools.partial(self._look, boundary, criterion, long_lookups)
                    if (seen := await self._lookups((boundary, criterion), look)) is not None:
                        found[criterion] = seen
                return found
        except TimeoutError:
            raise FailedPrecondition(
                f"looking for the context took more than {PATIENCE:.0f} s, because {UNSERVED.format(boundary.name)}"
            ) from None

    async def _look(self, boundary: Boundary, criterion: Criterion, long_lookups: LongLookups) -> Seen | None:
        # who waits for its boundary's room takes none of the others'
        async with self._rooms[boundary], self._room:
            for _, plan in long_lookups((criterion,)):
                with self._database.guard():
                    return Seen.of(await self._database.read.fetchrow(lookup_sql(boundary, plan), *plan.values))
        return None  # an index was built meanwhile
