"""Identities of events."""

from __future__ import annotations

import secrets
import time
import uuid

_NAMESPACE = uuid.UUID("6f1d6c44-2f0c-5b1e-9d0b-6d1c7d1f6a55")


def new_id() -> str:
    """A new UUID, version 7 (RFC 9562): it begins with the time, so that neighbours in time are neighbours in the
    server's index of event ids."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds & (1 << 48) - 1) << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(0b11 << 62) | 0b10 << 62
    return str(uuid.UUID(int=number))


def derived_id(*parts: str) -> str:
    """A UUID, version 5, that the same parts always give: for events whose repetition must be recognized."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)))
