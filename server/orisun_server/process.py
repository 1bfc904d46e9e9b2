"""The life of a server's process: it serves until a signal asks it to stop, and then stops in time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable

import structlog

from .app import App
from .drained import tell_drained, told
from .settings import Settings

log = structlog.get_logger(__name__)


async def run(settings: Settings, *, on_ready: Callable[[App], None] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then stops within ORISUN_SHUTDOWN_GRACE; a second signal exits at once."""
    with told(settings.drained_file):
        await _run(settings, on_ready)


async def _run(settings: Settings, on_ready: Callable[[App], None] | None) -> None:
    app = App(settings)
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()

    def on_signal() -> None:
        if asked_to_stop.is_set():
            exit_now()
        log.info("stopping; a second signal exits at once")
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(app.start())
    stop = asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            _calm_garbage_collection()
            if on_ready is not None:
                on_ready(app)
            await stop
            stopping = asyncio.create_task(app.stop(), name="stop")
        else:
            # what it has started is stopped again
            starting.cancel()
            stopping = starting
        await asyncio.wait([stopping], timeout=settings.shutdown_grace)
        if not stopping.done():
            log.error("ORISUN_SHUTDOWN_GRACE is over and not everything has ended; PostgreSQL or NATS may hang")
            tell_drained(settings.drained_file)
            exit_now(1)
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        log.info("stopped")
    finally:
        stop.cancel()


def _calm_garbage_collection() -> None:
    """Thousands of waiting calls are not garbage: look for cycles less often, and never among what stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def exit_now(code: int = 130) -> None:
    """Ends the process as SIGKILL would; PostgreSQL and leases are made for that."""
    os._exit(code)
