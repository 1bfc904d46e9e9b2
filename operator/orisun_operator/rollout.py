"""What to do next with the pods of a cluster: one step at a time, decided from what is. Pure.

The rules: a pod is replaced only while all others serve and their copies of the streams are current; a pod that does
not serve anyway is replaced first; while a replaced pod does not become ready nothing else is touched. So a bad image
stops at its first pod, and taking the change back heals that pod. A pod whose NATS server has stopped writing is made
anew, since nothing else mends that, but not again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

#: Seconds that a server may be unready without being taken for one that does not serve.
_MOMENT = 30.0
#: Seconds after which a pod may be made anew once more because its NATS server has stopped writing.
RESTART_AGAIN = 3600.0


@dataclass(frozen=True)
class Pod:
    """A pod of the StatefulSet. ``template`` and ``streams`` are what it was made from."""

    ordinal: int
    name: str
    uid: str
    template: str
    streams: str
    ready: bool
    terminating: bool = False
    #: Why it is not ready, as far as the kubelet or the scheduler says.
    problem: str = ""
    #: Seconds that it has not been ready, and since it should have ended.
    unready: float = 0.0
    overdue: float = 0.0
    ip: str = ""
    #: Of the StatefulSet, when the pod was made.
    revision: str = ""


@dataclass(frozen=True)
class View:
    """What is, and what is wanted."""

    #: Pods by the spec (0 while hibernating), and by the StatefulSet.
    wanted: int
    asked: int
    pods: Sequence[Pod]
    #: Of the StatefulSet in force.
    template: str
    streams: str
    #: Why JetStream is not as it should be; "" when it is.
    jetstream: str = ""
    #: Seconds that this has lasted.
    ill: float = 0.0
    #: Pods whose NATS server has a problem, and those of them that have stopped writing until they are started again.
    ailing: Sequence[str] = ()
    stopped: Sequence[str] = ()
    #: Seconds since pods were made anew for that, while it counts.
    restarted: Mapping[str, float] = field(default_factory=dict)
    #: Member of JetStream's cluster that is gone and still has to leave it; "" for none.
    leaving: str = ""
    #: Seconds that any member has been leaving.
    leaving_for: float = 0.0
    #: Why the schema does not fit yet; "" when it does.
    schema: str = ""
    #: Whether the spec wants another template than the one in force, which has to wait for the schema.
    waits: bool = False
    #: Of the StatefulSet now; "" while it is not known.
    revision: str = ""
    on_delete: bool = False
    #: Seconds that a replaced pod may take, and whatever else is waited for.
    timeout: float = 300.0

    @property
    def rebuilding(self) -> bool:
        """Whether JetStream begins anew, so that old and new servers do not find together."""
        return any(pod.streams != self.streams for pod in self.pods)


class Action(Enum):
    NOTHING = "Nothing"
    WAIT = "Wait"
    SCALE = "Scale"
    REPLACE = "Replace"


@dataclass(frozen=True)
class Step:
    """``replicas`` is for SCALE, ``pod`` for REPLACE; ``reason`` and ``message`` are for the conditions."""

    action: Action
    reason: str
    message: str
    replicas: int = 0
    pod: Pod | None = None
    stalled: bool = False


#: Where JetStream's new beginning after a lost majority has found no leader either.
LEADERLESS = Step(
    Action.WAIT,
    "JetStreamLeaderless",
    "JetStream has begun anew, and has had no leader for five minutes again; subscriptions read PostgreSQL. See "
    "whether the NATS servers reach each other (port 6222, NetworkPolicies, DNS), and kubectl logs POD -c nats",
    stalled=True,
)


def next_step(view: View) -> Step:
    """The one next thing to do."""
    if view.wanted == 0:
        return _hibernate(view)
    if view.asked == 0:
        return _scale(view, view.wanted, "Starting", f"starting {servers(view.wanted)}")
    if late := [pod for pod in view.pods if pod.overdue > view.timeout]:
        return _overdue(view, late)
    ending = any(pod.terminating for pod in view.pods)
    last_serves = any(pod.ready for pod in view.pods if pod.ordinal == view.asked - 1)
    if view.asked > view.wanted > 1 and not ending and not view.leaving and not last_serves:
        # one that does not serve, and may never, is not waited for; but its NATS server may be well, and counts in
        # JetStream's majority until it has left: several gone at once would leave the others without one
        return _scale(view, view.asked - 1, "Shrinking", f"shrinking from {view.asked} to {servers(view.asked - 1)}")
    outdated = [pod for pod in view.pods if pod.ordinal < view.asked and not _is_current(view, pod)]
    current = [pod for pod in view.pods if pod.ordinal < view.asked and _is_current(view, pod)]
    unready = [pod for pod in current if not pod.ready]
    # a first start of all pods at once is no rollout
    if unready and (outdated or len(current) == view.asked):
        return _await(view, unready)
    if view.leaving:
        message = f"{view.leaving}, which is gone, leaves JetStream's cluster"
        hint = "most of its servers have to be well for that; see kubectl logs POD -c nats"
        return _patient(view, view.leaving_for, "RemovingPeers", message, hint)
    broken = [pod for pod in outdated if not pod.ready and not pod.terminating]
    if len(view.pods) < view.asked or ending:
        gone = view.asked - sum(not pod.terminating for pod in view.pods)
        leaving = [pod.name for pod in view.pods if pod.terminating]
        what = f"{', '.join(leaving)} to end"
        if not leaving:
            # quotas and admission keep pods away without a word in any status
            what = f"{servers(max(gone, 1))} to be made; if that lasts, kubectl describe statefulset says why"
        return Step(Action.WAIT, "AwaitingPods", f"waiting for {what}")
    if broken and not view.on_delete:
        pod = broken[-1]
        return _replace(view, pod, f"{pod.name} does not serve ({pod.problem or 'not ready'}) and is made anew")
    if (stopped := _restartable(view)) is not None:
        return _restart(stopped)
    if view.asked != view.wanted:
        return _resize(view, outdated)
    if outdated:
        return _roll(view, outdated)
    if view.waits:
        return _schema(view)
    return Step(Action.NOTHING, "Ready", f"{servers(view.wanted)} {'serves' if view.wanted == 1 else 'serve'}")


def stale_peers(
    cluster: str, peers: Sequence[str], names: dict[int, str], pods: Sequence[Pod], asked: int
) -> list[str]:
    """Members of JetStream's cluster that no pod will ever be again.

    ``peers`` are their names, ``POD-suffix``; ``names`` the names that running pods answer with. A member is stale when
    its ordinal is beyond the StatefulSet and its pod gone, or when its pod answers with another name (a lost volume).
    """
    there = {pod.ordinal for pod in pods}
    stale = []
    for peer in peers:
        ordinal = _ordinal(cluster, peer)
        if ordinal is None:
            continue
        removed = ordinal >= asked and ordinal not in there
        if removed or names.get(ordinal, peer) != peer:
            stale.append(peer)
    return stale


def _ordinal(cluster: str, peer: str) -> int | None:
    rest = peer.removeprefix(f"{cluster}-")
    number = rest.partition("-")[0]
    return int(number) if rest != peer and number.isdigit() else None


def _is_current(view: View, pod: Pod) -> bool:
    """Whether the pod is as the spec wants it.

    A newer operator may render the same spec otherwise, which restarts nothing that serves; a pod that does not serve,
    and not just for a moment, may as well have it.
    """
    rendered_anew = view.revision and pod.revision and pod.revision != view.revision
    return pod.template == view.template and (pod.unready < _MOMENT or not rendered_anew)


def _restartable(view: View) -> Pod | None:
    """A pod that may be made anew for its NATS server's sake: once in a while, and while the others are current.

    Not the only one, which serves as it is, nor where a person deletes pods, nor one whose successor might have to
    wait: for the schema, a Secret, PostgreSQL.
    """
    held = view.asked == 1 or view.on_delete or view.rebuilding or view.schema or view.waits
    if held or view.ill <= _MOMENT or set(view.ailing) - set(view.stopped):
        return None
    late = (pod for pod in reversed(view.pods) if pod.name in view.stopped)
    return next((pod for pod in late if view.restarted.get(pod.name, RESTART_AGAIN) >= RESTART_AGAIN), None)


def _restart(pod: Pod) -> Step:
    message = f"{pod.name} is made anew: after a failed write its NATS server has stopped writing, until it restarts"
    return Step(Action.REPLACE, "RestartingNats", message, pod=pod)


def _hibernate(view: View) -> Step:
    if view.asked:
        return _scale(view, 0, "Hibernating", "stopping all servers")
    if late := [pod for pod in view.pods if pod.overdue > view.timeout]:
        return _overdue(view, late)
    if view.pods:
        return Step(Action.WAIT, "Hibernating", f"waiting for {', '.join(pod.name for pod in view.pods)} to end")
    return Step(Action.NOTHING, "Hibernated", "no server runs; volumes and data are kept")


def _await(view: View, unready: Sequence[Pod]) -> Step:
    oldest = max(unready, key=lambda pod: pod.unready)
    why = "; ".join(f"{pod.name}: {pod.problem or 'starting'}" for pod in unready)
    if oldest.unready > view.timeout:
        return Step(
            Action.WAIT,
            "PodsNotReady",
            f"not ready after {view.timeout:.0f} s: {why}. Nothing else is changed until that is mended;"
            f" see kubectl logs {oldest.name} --all-containers, or take the last change of the spec back",
            stalled=True,
        )
    return Step(Action.WAIT, "AwaitingPods", f"waiting for {why}")


def _overdue(view: View, late: Sequence[Pod]) -> Step:
    names = " ".join(pod.name for pod in late)
    message = f"{names}: should have ended more than {view.timeout:.0f} s ago, which a dead node never says"
    hint = f"once nothing of it runs for certain: kubectl delete pod {names} --grace-period=0 --force"
    return Step(Action.WAIT, "PodsNotEnding", f"{message}; {hint}", stalled=True)


def _patient(view: View, lasted: float, reason: str, message: str, hint: str) -> Step:
    """Wait, and call somebody when it lasts too long."""
    if lasted <= view.timeout:
        return Step(Action.WAIT, reason, message)
    return Step(Action.WAIT, reason, f"{message}. That has lasted {view.timeout:.0f} s: {hint}", stalled=True)


def _resize(view: View, outdated: Sequence[Pod]) -> Step:
    if view.asked < view.wanted and view.rebuilding:
        return _scale(view, view.wanted, "Growing", f"growing to {servers(view.wanted)}; the streams begin anew")
    if view.wanted == 1 and outdated:
        # the one that stays first, so that somebody serves all the time
        first = next((pod for pod in outdated if pod.ordinal == 0), None)
        if first is not None:
            return _gated(
                view, _replace(view, first, f"{first.name} is made anew; the streams begin anew"), schema=True
            )
        return _scale(view, 1, "Shrinking", "shrinking to one server; the streams begin anew")
    target = view.asked + 1 if view.asked < view.wanted else view.asked - 1
    word = "Growing" if target > view.asked else "Shrinking"
    step = _scale(view, target, word, f"{word.lower()} from {view.asked} to {servers(target)}, {view.wanted} wanted")
    return _gated(view, step)


def _roll(view: View, outdated: Sequence[Pod]) -> Step:
    if view.on_delete:
        names = ", ".join(pod.name for pod in outdated)
        return Step(
            Action.NOTHING, "AwaitingDeletion", f"updateStrategy is OnDelete: delete {names} to have the change there"
        )
    pod = outdated[-1]
    left = f"{len(outdated)} of {view.wanted} to go"
    return _gated(view, _replace(view, pod, f"{pod.name} is made anew as the spec wants it, {left}"), schema=True)


def _gated(view: View, step: Step, *, schema: bool = False) -> Step:
    """The step, or what it waits for."""
    others = [pod for pod in view.pods if not pod.ready and (step.pod is None or pod.uid != step.pod.uid)]
    if others:
        return _await(view, others)
    if view.jetstream and not view.rebuilding:
        message = f"before the next change of a pod: {view.jetstream}"
        hint = "see kubectl logs POD -c nats, and whether its volume is full"
        return _patient(view, view.ill, "AwaitingJetStream", message, hint)
    if schema and view.schema:
        return _schema(view)
    return step


def _schema(view: View) -> Step:
    return Step(Action.WAIT, "AwaitingSchema", f"before a pod is changed: {view.schema}")


def _scale(view: View, replicas: int, reason: str, message: str) -> Step:
    return Step(Action.SCALE, reason, message, replicas=replicas)


def _replace(view: View, pod: Pod, message: str) -> Step:
    return Step(Action.REPLACE, "RollingOut", message, pod=pod)


def servers(count: int) -> str:
    """For a sentence."""
    return "one server" if count == 1 else f"{count} servers"
