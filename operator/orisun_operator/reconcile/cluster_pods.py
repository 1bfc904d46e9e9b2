"""The pods and volume claims of a cluster, as Kubernetes has them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..kube import Kube, Object, Ref
from ..resources.cluster import STREAMS_ANNOTATION, TEMPLATE_ANNOTATION, Cluster
from ..rollout import Pod

_LONGEST = 160


class Claim(NamedTuple):
    """A volume claim of a StatefulSet's pod; ``size`` is what its template asks for now."""

    ref: Ref
    ordinal: int
    size: str


async def pods_of(kube: Kube, cluster: Cluster, now: datetime.datetime) -> list[Pod]:
    """The pods of the StatefulSet, by ordinal."""
    found = await kube.list("v1", "Pod", cluster.namespace, cluster.selector())
    pods = [
        _pod(obj, int(ordinal), now)
        for obj in found
        if (ordinal := obj["metadata"]["name"].removeprefix(f"{cluster.name}-")).isdigit()
        and obj.get("status", {}).get("phase") not in ("Failed", "Succeeded")
    ]
    return sorted(pods, key=lambda pod: pod.ordinal)


def revision_of(statefulset: Object | None) -> str:
    """The revision that new pods of a StatefulSet get; "" while its controller has not looked at it."""
    status = (statefulset or {}).get("status") or {}
    seen = statefulset is not None and status.get("observedGeneration") == statefulset["metadata"].get("generation")
    return str(status.get("updateRevision") or "") if seen else ""


async def claims_of(kube: Kube, statefulset: Object) -> list[Claim]:
    """The claims that a StatefulSet's templates have led to."""
    metadata, spec = statefulset["metadata"], statefulset["spec"]
    claims = []
    found = await kube.list("v1", "PersistentVolumeClaim", metadata["namespace"], spec["selector"]["matchLabels"])
    for template in spec.get("volumeClaimTemplates") or ():
        prefix = f"{template['metadata']['name']}-{metadata['name']}-"
        size = template["spec"]["resources"]["requests"]["storage"]
        for obj in found:
            ordinal = obj["metadata"]["name"].removeprefix(prefix)
            if ordinal.isdigit():
                claims.append(Claim(Ref.of(obj), int(ordinal), size))
    return claims


def _pod(obj: Object, ordinal: int, now: datetime.datetime) -> Pod:
    metadata, status = obj["metadata"], obj.get("status") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    told: Mapping[str, str] = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
    ready = told.get("status") == "True"
    unready = _since(told.get("lastTransitionTime") or metadata["creationTimestamp"], now)
    return Pod(
        ordinal=ordinal,
        name=metadata["name"],
        uid=metadata["uid"],
        template=annotations.get(TEMPLATE_ANNOTATION, ""),
        streams=annotations.get(STREAMS_ANNOTATION, ""),
        ready=ready,
        terminating="deletionTimestamp" in metadata,
        problem="" if ready else problem_of(status),
        unready=0.0 if ready else unready,
        overdue=_since(metadata.get("deletionTimestamp"), now),
        ip=status.get("podIP") or "",
        revision=(metadata.get("labels") or {}).get("controller-revision-hash", ""),
    )


def _since(moment: str | None, now: datetime.datetime) -> float:
    """Seconds; 0 for what is to come, or never was."""
    if not moment:
        return 0.0
    return max(0.0, (now - datetime.datetime.fromisoformat(moment.replace("Z", "+00:00"))).total_seconds())


def problem_of(status: Mapping[str, Any]) -> str:
    """Why a pod is not ready, in the words of whoever knows."""
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state = container.get("state") or {}
        if (waiting := state.get("waiting")) and waiting.get("reason") not in (None, "ContainerCreating"):
            message = f": {_short(waiting['message'])}" if waiting.get("message") else ""
            return f"container {container['name']} {waiting['reason']}{message}"
        if (ended := state.get("terminated")) is not None:
            return f"container {container['name']} ended with {ended.get('exitCode')} {ended.get('reason', '')}".strip()
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] != "True" and condition.get("message"):
            return f"not scheduled: {_short(condition['message'])}"
    unready = [c["name"] for c in status.get("containerStatuses") or () if not c.get("ready")]
    return f"container {', '.join(unready)} is not ready yet" if unready else ""


def _short(message: str) -> str:
    """The beginning of it: a condition has several pods to tell about."""
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
