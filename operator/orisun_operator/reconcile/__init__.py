"""One idempotent function a kind, called with a name alone: it looks at what is and does the next step.

``async def reconcile(context: Context, namespace: str, name: str) -> Outcome``, from every trigger and from a timer.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from orisun_server.storage.database import Database

from ..kube import Kube
from ..settings import OperatorSettings

#: Pauses in seconds: while something moves, and after a failure that may pass.
SOON, LATER = 5.0, 30.0


@dataclass(frozen=True)
class Outcome:
    """When to look again in seconds; None leaves it to the next trigger or the timer."""

    requeue: float | None = None


class Blocked(Exception):
    """A reconcile cannot go on. The message says to a person what is wrong and what to do.

    ``stalled`` means that somebody has to act; else waiting is enough. Either way it is tried again.
    """

    def __init__(self, reason: str, message: str, *, stalled: bool = True, retry: float = LATER) -> None:
        super().__init__(message)
        #: One CamelCase word for the conditions.
        self.reason = reason
        self.stalled = stalled
        #: Seconds until the next try.
        self.retry = retry


class PostgresAccess(Protocol):
    """How reconcile functions reach the PostgreSQL of a cluster (``reconcile/postgres.py``)."""

    def open(self, cluster: Mapping[str, Any]) -> AbstractAsyncContextManager[Database]:
        """Connections to the PostgreSQL of an OrisunCluster (the whole object), pooled over calls.

        Raises Blocked: a Secret or key is missing, PostgreSQL cannot be reached, it refuses the credentials.
        """
        ...

    async def close(self) -> None: ...


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Context:
    """What a reconcile function works with."""

    kube: Kube
    postgres: PostgresAccess
    settings: OperatorSettings
    clock: Callable[[], datetime.datetime] = field(default=_now)
