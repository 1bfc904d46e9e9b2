"""The StatefulSet in force: what servers are made from until what the spec wants may take its place.

It is remembered in a ConfigMap beside the StatefulSet, so that one that was deleted comes back as it was. Whoever may
write ConfigMaps may not make pods by that: the memory counts only with the operator's seal. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from ..api import PREFIX
from ..drift import APPLIED_ANNOTATION
from .cluster import INCARNATION_ANNOTATION, STREAMS_ANNOTATION, TEMPLATE_ANNOTATION, Cluster, Object

_KEY, _SEAL = "statefulset.json", "seal"


def name_of(cluster: str) -> str:
    """Of the ConfigMap."""
    return f"{cluster}-applied"


def memory(cluster: Cluster, statefulset: Object, key: bytes) -> Object:
    """The ConfigMap that remembers a StatefulSet; ``key`` is the secret that it is sealed with."""
    text = json.dumps(_content(statefulset), sort_keys=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": cluster.metadata(name_of(cluster.name)),
        "data": {_KEY: text, _SEAL: _seal(cluster.uid, text, key)},
    }


def in_force(
    memory: Mapping[str, Any] | None, live: Mapping[str, Any] | None, *, uid: str, key: bytes
) -> Object | None:
    """The annotations and spec of the StatefulSet in force; None before there has been one.

    What is remembered of the OrisunCluster with that uid counts while it is what servers are made from, and bears the
    seal of ``key``. An older operator remembered nothing, or without a seal.
    """
    remembered = _read(memory, uid, key)
    if live is None or (remembered is not None and template_of(remembered) == template_of(live)):
        return remembered
    return _content(live)


def restored(cluster: Cluster, content: Object) -> Object:
    """The StatefulSet of in_force's answer: what and whose it is follows from the cluster alone."""
    metadata = cluster.metadata(cluster.name, **content["metadata"])
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": content["spec"]}


def asking(statefulset: Object, replicas: int) -> Object:
    """The StatefulSet with so many pods."""
    return {**statefulset, "spec": {**statefulset["spec"], "replicas": replicas}}


def template_of(statefulset: Mapping[str, Any]) -> str:
    """Of ``pods.template_hash``; "" where there is none."""
    return _on_pods(statefulset, TEMPLATE_ANNOTATION)


def streams_of(statefulset: Mapping[str, Any]) -> str:
    """Which JetStream cluster its pods are made for."""
    return _on_pods(statefulset, STREAMS_ANNOTATION)


def is_clustered(statefulset: Mapping[str, Any]) -> bool:
    """Whether its NATS servers form a cluster."""
    return streams_of(statefulset).startswith("cluster-")


def incarnation_of(statefulset: Mapping[str, Any] | None) -> str:
    """Of its JetStream cluster, as KIND-NUMBER; "" where it is not known."""
    metadata = (statefulset or {}).get("metadata") or {}
    return str((metadata.get("annotations") or {}).get(INCARNATION_ANNOTATION) or "")


def number_of(incarnation: str) -> int:
    """Which beginning of JetStream it is, from 1."""
    number = incarnation.rpartition("-")[2]
    return int(number) if number.isdigit() else 1


def reachable(cluster: Cluster, statefulset: Object) -> int:
    """Servers that a StatefulSet can lead to: one of several is made otherwise than a single one, so they wait."""
    if cluster.spec.hibernate:
        return 0
    clustered = is_clustered(statefulset)
    if clustered == cluster.spec.clustered:
        return cluster.spec.replicas
    return cluster.pods or (3 if clustered else 1)


def _on_pods(statefulset: Mapping[str, Any], annotation: str) -> str:
    return str((statefulset["spec"]["template"]["metadata"].get("annotations") or {}).get(annotation) or "")


def _content(statefulset: Mapping[str, Any]) -> Object:
    """What is kept of a StatefulSet: our annotations, and its spec."""
    annotations: Mapping[str, str] = statefulset["metadata"].get("annotations") or {}
    ours = {key: text for key, text in annotations.items() if key.startswith(PREFIX) and key != APPLIED_ANNOTATION}
    return {"metadata": {"annotations": ours}, "spec": statefulset["spec"]}


def _seal(uid: str, text: str, key: bytes) -> str:
    """Of one OrisunCluster: a memory of another, or of one of its name before it, is none."""
    return hmac.new(key, f"{uid}\0{text}".encode(), hashlib.sha256).hexdigest()


def _read(memory: Mapping[str, Any] | None, uid: str, key: bytes) -> Object | None:
    """What the ConfigMap has; None when somebody has made something else of it."""
    data: Mapping[str, str] = (memory or {}).get("data") or {}
    text, seal = data.get(_KEY, ""), data.get(_SEAL, "")
    if not key or not hmac.compare_digest(_seal(uid, text, key).encode(), seal.encode()):
        return None
    return _content(json.loads(text))
