"""The audit log: administrative acts as events of the admin boundary, and denials so that they cannot flood it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from ..core import audit
from ..core.append import Context
from ..core.position import Position
from ..core.users import Caller
from ..errors import InvalidArgument, OrisunError
from ..storage.catalog import Catalog
from ..storage.group_commit import Appender
from ..tasks import end, happens
from .denials import WINDOW, Denials, Kind, Noted, source_of

#: Sources that one event about omitted denials names: users, then strangers, those with most first.
_MOST_NAMED = 50
#: Stands for every name that no boundary has: callers could invent them without end.
_NO_BOUNDARY = "(no such boundary)"
_INTERVAL = 1.0

_log = structlog.get_logger(__name__)


class Audit:
    """Writes the audit log through the ordinary append path; ``start`` before denials are noted."""

    def __init__(
        self,
        appender: Appender,
        catalog: Catalog,
        admin_boundary: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._appender, self._catalog, self._boundary = appender, catalog, admin_boundary
        self._clock, self._wall = clock, wall
        self._denials, self._omitted_at = Denials(), clock()
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Write denials in the background."""
        self._task = asyncio.create_task(self._run(), name="audit")

    async def stop(self) -> None:
        """Writes what is pending, for a second at most."""
        if self._task is not None:
            await end([self._task])
        try:
            async with asyncio.timeout(1):
                await self._write_pending(last=True)
        except (OrisunError, TimeoutError):
            _log.warning("the last denied calls are missing in the audit log")

    async def append(
        self,
        event_type: str,
        by: Caller,
        data: Mapping[str, Any],
        context: Context | None = None,
        *,
        event_id: str = "",
    ) -> Position:
        """Appends an event of the audit log. Raises what appending raises: ContextChanged, Unavailable ..."""
        boundary = self._catalog.get(self._boundary)
        event = audit.event(event_type, by, data, event_id=event_id)
        return await self._appender.append(boundary, [event], context)

    async def acted(self, event_type: str, by: Caller, **data: Any) -> None:
        """Notes an act that is done and cannot be taken back; when it cannot be stored, the server's log has it."""
        try:
            await self.append(event_type, by, data)
        except OrisunError as problem:
            _log.error(
                "an administrative act is missing in the audit log",
                act=event_type, username=by.username, peer=by.peer, about=data, reason=str(problem),
            )  # fmt: skip

    def denied(self, by: Caller, rpc: str, boundary: str = "") -> None:
        """Notes a call that a role was missing for; it is written soon, together with others of its kind."""
        if boundary and all(one.name != boundary for one in self._catalog.active()):
            boundary = _NO_BOUNDARY
        about = {"rpc": rpc, "boundary": boundary} if boundary else {"rpc": rpc}
        self._note((audit.CALL_DENIED, by, tuple(about.items())))

    def login_failed(self, username: str, peer: str) -> None:
        """Notes a wrong password. ``username`` is "" where there is no such user: people type passwords there."""
        nobody = Caller("", "", frozenset(), 0, via="", peer=peer)
        self._note((audit.LOGIN_FAILED, nobody, (("username", username),)))

    def _note(self, kind: Kind) -> None:
        now = self._wall()
        self._denials.note(kind, Noted(1, now, now))
        self._something.set()

    async def _run(self) -> None:
        failing = False
        while True:
            if not self._denials:
                await self._something.wait()
            self._something.clear()
            try:
                await self._write_pending()
                failing = False
            except Exception as problem:  # the log goes on, whatever happens
                if not failing:
                    _log.warning("denied calls cannot be written to the audit log", reason=str(problem))
                failing = True
            await asyncio.sleep(_INTERVAL)
            if self._denials:
                # what waits for its window or for the budget needs no hurry
                await happens(self._something, _INTERVAL)

    async def _write_pending(self, *, last: bool = False) -> None:
        now = self._clock()
        for kind in self._denials.due(now, last=last):
            event_type, by, about = kind
            noted = self._denials.take(kind)
            if noted is None:
                continue
            told = {"count": noted.count, "first_at": _told(noted.first_at), "last_at": _told(noted.last_at)}
            try:
                await self.append(event_type, by, {**dict(about), **told})
            except InvalidArgument:
                # it would be refused for ever, and the others must not wait for it
                _log.error("a denial cannot be written to the audit log and is only counted", act=event_type)
                self._denials.omit(source_of(kind), noted.count)
                continue
            except BaseException:
                self._denials.note(kind, noted)
                raise
            self._denials.written(kind, now)
        if last:
            self._denials.omit_everything()
        if self._denials.omitted and (last or now - self._omitted_at >= WINDOW):
            omitted = self._denials.omitted
            largest = sorted(omitted.items(), key=lambda one: (not one[0][0], -one[1]))[:_MOST_NAMED]
            named = [{"username": who, "peer": peer, "count": count} for (who, peer), count in largest]
            self._denials.omitted = Counter()
            try:
                await self.append(audit.DENIALS_OMITTED, audit.SERVER, {"count": omitted.total(), "callers": named})
            except BaseException:
                self._denials.omitted += omitted
                raise
            self._omitted_at = now


def _told(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
