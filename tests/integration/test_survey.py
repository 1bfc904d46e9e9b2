"""Looking contexts up that no index serves: how many at a time, of whom, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest

from orisun_server.core.criteria import Criterion, Query, criterion
from orisun_server.errors import FailedPrecondition
from orisun_server.storage import survey as survey_module
from orisun_server.storage.catalog import Boundary
from orisun_server.storage.criteria_sql import Access, access
from orisun_server.storage.database import Database
from orisun_server.storage.survey import LongLookups, Seen, Survey
from tests.harness import eventually, is_quick

#: More than any bound on lookups at a time.
MANY = 20


@pytest.fixture
def survey(database: Database) -> Survey:
    return Survey(database)


def without_indexes(query: Query) -> list[tuple[Criterion, Access]]:
    return [(wanted, access(wanted, ())) for wanted in query]


def look(
    survey: Survey, boundary: Boundary, account: str, long_lookups: LongLookups = without_indexes
) -> asyncio.Task[Mapping[Criterion, Seen]]:
    return asyncio.ensure_future(survey(boundary, (criterion([("account", account)]),), long_lookups))


@contextlib.asynccontextmanager
async def held(database: Database, boundary: Boundary) -> AsyncIterator[None]:
    """While it lasts, whoever reads the boundary's events waits."""
    async with database.write.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {boundary.names.q_events} IN ACCESS EXCLUSIVE MODE")
        yield


async def waiting(database: Database, boundary: Boundary) -> int:
    """How many wait for the boundary's events."""
    return int(
        await database.admin.fetchval(
            "SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation"
            " WHERE c.relname = $1 AND NOT l.granted",
            boundary.names.events,
        )
    )


async def test_the_long_looks_of_one_boundary_leave_room_for_those_of_others(
    survey: Survey, database: Database, make_boundary: Callable[..., Awaitable[Boundary]]
) -> None:
    slow, other = await make_boundary(), await make_boundary()
    async with held(database, slow):
        looks = [look(survey, slow, f"a{number}") for number in range(MANY)]
        await eventually(lambda: waiting(database, slow))
        await asyncio.wait_for(look(survey, other, "x"), 20)
        assert not any(task.done() for task in looks)
        assert 1 <= await waiting(database, slow) < MANY
    assert len(await asyncio.gather(*looks)) == MANY


async def test_waiting_for_room_counts_to_the_time_that_a_look_may_take(
    survey: Survey, database: Database, boundary: Boundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = 0.5
    monkeypatch.setattr(survey_module, "PATIENCE", patience)

    async def reaches() -> float:
        began = time.monotonic()
        for answer in await asyncio.gather(
            *(look(survey, boundary, f"a{number}") for number in range(MANY)), return_exceptions=True
        ):
            assert isinstance(answer, FailedPrecondition)
            assert f'no index of boundary "{boundary.name}" serves' in str(answer)
        return time.monotonic() - began

    async with held(database, boundary):
        await is_quick(reaches, 3 * patience)
        # nobody is left behind in PostgreSQL
        await eventually(lambda: _are(0, waiting(database, boundary)))
    await look(survey, boundary, "a0")


async def test_who_waits_while_an_index_is_built_looks_nothing_up(
    survey: Survey, database: Database, boundary: Boundary
) -> None:
    indexed = False

    def long_lookups(query: Query) -> list[tuple[Criterion, Access]]:
        return [] if indexed else without_indexes(query)

    async with held(database, boundary):
        looks = [look(survey, boundary, f"a{number}", long_lookups) for number in range(MANY)]
        await eventually(lambda: _are(survey_module._OF_ONE, waiting(database, boundary)))
        indexed = True
    seen = await asyncio.gather(*looks)
    assert sum(map(len, seen)) == survey_module._OF_ONE


async def _are(number: int, count: Awaitable[int]) -> bool:
    return await count == number
