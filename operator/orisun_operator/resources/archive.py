"""The Job that archives a boundary's events, and the volume that it writes to. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..api import API_VERSION
from ..api.boundary import KIND, BoundarySpec
from .cluster import Cluster, Object
from .connection import connection
from .security import container_security, pod_security

#: The label that finds the Job's pods.
LABEL = "orisun.io/archive"
CONTAINER = COMPONENT = "archive"
_MOUNT, _POSTGRES_CA = "/archive", "/etc/orisun/postgres"


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


def claim(obj: Mapping[str, Any], spec: BoundarySpec) -> Object:
    """The claim that is made where the spec names none. It has no owner: the archive outlives its boundary."""
    wanted: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": spec.archive.size}},
    }
    if spec.archive.storage_class_name is not None:
        wanted["storageClassName"] = spec.archive.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(obj, spec),
            "namespace": obj["metadata"]["namespace"],
            "labels": {"app.kubernetes.io/name": "orisun", "app.kubernetes.io/component": COMPONENT},
        },
        "spec": wanted,
    }


def job(obj: Mapping[str, Any], spec: BoundarySpec, cluster: Cluster) -> Object:
    """The Job; it reaches PostgreSQL as the servers of the cluster do."""
    metadata = obj["metadata"]
    name = short(metadata["name"], f"-archive-{metadata['uid'][:5]}")
    labels = {**cluster.labels(COMPONENT), LABEL: name}
    postgres = connection(cluster)
    values = dict(postgres.values)
    volumes: list[Object] = [
        {"name": "archive", "persistentVolumeClaim": {"claimName": claim_name(obj, spec)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    mounts: list[Object] = [
        {"name": "archive", "mountPath": _MOUNT},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of its own
    ]
    if postgres.ca is not None:
        values["ORISUN_PG_SSLROOTCERT"] = f"{_POSTGRES_CA}/ca.crt"
        # of that Secret the authority alone: there may be a key in it
        items = [{"key": postgres.ca.key, "path": "ca.crt"}]
        secret = {"secretName": postgres.ca.name, "defaultMode": 0o444, "items": items}
        volumes.append({"name": "postgres-ca", "secret": secret})
        mounts.append({"name": "postgres-ca", "mountPath": _POSTGRES_CA, "readOnly": True})
    container: Object = {
        "name": CONTAINER,
        "image": cluster.image,
        "command": ["orisun", "archive"],
        "args": [
            spec.name,
            f"--schema={spec.pg_schema}",
            f"--output={_MOUNT}",
            f"--file={file_name(obj, spec)}",
            "--report=/dev/termination-log",
        ],
        "env": [
            *({"name": variable, "value": value} for variable, value in values.items()),
            *(
                {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
                for variable, (secret, key) in postgres.from_secret.items()
            ),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if cluster.pull_policy:
        container["imagePullPolicy"] = cluster.pull_policy
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": volumes,
    }
    scheduling = cluster.spec.scheduling
    for key, value in (
        ("imagePullSecrets", cluster.spec.image_pull_secrets),
        ("tolerations", scheduling.tolerations),
        ("nodeSelector", scheduling.node_selector),
    ):
        if value:
            pod[key] = value
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": False}],
        },
        "spec": {"backoffLimit": 3, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
