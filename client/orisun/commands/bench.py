"""``orisun bench``."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from orisun_api import eventstore_pb2 as pb

from ..client import Client
from ..ids import new_id
from ..queries import EVERYTHING
from .base import Session, command, confirmed
from .output import Column
from .raw import read

_COLUMNS = (
    Column("WORK", "work"),
    Column("CALLERS", "callers"),
    Column("CALLS", "calls"),
    Column("CALLS/S", "calls_per_second"),
    Column("EVENTS/S", "events_per_second"),
    *(Column(f"P{p} MS", lambda record, p=p: f"{record['milliseconds'][f'p{p}']:.2f}") for p in (50, 95, 99)),  # type: ignore[misc]
    Column("MAX MS", lambda record: f"{record['milliseconds']['max']:.2f}"),
)
_BATCH = 100
_PAGE = 1_000
#: Keys that the events differ in, as customers would.
_ACCOUNTS = 1_000


@command(
    "bench",
    shown="""
    orisun bench --boundary bench_1
    orisun bench --boundary bench_2 --callers 1 --callers 200 --seconds 10 --yes --output json
    """,
)
@click.option(
    "--boundary", required=True, metavar="NAME", help="A new boundary for the load; it is created, and stays."
)
@click.option("--schema", metavar="NAME", help="PostgreSQL schema of its tables.  [default: the boundary's name]")
@click.option(
    "--callers", type=click.IntRange(1, 5_000), multiple=True, default=(1, 50), show_default=True, metavar="N",
    help="Callers at the same time, each waiting for its answer; repeatable.",
)  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Length of each part.")
@click.option(
    "--bytes", "size", type=click.IntRange(0, 100_000), default=200, show_default=True, help="Size of the data."
)
@confirmed('This creates boundary "{boundary}", which stays, and puts load on the server. Go on?')
async def bench(
    session: Session, *, boundary: str, schema: str | None, callers: tuple[int, ...], seconds: float, size: int
) -> None:
    """Measure a server with a small load: appends, batches, paging.

    It says what this client sees on this machine and network, with every answer waited for; the client is written in
    Python and is the limit at some point (one core, some thousands of calls a second), so a store can do more than this
    shows. Appends are durable and unconditional. Needs the role ADMIN; a boundary that exists already is refused.
    """
    client, show = session.client, session.show
    await client.admin.create_boundary(boundary, schema=schema or boundary, description="orisun bench")
    load = _Load(client, boundary, size)
    parts: list[tuple[str, int, int, Callable[[], Awaitable[int]]]] = [
        ("append", number, 1, load.append) for number in dict.fromkeys(callers)
    ]
    parts += [(f"append {_BATCH}", 1, _BATCH, load.append_batch), (f"read {_PAGE}", 1, _PAGE, load.read_page)]
    await load.append()  # connects
    # what is measured ends up in one table, so that JSON is one list
    records = []
    for work, number, _, call in parts:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{work}, {number} callers: {seconds:g} s ...", nl=False, err=True)
        records.append(await _measured(work, number, seconds, call))
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    show.records(records, _COLUMNS)
    show.say(
        f'Boundary "{boundary}" has {load.stored:,} events of {size} bytes now, and stays; it is deleted in '
        f'PostgreSQL, with the schema "{schema or boundary}".'
    )


class _Load:
    """The calls that are measured; each returns the number of its events."""

    def __init__(self, client: Client, boundary: str, size: int) -> None:
        self._client, self._boundary = client, boundary
        self._filler = secrets.token_hex((size + 1) // 2)[:size]
        self._numbers = itertools.count()
        self._pages: Any = None
        self.stored = 0

    def _event(self) -> pb.EventToSave:
        number = next(self._numbers)
        data = f'{{"account":"a-{number % _ACCOUNTS}","number":{number},"filler":"{self._filler}"}}'
        return pb.EventToSave(event_id=new_id(), event_type="Measured", data=data, metadata="{}")

    async def append(self) -> int:
        return await self._save([self._event()])

    async def append_batch(self) -> int:
        return await self._save([self._event() for _ in range(_BATCH)])

    async def read_page(self) -> int:
        """The next page, from the beginning again at the end."""
        count = 0
        self._pages = self._pages or read(self._client, self._boundary, EVERYTHING, page_size=_PAGE)
        async for _ in self._pages:
            count += 1
            if count == _PAGE:
                return count
        self._pages = None
        return count

    async def _save(self, events: Sequence[pb.EventToSave]) -> int:
        request = pb.SaveEventsRequest(boundary=self._boundary, events=events)
        await self._client.calls.unary("events", "SaveEvents", request)
        self.stored += len(events)
        return len(events)


async def _measured(work: str, callers: int, seconds: float, call: Callable[[], Awaitable[int]]) -> dict[str, Any]:
    took: list[float] = []
    events = 0
    began = time.perf_counter()
    end = began + seconds

    async def caller() -> None:
        nonlocal events
        while (start := time.perf_counter()) < end:
            found = await call()
            events += found
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(callers)))
    spent = time.perf_counter() - began
    took.sort()

    def percentile(p: float) -> float:
        return round(took[min(len(took) - 1, int(len(took) * p))] * 1000, 3)

    return {
        "work": work,
        "callers": callers,
        "calls": len(took),
        "seconds": round(spent, 3),
        "calls_per_second": round(len(took) / spent),
        "events_per_second": round(events / spent),
        "milliseconds": {
            "p50": percentile(0.5),
            "p95": percentile(0.95),
            "p99": percentile(0.99),
            "max": percentile(1),
        },
    }
