"""The embedded PostgreSQL of a cluster that is for trying things out: one pod, one volume."""

from __future__ import annotations

import base64
import hashlib
import json

from .cluster import PASSWORD_ANNOTATION, POSTGRES_PORT, TEMPLATE_ANNOTATION, Cluster, Object
from .pods import claim
from .security import container_security, pod_security

_COMPONENT = "postgres"
_DATABASE, _USER = "orisun", "orisun"


def secret(cluster: Cluster, password: str) -> Object:
    """How to get in, for the servers and the operator."""
    data = {
        "username": _USER,
        "password": password,
        "host": f"{cluster.postgres}.{cluster.namespace}.svc",
        "port": str(POSTGRES_PORT),
        "database": _DATABASE,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": cluster.metadata(cluster.postgres, _COMPONENT),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def service(cluster: Cluster) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": cluster.metadata(cluster.postgres, _COMPONENT),
        "spec": {
            "clusterIP": "None",
            "selector": cluster.selector(_COMPONENT),
            "ports": [{"name": "postgres", "port": POSTGRES_PORT, "targetPort": "postgres", "protocol": "TCP"}],
        },
    }


def claim_name(cluster: Cluster) -> str:
    """The volume claim with the events."""
    return f"data-{cluster.postgres}-0"


def template_hash(cluster: Cluster, image: str) -> str:
    """What the pod is made from, as 16 hex digits; see ``pods.template_hash``."""
    embedded, spec = cluster.spec.postgres.embedded, cluster.spec
    scheduling = spec.scheduling.model_dump(include={"tolerations", "node_selector", "priority_class_name"})
    state = [image, embedded and embedded.resources, embedded and embedded.storage.ephemeral, scheduling]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def statefulset(cluster: Cluster, image: str, password: str) -> Object:
    """One pod of PostgreSQL. ``image`` is the one that it was created with: a rollout of servers leaves it alone.

    ``password`` is the fingerprint of the Secret's.
    """
    embedded = cluster.spec.postgres.embedded
    if embedded is None:
        raise ValueError("the cluster has no embedded PostgreSQL")
    alive: Object = {"tcpSocket": {"port": "postgres"}, "timeoutSeconds": 3}
    container: Object = {
        "name": "postgres",
        "image": image,
        "command": ["python", "-m", "orisun_server.embedded.standalone"],
        "env": [
            {"name": "ORISUN_DATA_DIR", "value": "/var/lib/orisun/data"},
            {"name": "ORISUN_PG_HOST", "value": "0.0.0.0"},  # noqa: S104 - a pod
            {"name": "ORISUN_LOGGING_FORMAT", "value": "json"},
            *(
                {"name": f"ORISUN_PG_{name}", "valueFrom": {"secretKeyRef": {"name": cluster.postgres, "key": key}}}
                for name, key in (
                    ("PORT", "port"),
                    ("NAME", "database"),
                    ("USER", "username"),
                    ("PASSWORD", "password"),
                )
            ),
        ],
        "ports": [{"name": "postgres", "containerPort": POSTGRES_PORT, "protocol": "TCP"}],
        # recovery after a crash may take minutes
        "startupProbe": {**alive, "periodSeconds": 1, "failureThreshold": 600},
        "readinessProbe": {**alive, "periodSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {**alive, "periodSeconds": 10, "failureThreshold": 6},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "data", "mountPath": "/var/lib/orisun/data"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of its own
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - PostgreSQL's shared memory
        ],
    }
    if cluster.pull_policy:
        container["imagePullPolicy"] = cluster.pull_policy
    if embedded.resources:
        container["resources"] = embedded.resources
    pod: Object = {
        "serviceAccountName": cluster.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 90,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
        ],
    }
    scheduling = cluster.spec.scheduling
    for key, value in (
        ("imagePullSecrets", cluster.spec.image_pull_secrets),
        ("tolerations", scheduling.tolerations),
        ("nodeSelector", scheduling.node_selector),
        ("priorityClassName", scheduling.priority_class_name),
    ):
        if value:
            pod[key] = value
    spec: Object = {
        "replicas": 0 if cluster.spec.hibernate else 1,
        "serviceName": cluster.postgres,
        # by the operator, when the spec has changed: another rendering of the same spec restarts nothing
        "updateStrategy": {"type": "OnDelete"},
        "selector": {"matchLabels": cluster.selector(_COMPONENT)},
        # the events: deleting the StatefulSet by hand must not take them; see Children.own_claim for the resource
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "template": {
            "metadata": {
                "labels": cluster.labels(_COMPONENT),
                "annotations": {TEMPLATE_ANNOTATION: template_hash(cluster, image), PASSWORD_ANNOTATION: password},
            },
            "spec": pod,
        },
    }
    if embedded.storage.ephemeral:
        pod["volumes"].append({"name": "data", "emptyDir": {"sizeLimit": embedded.storage.size}})
    else:
        spec["volumeClaimTemplates"] = [claim("data", embedded.storage)]
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": cluster.metadata(cluster.postgres, _COMPONENT),
        "spec": spec,
    }
