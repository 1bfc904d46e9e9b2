"""Denied calls in the audit log: told together, and never so many that they fill it."""

from __future__ import annotations

import json
from typing import Any

from orisun_server.admin.audit import _BURST, _MOST_KINDS, Audit
from orisun_server.core.event import NewEvent
from orisun_server.core.position import Position
from orisun_server.core.users import Caller
from orisun_server.errors import InvalidArgument, Unavailable


class Log:
    """Keeps what is appended, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now, self.events, self.failing = 0.0, list[NewEvent](), False
        log: Any = self
        self.audit = Audit(log, log, "orisun_admin", clock=lambda: self.now)

    def get(self, name: str) -> str:
        return name

    async def append(self, boundary: str, events: list[NewEvent], context: object) -> Position:
        if self.failing:
            raise Unavailable
        if "\\u0000" in events[0].data:
            raise InvalidArgument
        self.events += events
        return Position(1, 0)

    async def written(self, event_type: str = "orisun.CallDenied") -> list[int]:
        """The counts of the events that are written now."""
        before = len(self.events)
        await self.audit._write_pending()
        return [json.loads(event.data)["count"] for event in self.events[before:] if event.event_type == event_type]


def caller(name: str) -> Caller:
    return Caller(name, name, frozenset({"READER"}), 1, peer="10.0.0.1")


async def test_denials_of_one_kind_are_told_together() -> None:
    log = Log()
    for _ in range(1000):
        log.audit.denied(caller("ann"), "SaveEvents", "orders")
    log.audit.denied(caller("ann"), "SaveEvents", "payments")
    log.audit.denied(caller("bob"), "SaveEvents", "orders")
    assert await log.written() == [1000, 1, 1]
    log.audit.denied(caller("ann"), "SaveEvents", "orders")
    assert await log.written() == []
    log.now += 61
    assert await log.written() == [1]
    about, by = json.loads(log.events[0].data), json.loads(log.events[0].metadata)
    assert about == {"rpc": "SaveEvents", "boundary": "orders", "count": 1000}
    assert by == {"username": "ann", "user_id": "ann", "via": "password", "peer": "10.0.0.1"}


async def test_kinds_without_end_are_counted_and_not_written() -> None:
    """A day of a flood in which every call is another kind."""
    log = Log()
    sent = 0
    for _ in range(24 * 60):
        for _ in range(_MOST_KINDS // 10):
            sent += 1
            log.audit.login_failed(f"user{sent}", "10.0.0.1")
        await log.audit._write_pending()
        log.now += 60
    assert len(log.events) < _BURST + 24 * 60 * 7 + 10
    await log.audit.stop()
    assert sum(json.loads(event.data)["count"] for event in log.events) == sent


async def test_nothing_is_lost_while_postgresql_is_away() -> None:
    log = Log()
    log.audit.denied(caller("ann"), "SaveEvents")
    log.failing = True
    for _ in range(3):
        try:
            await log.audit._write_pending()
        except Unavailable:
            log.audit.denied(caller("ann"), "SaveEvents")
    log.failing = False
    log.now += 61
    assert await log.written() == [4]


async def test_a_denial_that_cannot_be_stored_holds_up_no_other() -> None:
    log = Log()
    log.audit.denied(caller("ann"), "SaveEvents", "\0")
    log.audit.denied(caller("ann"), "SaveEvents", "orders")
    assert await log.written() == [1]
    log.now += 61
    assert await log.written("orisun.DenialsOmitted") == [1]
