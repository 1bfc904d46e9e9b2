"""Tells whoever shares a directory with this server (the NATS server in its pod) whether it still takes calls.

The kubelet asks all containers of a pod to stop at the same time; the NATS server waits until this file says
``drained``, so that what was taken is still published.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SERVING, DRAINED = "serving", "drained"


@contextlib.contextmanager
def told(file: Path | None) -> Iterator[None]:
    """While the context lasts the file says ``serving``, afterwards ``drained``; None writes nothing."""
    _write(file, SERVING)
    try:
        yield
    finally:
        tell_drained(file)


def tell_drained(file: Path | None) -> None:
    """For an end that leaves no context."""
    _write(file, DRAINED)


def _write(file: Path | None, word: str) -> None:
    if file is None:
        return
    try:
        unfinished = file.with_name(file.name + ".new")
        unfinished.write_text(word + "\n")
        unfinished.replace(file)
    except OSError as error:
        # worse than a clean end, better than no server
        log.error("ORISUN_DRAINED_FILE cannot be written", file=str(file), error=error.strerror)  # noqa: TRY400
