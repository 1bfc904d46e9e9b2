"""The audit log: administrative acts as events of the admin boundary, and denials so that they cannot flood it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
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

#: Denials of one kind (same caller, rpc and boundary) within this many seconds are one event with their number.
_WINDOW = 60.0
#: Events of denials that may be written at once, and seconds in which one more may be.
_BURST, _REFILL = 60.0, 10.0
#: Kinds of denials that are told apart at a time; more are counted together.
_MOST_KINDS = 1_000
_INTERVAL = 1.0

_log = structlog.get_logger(__name__)
_Kind = tuple[str, Caller, tuple[tuple[str, str], ...]]


class Audit:
    """Writes the audit log through the ordinary append path; ``start`` before denials are noted."""

    def __init__(
        self, appender: Appender, catalog: Catalog, admin_boundary: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._appender, self._catalog, self._boundary = appender, catalog, admin_boundary
        self._clock = clock
        self._pending: dict[_Kind, int] = {}
        self._written: dict[_Kind, float] = {}
        self._omitted, self._omitted_at = 0, clock()
        self._budget, self._budget_at = _BURST, clock()
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
        about = {"rpc": rpc, "boundary": boundary} if boundary else {"rpc": rpc}
        self._note((audit.CALL_DENIED, by, tuple(about.items())))

    def login_failed(self, username: str, peer: str) -> None:
        """Notes a wrong password. ``username`` is "" where there is no such user: people type passwords there."""
        nobody = Caller("", "", frozenset(), 0, via="", peer=peer)
        self._note((audit.LOGIN_FAILED, nobody, (("username", username),)))

    def _note(self, kind: _Kind) -> None:
        if kind in self._pending or len(self._pending) < _MOST_KINDS:
            self._pending[kind] = self._pending.get(kind, 0) + 1
        else:
            self._omitted += 1
        self._something.set()

    async def _run(self) -> None:
        failing = False
        while True:
            if not self._pending and not self._omitted:
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
            if self._pending or self._omitted:
                # what waits for its window or for the budget needs no hurry
                await happens(self._something, _INTERVAL)

    async def _write_pending(self, *, last: bool = False) -> None:
        now = self._clock()
        self._budget = min(_BURST, self._budget + (now - self._budget_at) / _REFILL)
        self._budget_at = now
        self._written = {kind: at for kind, at in self._written.items() if now - at < _WINDOW}
        due = [kind for kind in self._pending if last or kind not in self._written]
        chosen, left = due[: int(self._budget)], due[int(self._budget) :]
        if left and (last or len(self._pending) >= _MOST_KINDS):
            self._omitted += sum(self._pending.pop(kind) for kind in left)
        for kind in chosen:
            event_type, by, about = kind
            count = self._pending.pop(kind)
            try:
                await self.append(event_type, by, {**dict(about), "count": count})
            except InvalidArgument:
                # it would be refused for ever, and the others must not wait for it
                _log.error("a denial cannot be written to the audit log and is only counted", act=event_type)
                self._omitted += count
                continue
            except OrisunError:
                self._pending[kind] = self._pending.get(kind, 0) + count
                raise
            self._budget -= 1
            self._written[kind] = now
        if self._omitted and (last or now - self._omitted_at >= _WINDOW):
            await self.append(audit.DENIALS_OMITTED, audit.SERVER, {"count": self._omitted})
            self._omitted, self._omitted_at = 0, now
