"""Conditions of a status, as Kubernetes has them (meta/v1 Condition): Ready, Reconciling, Stalled and those of a kind.

The names follow the kstatus convention, which Argo CD, Flux and ``kubectl wait`` read.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Truth = Literal["True", "False", "Unknown"]

READY, RECONCILING, STALLED = "Ready", "Reconciling", "Stalled"
SUMMARY = (READY, RECONCILING, STALLED)
#: Conditions that are True when something is wrong; all others are when all is well.
_ABNORMAL = frozenset({"Drifted", "BlockedByTransaction"})
#: meta/v1 allows 32768; a status should stay readable.
_LONGEST_MESSAGE = 2000


def timestamp(moment: datetime.datetime | None = None) -> str:
    """A moment (now by default) as Kubernetes writes it: UTC, whole seconds."""
    moment = moment or datetime.datetime.now(datetime.UTC)
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def set_condition(  # noqa: PLR0917 - the fields of a condition, in their usual order
    status: dict[str, Any],
    type: str,
    value: Truth | bool,
    reason: str,
    message: str,
    generation: int,
    *,
    now: datetime.datetime | None = None,
) -> bool:
    """Set the condition of that type in ``status["conditions"]``; the answer is whether its truth changed.

    ``lastTransitionTime`` stays as long as the truth does, so that a repeated reconcile writes nothing. ``reason`` is
    one CamelCase word; ``message`` says to a person what to do; ``generation`` is the spec's that was looked at.
    """
    truth: Truth = value if isinstance(value, str) else ("True" if value else "False")
    conditions: list[dict[str, Any]] = status.setdefault("conditions", [])
    before = get_condition(status, type)
    changed = before is None or before.get("status") != truth
    condition = {
        "type": type,
        "status": truth,
        "reason": reason,
        "message": message[:_LONGEST_MESSAGE],
        "observedGeneration": generation,
        "lastTransitionTime": timestamp(now) if before is None or changed else before["lastTransitionTime"],
    }
    if before is None:
        conditions.append(condition)
    else:
        conditions[conditions.index(before)] = condition
    return changed


def get_condition(status: Mapping[str, Any], type: str) -> dict[str, Any] | None:
    """The condition of that type, or None."""
    for condition in status.get("conditions") or ():
        if condition.get("type") == type:
            found: dict[str, Any] = condition
            return found
    return None


def is_true(status: Mapping[str, Any], type: str) -> bool:
    """Whether the condition of that type is there and True."""
    return (get_condition(status, type) or {}).get("status") == "True"


def age_of(status: Mapping[str, Any], type: str, now: datetime.datetime) -> float:
    """Seconds since the status of that condition changed, up to one too many; 0 when there is no such condition."""
    condition = get_condition(status, type)
    if condition is None:
        return 0.0
    return (
        now - datetime.datetime.fromisoformat(condition["lastTransitionTime"].replace("Z", "+00:00"))
    ).total_seconds()


def remove_condition(status: dict[str, Any], type: str) -> None:
    """Take the condition away, where it says nothing any more (Drifted without drift, say)."""
    status["conditions"] = [c for c in status.get("conditions") or [] if c.get("type") != type]


def summarize(
    status: dict[str, Any],
    generation: int,
    *,
    ready: bool,
    reconciling: bool,
    stalled: bool,
    reason: str,
    message: str,
    now: datetime.datetime | None = None,
) -> None:
    """Set Ready, Reconciling and Stalled together and ``observedGeneration``.

    Ready is True and the others False when all is done; Stalled means that a person has to do something (the message
    says what); Reconciling that waiting is enough.
    """
    set_condition(status, READY, ready, reason, message, generation, now=now)
    set_condition(
        status,
        RECONCILING,
        reconciling,
        reason if reconciling else "Settled",
        message if reconciling else "nothing is under way",
        generation,
        now=now,
    )
    set_condition(
        status,
        STALLED,
        stalled,
        reason if stalled else "NotStalled",
        message if stalled else "nothing stands in the way",
        generation,
        now=now,
    )
    status["observedGeneration"] = generation


class Transition(NamedTuple):
    """A condition whose truth has changed, in words; ``worse`` when something went wrong with it."""

    reason: str
    message: str
    worse: bool


def transitions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Transition]:
    """Of all conditions but the summary's. One that is there for the first time counts when something is wrong alone:
    what begins is not available, and has no tables yet.
    """
    found: list[Transition] = []
    known = {one["type"]: one for one in before.get("conditions") or ()}
    there = {one["type"]: one for one in after.get("conditions") or ()}
    for type in dict.fromkeys([*known, *there]):
        abnormal = type in _ABNORMAL
        was = known.get(type, {}).get("status", "False" if abnormal else None)
        now = there.get(type) or {"status": "False", "reason": f"{type}Over", "message": "it is over"}
        if type not in SUMMARY and was is not None and was != now["status"]:
            text = f"{type} is {now['status']}: {now['message']}"
            found.append(Transition(now["reason"], text, (now["status"] == "True") == abnormal))
    return found
