"""The StatefulSet in force: what servers are made from until what the spec wants may take its place.

It is remembered in a ConfigMap beside the StatefulSet, so that one that was deleted comes back as it was. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..api import PREFIX
from ..drift import APPLIED_ANNOTATION
from .cluster import INCARNATION_ANNOTATION, STREAMS_ANNOTATION, TEMPLATE_ANNOTATION, Cluster, Object

_KEY = "statefulset.json"


def name_of(cluster: str) -> str:
    """Of the ConfigMap."""
    return f"{cluster}-applied"


def memory(cluster: Cluster, statefulset: Object) -> Object:
    """The ConfigMap that remembers a StatefulSet."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": cluster.metadata(name_of(cluster.name)),
        "data": {_KEY: json.dumps(statefulset, sort_keys=True)},
    }


def in_force(memory: Mapping[str, Any] | None, live: Mapping[str, Any] | None) -> Object | None:
    """The StatefulSet in force, from what is remembered and what is; None before there has been one.

    What is remembered counts while it is what servers are made from. An older operator remembered nothing.
    """
    remembered = _read(memory)
    if live is None or (remembered is not None and template_of(remembered) == template_of(live)):
        return remembered
    metadata = live["metadata"]
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    ours = {key: text for key, text in annotations.items() if key.startswith(PREFIX) and key != APPLIED_ANNOTATION}
    kept = {key: metadata[key] for key in ("name", "namespace", "labels", "ownerReferences") if key in metadata}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {**kept, "annotations": ours},
        "spec": live["spec"],
    }


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


def _read(memory: Mapping[str, Any] | None) -> Object | None:
    """What the ConfigMap has; None when somebody has made something else of it."""
    try:
        found: Object = json.loads(((memory or {}).get("data") or {})[_KEY])
        template_of(found)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return found
