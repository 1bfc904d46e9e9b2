"""What a subscription has not taken yet: bounded, and honest about what it dropped."""

from __future__ import annotations

import asyncio

import pytest

from orisun_server.core.position import Position
from orisun_server.delivery import inbox as module
from orisun_server.delivery.inbox import Inbox, Message
from orisun_server.errors import Unavailable


def message(number: int, size: int = 10) -> Message:
    return Message(Position(number + 1, number), Position(number, number - 1), b"x" * size)


async def test_it_keeps_what_comes_after_it_was_opened() -> None:
    inbox = Inbox()
    inbox.put(message(0))
    assert not inbox.intact
    inbox.open()
    inbox.put(message(1))
    inbox.put(message(2))
    assert not await inbox.wait()
    taken = [inbox.take(), inbox.take(), inbox.take()]
    assert [one and one.position.prepare for one in taken] == [1, 2, None]


async def test_it_is_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MESSAGES", 3)
    inbox = Inbox()
    inbox.open()
    for number in range(4):
        inbox.put(message(number))
    assert not inbox.intact
    assert inbox.take() is None
    assert await inbox.wait()


async def test_it_is_bounded_in_bytes_and_holds_one_of_any_size() -> None:
    inbox = Inbox()
    inbox.open()
    inbox.put(message(0, module.MAX_BYTES * 2))
    assert inbox.intact
    inbox.put(message(1))
    assert not inbox.intact
    inbox.open()
    for number in range(4):
        inbox.put(message(number, module.MAX_BYTES // 4))
        inbox.take()
    assert inbox.intact


async def test_waiting_ends_with_a_message_a_poke_a_loss_a_failure_or_time() -> None:
    inbox = Inbox()
    inbox.open()
    for act, poked in (
        (lambda: inbox.put(message(0)), False),
        (inbox.poke, True),
        (inbox.lose, True),
        (lambda: inbox.fail(Unavailable()), True),
    ):
        inbox.open()
        waiting = asyncio.create_task(inbox.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        act()
        assert await asyncio.wait_for(waiting, 30) is poked
    with pytest.raises(Unavailable):
        inbox.check()
    inbox.open()
    assert not await inbox.wait(0.01)


async def test_a_cancelled_wait_leaves_the_inbox_usable() -> None:
    inbox = Inbox()
    inbox.open()
    waiting = asyncio.create_task(inbox.wait(10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    inbox.put(message(0))
    assert not await inbox.wait()
    assert inbox.take() is not None


async def test_content_is_decoded_once_for_all() -> None:
    from datetime import UTC, datetime

    from orisun_server.core.event import Event
    from orisun_server.delivery.codec import encode_event

    body = encode_event(Event(1, 0, "a", "Happened", '{"n": 1}', "{}", datetime.now(UTC)))
    shared = Message(Position(1, 0), Position(-1, -1), body)
    event_type, values = shared.content()
    assert (event_type, bytes(values["n"])) == ("Happened", b"1")
    assert shared.content()[1] is values
