"""Structured logs: one line an event, JSON or for people, without payloads, secrets or rows of PostgreSQL."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
#: Names under which users' data or secrets travel through this server.
_PRIVATE = frozenset(
    {
        "data",
        "metadata",
        "payload",
        "events",
        "event_data",
        "password",
        "secret",
        "token",
        "authorization",
        "credentials",
    }
)
_REDACTED = "<redacted>"

Event = MutableMapping[str, Any]


def configure(level: str = "INFO", form: str = "auto", stream: TextIO | None = None) -> None:
    """Send all logs, also those of libraries, to ``stream`` (standard error).

    ``level`` and ``form`` are ORISUN_LOGGING_LEVEL and ORISUN_LOGGING_FORMAT; "auto" writes for people on a terminal.
    """
    stream = stream or sys.stderr
    on_terminal = stream.isatty()
    for_people = form == "console" or (form == "auto" and on_terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        first_line_of_asyncio,
        one_line_of_asyncpg,
        redact,
        describe_exception,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=structlog.dev.plain_traceback)
        if for_people
        else structlog.processors.JSONRenderer(sort_keys=True)
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def redact(_: Any, __: str, event: Event) -> Event:
    """Hide values under private names, and what PostgreSQL says about rows after the first line of an error."""
    for name, value in event.items():
        if name.lower() in _PRIVATE or name.lower().endswith(("_password", "_token", "_secret")):
            event[name] = _REDACTED
        elif isinstance(value, BaseException):
            event[name] = describe(value)
        elif isinstance(value, str) and "\nDETAIL:" in value:
            event[name] = value.partition("\nDETAIL:")[0]
    return event


def first_line_of_asyncio(_: Any, __: str, event: Event) -> Event:
    """asyncio prints tasks with their exceptions, and those with what they were about."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


def one_line_of_asyncpg(_: Any, __: str, event: Event) -> Event:
    """Its pools tell of each attempt to connect anew with a traceback, while PostgreSQL is away."""
    if event.get("logger") == "asyncpg.pool" and (info := event.pop("exc_info", None)):
        error = sys.exc_info()[1] if info is True else info[1]
        event["reason"] = describe(error) if error is not None else ""
    return event


def describe_exception(_: Any, __: str, event: Event) -> Event:
    """Replace ``exc_info`` by a text: where each exception of the chain was raised, and what it says in one line."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
    if error is not None:
        event["exception"] = "\n".join(_chain(error))
    return event


def describe(error: BaseException) -> str:
    """An exception in one line without the rows or values that PostgreSQL complains about."""
    name = type(error).__name__
    state = str(getattr(error, "sqlstate", "") or "")
    if state[:2] in ("22", "23"):  # data exceptions and violated constraints quote the values
        return f"{name} (SQLSTATE {state})"
    lines = str(error).splitlines()
    return f"{name}: {lines[0]}" if lines else name


def _chain(error: BaseException) -> list[str]:
    """Frames without local variables or source of a statement's values, causes first."""
    lines: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        lines += [*_chain(cause), "The above led to:"]
    lines += _frames(error.__traceback__)
    lines.append(describe(error))
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions, 1):
            lines += [f"  [{number}] {line}" for line in _chain(member)]
    return lines


def _frames(frames: TracebackType | None) -> list[str]:
    return [
        f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in traceback.extract_tb(frames)
    ]
