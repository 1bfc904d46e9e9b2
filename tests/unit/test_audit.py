"""Denied calls in the audit log: told together, and never so many that they fill it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from orisun_server.admin.audit import Audit
from orisun_server.admin.denials import BURST, MOST_KINDS, MOST_SOURCES
from orisun_server.core.event import NewEvent
from orisun_server.core.position import Position
from orisun_server.core.users import Caller
from orisun_server.errors import InvalidArgument, Unavailable


class Log:
    """Keeps what is appended, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now, self.events, self.failing = 0.0, list[NewEvent](), False
        log: Any = self
        self.audit = Audit(log, log, "orisun_admin", clock=lambda: self.now, wall=lambda: 1_000 + self.now)

    def get(self, name: str) -> str:
        return name

    def active(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in ("orders", "payments")]

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
    at = "1970-01-01T00:16:40.000+00:00"
    assert about == {"rpc": "SaveEvents", "boundary": "orders", "count": 1000, "first_at": at, "last_at": at}
    assert by == {"username": "ann", "user_id": "ann", "via": "password", "peer": "10.0.0.1"}


async def test_kinds_without_end_are_counted_and_not_written() -> None:
    """A day of a flood in which every call is another kind."""
    log = Log()
    sent = 0
    for _ in range(24 * 60):
        for _ in range(100):
            sent += 1
            log.audit.login_failed(f"user{sent}", "10.0.0.1")
        await log.audit._write_pending()
        log.now += 60
    assert len(log.events) < BURST + 24 * 60 * 7 + 10
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
    log.audit.denied(caller("ann"), "Save\0")
    log.audit.denied(caller("ann"), "SaveEvents", "orders")
    assert await log.written() == [1]
    log.now += 61
    assert await log.written("orisun.DenialsOmitted") == [1]


async def test_a_flood_of_one_hides_nobody_else() -> None:
    """Neither with names of boundaries that it invents, nor with calls that are all of another kind."""
    log = Log()
    for number in range(1_300):
        log.audit.denied(caller("mallory"), "GetEvents", f"invented{number}")
        log.audit.denied(caller("mallory"), f"rpc {number}")
    log.now += 5
    log.audit.denied(caller("mallory"), "GetEvents", "invented")
    log.audit.denied(caller("ann"), "ListUsers")
    await log.written()
    told = [(json.loads(event.data), json.loads(event.metadata)["username"]) for event in log.events]
    assert told[0][0] == {
        "rpc": "GetEvents", "boundary": "(no such boundary)", "count": 1_301,
        "first_at": "1970-01-01T00:16:40.000+00:00", "last_at": "1970-01-01T00:16:45.000+00:00",
    }  # fmt: skip
    assert [who for _, who in told].count("mallory") == 10
    assert [about["rpc"] for about, who in told if who == "ann"] == ["ListUsers"]
    log.now += 60
    await log.written()
    (omitted,) = [json.loads(event.data) for event in log.events if event.event_type == "orisun.DenialsOmitted"]
    assert omitted["callers"] == [{"username": "mallory", "peer": "10.0.0.1", "count": 1_300 - MOST_KINDS + 1}]


async def test_a_flood_from_many_addresses_leaves_room_and_memory() -> None:
    log = Log()
    for number in range(2 * MOST_SOURCES):
        for rpc in "ab":
            log.audit.denied(caller("mallory")._replace(peer=f"10.0.{number}.1"), rpc)
    log.audit.denied(caller("ann"), "ListUsers")
    for _ in range(MOST_SOURCES // int(BURST) + 1):
        await log.written()
        log.now += 10 * BURST
    assert "ann" in {json.loads(event.metadata)["username"] for event in log.events}
    await log.audit.stop()
    assert sum(json.loads(event.data)["count"] for event in log.events) == 4 * MOST_SOURCES + 1


async def test_a_flood_from_many_networks_hides_nobody_who_is_signed_in() -> None:
    """Ann is denied a call while strangers fail to sign in from ever new networks."""
    log = Log()
    for number in range(10 * MOST_SOURCES):
        log.audit.login_failed("", f"2001:db8:{number:x}::1")
        if number == 2 * MOST_SOURCES:
            log.audit.denied(caller("ann"), "ListUsers")
        if number % 20 == 0:
            log.now += 1
            await log.written()
    assert "ann" in {json.loads(event.metadata)["username"] for event in log.events}


async def test_one_network_is_one_stranger() -> None:
    log = Log()
    for number in range(100):
        log.audit.login_failed("", f"2001:db8::{number:x}")
    await log.written()
    log.now += 61
    await log.written()
    omitted = [json.loads(event.data) for event in log.events if event.event_type == "orisun.DenialsOmitted"]
    assert {one["peer"] for told in omitted for one in told["callers"]} <= {"2001:db8::/64"}
    assert sum(json.loads(event.data)["count"] for event in log.events) <= 100
