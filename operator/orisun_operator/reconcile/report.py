"""What a reconcile leaves for others to see: its status, and an Event for each condition that changes."""

from __future__ import annotations

import contextlib
import copy
import datetime
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from orisun_server.core.position import Position

from ..api.conditions import READY, STALLED, SUMMARY, get_condition, is_true, summarize, timestamp, transitions
from ..kube import KubeError, NotOurs, Object
from . import LATER, SOON, Blocked, Context, Outcome, Paused

T = TypeVar("T")

#: The reason of what is paused with its OrisunCluster.
PAUSED = "ClusterPaused"
#: Seconds between two writes of figures that move all the time.
FIGURES_EVERY = 60.0
#: No answer, somebody else wrote meanwhile, too many requests.
_AT_ONCE = (0, 409, 429)


class Report:
    """The status of one object in the making; ``send`` writes it if it differs from the one that was read."""

    def __init__(self, context: Context, obj: Object) -> None:
        self.context = context
        self.obj = obj
        self.generation: int = obj["metadata"].get("generation", 0)
        self.before: Mapping[str, Any] = obj.get("status") or {}
        self.status: dict[str, Any] = copy.deepcopy(dict(self.before))
        #: The status that Events were recorded for last.
        self._told = self.before
        #: Set when the object goes: one of its name that follows must not get this status.
        self.over = False
        #: Whether something stands in the way that has to be tried again.
        self.is_blocked = False
        #: Reasons for which losing readiness is as wanted, and worth no warning.
        self.planned: frozenset[str] = frozenset({PAUSED})

    async def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Record an Event about the object."""
        await self.context.kube.event(self.obj, "Warning" if warning else "Normal", reason, message)

    def ready(self, reason: str, message: str) -> None:
        """All is as the spec wants it."""
        self._phase(reason, message, ready=True)

    def waiting(self, phase: str, message: str) -> None:
        """Something is under way."""
        self._phase(phase, message, reconciling=True)

    def resting(self, phase: str, message: str) -> None:
        """Nothing is under way, and the resource does not serve, because somebody wants it so."""
        self._phase(phase, message)

    def stalled(self, reason: str, message: str) -> None:
        """A person has to act."""
        self._phase(reason, message, stalled=True)

    def blocked(self, problem: Blocked) -> None:
        """As the exception says."""
        self.is_blocked = not isinstance(problem, Paused)
        if isinstance(problem, Paused):
            self.resting(problem.reason, str(problem))
        elif problem.stalled:
            self.stalled(problem.reason, str(problem))
        else:
            self.waiting(problem.reason, str(problem))

    def refused(self, error: KubeError) -> Outcome:
        """The API server does not let be done what has to be. Raises again what is over with the next look."""
        self.is_blocked = True
        if isinstance(error, NotOurs):
            # often what a resource of the same name left, on its way out
            self.stalled("NameTaken", str(error))
            return Outcome(SOON)
        if error.status in _AT_ONCE:
            raise error
        if error.status >= 500:
            self.waiting("KubernetesUnavailable", f"the API server fails for now: {error}")
        elif error.status == 403 and "being terminated" in str(error):
            self.waiting("NamespaceEnding", f"nothing can be made in a namespace that is being deleted: {error}")
        elif error.status == 403:
            self.stalled("Forbidden", f"the API server refuses the operator: {error}: give it the roles of its chart")
        else:
            self.stalled("Refused", f"the API server refused what follows from the spec: {error}: correct the spec")
        return Outcome(LATER)

    async def failed(self, error: Exception) -> None:
        """Tell of a failure that nobody has foreseen; the log has its traceback, which may quote what is secret."""
        name = type(error).__name__
        self.waiting("OperatorFailed", f"the operator failed ({name}) and tries again; its log says where")
        with contextlib.suppress(KubeError):
            await self.send()

    def figures(self, figures: Mapping[str, Any]) -> None:
        """Figures that move by themselves: taken over at most once a minute, and only where one has changed."""
        now = self.context.clock()
        if all(self.status.get(key) == value for key, value in figures.items()):
            return
        if self.figures_due() <= 0:
            self.status |= {**figures, "figuresTime": timestamp(now)}

    def figures_due(self) -> float:
        """Seconds until figures may be written again."""
        written = self.status.get("figuresTime")
        if not written:
            return 0.0
        age = self.context.clock() - datetime.datetime.fromisoformat(written.replace("Z", "+00:00"))
        return max(0.0, FIGURES_EVERY - age.total_seconds())

    async def send(self) -> None:
        """Write the status, and an Event when the summary or its reason changed, and for each other condition."""
        if self.over:
            return
        try:
            await self.context.kube.patch_status(self.obj, self.status)
        except KubeError as error:
            if error.status == 403:
                text = f"the status cannot be written: {error}: give the operator the roles of its chart"
                await self.event("Forbidden", text, warning=True)
            raise
        # what a later send compares with
        self.obj = {**self.obj, "status": copy.deepcopy(self.status)}
        before, self._told = self._told, self.obj["status"]
        after = get_condition(self.status, READY)
        expected = after is None or after["reason"] in self.planned
        if after is not None and _summary(before) != _summary(self.status):
            lost = is_true(before, READY) and after["status"] != "True" and not expected
            await self.event(after["reason"], after["message"], warning=lost or is_true(self.status, STALLED))
        for one in transitions(before, self.status):
            await self.event(one.reason, one.message, warning=one.worse and not expected)

    def _phase(
        self, reason: str, message: str, *, ready: bool = False, reconciling: bool = False, stalled: bool = False
    ) -> None:
        summarize(
            self.status,
            self.generation,
            ready=ready,
            reconciling=reconciling,
            stalled=stalled,
            reason=reason,
            message=message,
            now=self.context.clock(),
        )
        self.status["phase"] = "Stalled" if stalled else reason


async def concluded(
    report: Report, work: Awaitable[Outcome], on_blocked: Callable[[Blocked], None] | None = None
) -> Outcome:
    """The outcome of a look at a resource, its status sent, whatever went wrong in it.

    Raises KubeError for what passes by itself, and what nobody has foreseen.
    """
    try:
        outcome = await work
    except Blocked as problem:
        report.blocked(problem)
        if on_blocked is not None:
            on_blocked(problem)
        outcome = Outcome(problem.retry)
    except KubeError as error:
        outcome = report.refused(error)
    except Exception as error:
        await report.failed(error)
        raise
    await report.send()
    return replace(outcome, blocked=report.is_blocked)


def _summary(status: Mapping[str, Any]) -> list[Any]:
    """What of the summary is worth an Event when it changes."""
    return [*(is_true(status, type) for type in SUMMARY), (get_condition(status, READY) or {}).get("reason")]


def read_spec(parse: Callable[[Object], T], obj: Object) -> T:
    """The spec of an object. Raises Blocked that names each field that is wrong."""
    try:
        return parse(obj)
    except ValidationError as error:
        problems = "; ".join(f"spec.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Blocked("InvalidSpec", problems) from None


def position(of: Position) -> dict[str, int]:
    """A position as a status has it."""
    return {"commitPosition": of.commit, "preparePosition": of.prepare}
