"""The sum of all streams, kept under a limit by trimming the largest ones (ORISUN_NATS_MAX_STORE).

JetStream bounds each stream alone, and reserving a share for each would refuse the fortieth boundary. What is trimmed
is in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nats.js.api import StreamInfo

from .nats import Connection


async def trim(connection: Connection, limit: int, mine: Collection[str]) -> None:
    """Trims those of the streams whose boundaries are ``mine`` so that all together have at most ``limit`` bytes.

    Every server comes to the same plan, and each carries out its own part of it. Raises what NATS raises.
    """
    streams: dict[str, StreamInfo] = {}
    while True:
        page = await connection.answer(connection.jetstream.streams_info(offset=len(streams)))
        fresh = {info.config.name or "": info for info in page if info.config.name not in streams}
        streams |= fresh
        if not fresh:
            break
    prefix = connection.stream_prefix
    events = {name[len(prefix) :]: info for name, info in streams.items() if name.startswith(prefix)}
    cap = level({boundary: info.state.bytes for boundary, info in events.items()}, limit)
    for boundary, info in events.items():
        state = info.state
        if cap is None or boundary not in mine or state.bytes <= cap or state.messages < 2:
            continue
        # sequences are close to evenly sized; the last message stays, since the publisher goes on after it
        keep = max(1, state.messages * cap // state.bytes)
        await connection.answer(connection.jetstream.purge_stream(prefix + boundary, keep=keep))


def level(sizes: Mapping[str, int], limit: int) -> int | None:
    """The size that the largest ones have to come down to so that the sum is ``limit``; None when it is not above."""
    excess = sum(sizes.values()) - limit
    if excess <= 0:
        return None
    ordered = sorted(sizes.values(), reverse=True)
    for number, size in enumerate(ordered, start=1):
        following = ordered[number] if number < len(ordered) else 0
        room = (size - following) * number
        if room >= excess:
            return size - -(-excess // number)
        excess -= room
    return 0
