"""One idempotent function a kind, called with a name alone: it looks at what is and does the next step.

``async def reconcile(context: Context, namespace: str, name: str) -> Outcome``, from every trigger and from a timer.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..jetstream import JetStream
from ..kube import Kube
from ..settings import OperatorSettings

if TYPE_CHECKING:
    from .postgres import Postgres

#: Pauses in seconds: while something moves, and after a failure that may pass.
SOON, LATER = 5.0, 30.0


@dataclass(frozen=True)
class Outcome:
    """When to look again in seconds; None leaves it to the next trigger or the timer."""

    requeue: float | None = None
    #: The resource does not exist any more: no timer brings it back.
    gone: bool = False
    #: It cannot go on: the longer this lasts, the longer the pauses.
    blocked: bool = False


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


class Paused(Blocked):
    """The OrisunCluster is paused, and what is in it with it: nothing is wrong, and nothing is under way."""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Context:
    """What a reconcile function works with."""

    kube: Kube
    postgres: Postgres
    settings: OperatorSettings
    clock: Callable[[], datetime.datetime] = field(default=_now)
    jetstream: JetStream = field(default_factory=JetStream)
