"""The events that are measured with: the load generator's, so that all floors insert and send the same."""

from __future__ import annotations

import os
from collections.abc import Iterator

EVENT_TYPE = "Placed"
METADATA = '{"source":"bench"}'
#: The load generator makes this index before appends with a context, and so do loads.
INDEX_NAME, INDEX_KEY = "bench_key", "key"

_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NOTE = _LETTERS * 3
#: Of a large log: events of one key, of keys with a single event, of keys with this many events.
HOT, HOT_SHARE = "hot", 10
ONCE, ONCE_SHARE = "once", 1000
PER_KEY = 100


def data(key: str) -> str:
    """The data of an event whose tag is ``key``."""
    return f'{{"key":"{key}","amount":42,"note":"{_NOTE}"}}'


def ids() -> Iterator[str]:
    """Random UUIDs, made in blocks: cheap beside what is measured."""
    while True:
        block = os.urandom(16 * 512).hex()
        for start in range(0, len(block), 32):
            text = block[start : start + 32]
            yield f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def keys(count: int) -> Iterator[str]:
    """Keys of a log of ``count`` events: every tenth ``hot``, some ``once...``, the others ``k...``, 100 of each."""
    others = count - count // HOT_SHARE - count // ONCE_SHARE
    distinct = max(1, others // PER_KEY)
    other = 0
    for number in range(count):
        if number % HOT_SHARE == 0:
            yield HOT
        elif number % ONCE_SHARE == 1:
            yield f"{ONCE}{number // ONCE_SHARE}"
        else:
            yield f"k{other % distinct}"
            other += 1
