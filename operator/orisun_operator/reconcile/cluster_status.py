"""What the status of an OrisunCluster says about its servers and JetStream."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ..api.conditions import set_condition, timestamp
from ..jetstream import Health
from ..resources.cluster import Cluster
from ..rollout import RESTART_AGAIN, Pod, View
from .report import Report


def since(before: Mapping[str, Any], now: datetime.datetime, **states: bool) -> dict[str, str]:
    """Since when each state that holds now has held without a break, as far as the status before knows."""
    known = before.get("jetstream") or {}
    return {state: known.get(state) or timestamp(now) for state, holds in states.items() if holds}


def seconds(moments: Mapping[str, Any], state: str, now: datetime.datetime) -> float:
    """How long a state has held; 0 when it does not."""
    if not moments.get(state):
        return 0.0
    return (now - datetime.datetime.fromisoformat(moments[state].replace("Z", "+00:00"))).total_seconds()


def restarts(before: Mapping[str, Any], now: datetime.datetime) -> dict[str, str]:
    """When pods were made anew because their NATS servers had stopped writing, as long as that counts."""
    known = (before.get("jetstream") or {}).get("restarted") or {}
    return {pod: moment for pod, moment in known.items() if seconds(known, pod, now) < RESTART_AGAIN}


def is_leaderless(cluster: Cluster, there: Sequence[Pod], health: Health) -> bool:
    """Whether all servers are well, and their NATS servers cannot agree on a leader of JetStream's cluster."""
    ready = [pod for pod in there if pod.ready and not pod.terminating]
    is_whole = len(ready) == len(there) == len(health.names) == cluster.pods > 0
    return is_whole and not health.leader


def begun_anew(before: Mapping[str, Any], incarnation: str, health: Health) -> str:
    """The incarnation, when it was begun because the one before found no leader, and has found none so far; else ""."""
    begun = str((before.get("jetstream") or {}).get("begunAnew") or "")
    return "" if health.leader or begun != incarnation else begun


def tell_of_servers(
    report: Report, view: View, health: Health, *, template: str, incarnation: str, moments: Mapping[str, Any]
) -> None:
    """Figures and conditions, whatever else stands in the way; ``template`` is the one that the spec wants.

    ``moments`` is what else the next look has to know of JetStream.
    """
    status, generation, now = report.status, report.generation, report.context.clock()
    ready = [pod for pod in view.pods if pod.ready and not pod.terminating]
    status["replicas"], status["readyReplicas"] = len(view.pods), len(ready)
    status["updatedReplicas"] = sum(pod.template == template for pod in view.pods)
    state, message = "Healthy", "every server's copies of the streams are current"
    if not view.pods:
        state, message = "Off", "no server runs"
    elif view.rebuilding:
        state, message = "Rebuilding", "JetStream begins anew; subscriptions read PostgreSQL meanwhile"
    elif health.problem:
        state, message = "Degraded", health.problem
    status["jetstream"] = {
        "state": state,
        "incarnation": incarnation,
        **({"leader": health.leader, "peers": len(health.peers)} if health.leader and health.peers else {}),
        **moments,
    }
    set_condition(status, "JetStreamHealthy", state == "Healthy", state, message, generation, now=now)
    told = f"{len(ready)} of {view.wanted} servers serve" if ready else "no server serves"
    set_condition(status, "Available", bool(ready), "Serving" if ready else "NotServing", told, generation, now=now)
