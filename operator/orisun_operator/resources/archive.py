"""The Job that archives a boundary's events, and the volume that it writes to. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..api import API_VERSION
from ..api.boundary import KIND, BoundarySpec
from ..api.cluster import ClusterSpec

#: The label that finds the Job's pods.
LABEL = "orisun.io/archive"
CONTAINER = "archive"
_MOUNT = "/archive"
#: The user of the images; the volume belongs to its group.
_USER = 10001


def short(name: str, ending: str, longest: int = 63) -> str:
    """``name`` and ``ending``, cut and told apart by a hash where it would be too long for a label."""
    if len(name) + len(ending) <= longest:
        return name + ending
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: longest - len(ending) - 9].rstrip('-.')}-{digest}{ending}"


def claim_name(obj: Mapping[str, Any], spec: BoundarySpec) -> str:
    """The PersistentVolumeClaim that the archive is written to."""
    return spec.archive.claim_name or short(obj["metadata"]["name"], "-archive")


def file_name(obj: Mapping[str, Any], spec: BoundarySpec) -> str:
    """The archive's file: the boundary, and which resource of that name it was of."""
    return f"{spec.name}-{obj['metadata']['uid'][:8]}.jsonl.gz"


def claim(obj: Mapping[str, Any], spec: BoundarySpec) -> dict[str, Any]:
    """The claim that is made where the spec names none. It has no owner: the archive outlives its boundary."""
    wanted: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(spec.archive.size)}},
    }
    if spec.archive.storage_class_name is not None:
        wanted["storageClassName"] = spec.archive.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(obj, spec),
            "namespace": obj["metadata"]["namespace"],
            "labels": {"app.kubernetes.io/name": "orisun", "app.kubernetes.io/component": "archive"},
        },
        "spec": wanted,
    }


def job(
    obj: Mapping[str, Any],
    spec: BoundarySpec,
    cluster: ClusterSpec,
    *,
    image: str,
    env: list[dict[str, Any]],
    files: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The Job. ``env`` says where PostgreSQL is; ``files`` is a volume for what it names, mounted at /etc/orisun/pg."""
    metadata = obj["metadata"]
    name = short(metadata["name"], f"-archive-{metadata['uid'][:5]}")
    labels = {
        "app.kubernetes.io/name": "orisun",
        "app.kubernetes.io/component": "archive",
        LABEL: name,
    }
    volumes: list[dict[str, Any]] = [
        {"name": "archive", "persistentVolumeClaim": {"claimName": claim_name(obj, spec)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "archive", "mountPath": _MOUNT},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of its own
    ]
    if files is not None:
        volumes.append({"name": "pg", **files})
        mounts.append({"name": "pg", "mountPath": "/etc/orisun/pg", "readOnly": True})
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "command": ["python", "-m", "orisun", "archive"],
        "args": [
            spec.name,
            f"--schema={spec.pg_schema}",
            f"--output={_MOUNT}",
            f"--file={file_name(obj, spec)}",
            "--report=/dev/termination-log",
        ],
        "env": env,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    if cluster.image_pull_policy:
        container["imagePullPolicy"] = cluster.image_pull_policy
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if cluster.image_pull_secrets:
        pod["imagePullSecrets"] = cluster.image_pull_secrets
    if cluster.scheduling.tolerations:
        pod["tolerations"] = cluster.scheduling.tolerations
    if cluster.scheduling.node_selector:
        pod["nodeSelector"] = cluster.scheduling.node_selector
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": {"backoffLimit": 3, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
