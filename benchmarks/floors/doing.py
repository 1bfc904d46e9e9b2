"""Floors that do one thing on top of the transport, and nothing else of what a store does.

``python -m benchmarks.floors.doing native 5006 fan-out`` hands each event that is saved to all subscribers, and keeps
it in memory only. ``... native 5006 insert HOST PORT USER DATABASE`` inserts it by a prepared statement.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from typing import Any

import asyncpg
import uvloop

from orisun_api import eventstore_pb2 as pb

from .. import events
from .inserts import ONE
from .transport import Floor, serve


class FanOut(Floor):
    """Delivers at once what is saved."""

    def __init__(self) -> None:
        super().__init__(0)
        self._saved: defaultdict[str, list[bytes]] = defaultdict(list)
        self._grown: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def save_events(self, raw: bytes, _context: Any) -> bytes:
        request = pb.SaveEventsRequest.FromString(raw)
        saved = self._saved[request.boundary]
        for event in request.events:
            position = pb.Position(commit_position=len(saved) + 1, prepare_position=len(saved))
            told = pb.Event(event_id=event.event_id, event_type=event.event_type, data=event.data, position=position)
            saved.append(told.SerializeToString())
        self._grown.pop(request.boundary, asyncio.Event()).set()
        return self.written

    async def subscribe(self, raw: bytes, context: Any) -> None:
        name = pb.CatchUpSubscribeToEventStoreRequest.FromString(raw).boundary
        saved, at = self._saved[name], 0
        while True:
            while at < len(saved):
                await context.write(saved[at])
                at += 1
            await self._grown[name].wait()


class Insert(Floor):
    """Commits a row for each call, whatever the call brings."""

    def __init__(self, statement: asyncpg.prepared_stmt.PreparedStatement) -> None:
        super().__init__(0)
        self._statement, self._number, self._ids = statement, 0, events.ids()

    async def save_events(self, _raw: bytes, _context: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        data = events.data(f"k{number}")
        await self._statement.fetch(number, next(self._ids), events.EVENT_TYPE, data, events.METADATA)
        return self.written


async def _main(transport: str, port: str, what: str, *postgres: str) -> None:
    if what == "fan-out":
        await serve(transport, int(port), FanOut())
        return
    host, postgres_port, user, database = postgres
    connection = await asyncpg.connect(
        host=host, port=int(postgres_port), user=user, database=database, ssl=False, server_settings={"jit": "off"}
    )
    try:
        await serve(transport, int(port), Insert(await connection.prepare(ONE)))
    finally:
        await connection.close()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
