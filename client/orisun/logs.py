"""Logger hooks: what clients and projections tell an application that asks for it."""

from __future__ import annotations

from typing import Any, Protocol

from .queries import Query


class Logger(Protocol):
    """Where clients and processors of projections tell what they do. structlog's loggers fit as they are, those of the
    standard library through ``StandardLogger``.

    Fields are names, keys of criteria, counts and positions; never values of an event's data. Where there is no logger
    nothing is put together: a message costs the look whether there is one.
    """

    def debug(self, message: str, /, **fields: Any) -> object:
        """What goes as it should: appends, reads, batches."""

    def info(self, message: str, /, **fields: Any) -> object:
        """What is worth knowing: conflicts, a worker that starts, stands by or stops."""

    def error(self, message: str, /, **fields: Any) -> object:
        """What is wrong, or in the way: an event that was not handled, a database that is away."""


class StandardLogger:
    """Writes to a logger of the standard library: the message, then ``field=value`` for each field."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def _log(self, level: int, message: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s %s", message, " ".join(f"{name}={value}" for name, value in fields.items()))

    def debug(self, message: str, /, **fields: Any) -> None:
        """At level DEBUG."""
        self._log(10, message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """At level INFO."""
        self._log(20, message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        """At level ERROR."""
        self._log(40, message, fields)


def keys_of(query: Query) -> str:
    """What a query asks for, without the values."""
    return ",".join(sorted({key for criterion in query.criteria for key, _ in criterion.tags})) or "everything"
