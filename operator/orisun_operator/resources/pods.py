"""The pods of the servers, and the StatefulSet that makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from orisun_server.setting_types import default_schema
from orisun_server.settings import Settings

from ..api.cluster import Pool, Storage
from ..drift import quantity as parse_quantity
from . import nats
from .cluster import ADMIN_PORT, GRPC_PORT, STREAMS_ANNOTATION, TEMPLATE_ANNOTATION, Cluster, Object
from .connection import connection
from .security import container_security, pod_security

#: Seconds between being asked to stop and stopping, for load balancers to notice; then what calls get; then the rest.
_NOTICE, _DRAIN, _GRACE = 3, 30, 60
_TLS, _CLIENT_CA, _POSTGRES_CA = "/etc/orisun/tls", "/etc/orisun/client-ca", "/etc/orisun/postgres"
#: Of the volume; what is left is for JetStream's own files and the events that arrive while it trims.
_STORE_SHARE = 0.75
#: Parts of the spec that the pods are made from; a change of another one restarts nothing.
_OF_PODS = {
    "image_pull_secrets",
    "postgres",
    "admin",
    "tls",
    "grpc",
    "nats",
    "resources",
    "scheduling",
    "env",
    "pod_template",
}
#: And of those, what Services, Certificates and volumes are made from.
_NOT_OF_PODS: dict[str, Any] = {
    "grpc": {"service"},
    "tls": {"issuer_ref", "dns_names", "duration", "renew_before"},
    "nats": {"storage": {"size", "storage_class_name"}},
    "postgres": {"embedded"},
}

#: Variables that the operator sets; spec.env must leave them alone (the CRD says so too).
OWN_PREFIXES = ("ORISUN_PG_", "ORISUN_NATS_", "ORISUN_ADMIN_", "ORISUN_GRPC_TLS_")


def template_hash(cluster: Cluster, digests: Mapping[str, str]) -> str:
    """What the pods are made from, as 16 hex digits: two equal ones mean that no pod has to be replaced.

    From the spec and the images, not from the rendered template: a newer operator that renders it otherwise restarts
    nothing, and a field that it adds changes nothing while it has its default. ``digests`` are those of the Secrets
    whose contents servers read at their start.
    """
    spec = cluster.spec.model_dump(include=_OF_PODS, exclude=_NOT_OF_PODS, exclude_defaults=True, by_alias=True)
    state = {
        "spec": _without_empty(spec),
        "images": [cluster.image, cluster.nats_image],
        "pull": cluster.pull_policy,
        "clustered": cluster.spec.clustered,
        "incarnation": cluster.incarnation,
        "streams": cluster.spec.stream_replicas,
        "postgres": cluster.spec.postgres.mode,
        "ephemeral": cluster.spec.nats.storage.ephemeral,
        "digests": dict(digests),
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def _without_empty(spec: Object) -> Object:
    """A part of the spec of which nothing matters here is as good as one that is not there."""
    kept = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in spec.items()}
    return {key: value for key, value in kept.items() if value not in ({}, [], None)}


def statefulset(cluster: Cluster) -> Object:
    """The StatefulSet. Pods are replaced by the operator alone (OnDelete), which looks at JetStream too."""
    storage = cluster.spec.nats.storage
    spec: Object = {
        "replicas": cluster.pods,
        "serviceName": cluster.headless,
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": cluster.selector()},
        # JetStream's files are nobody's only copy; hibernation keeps them, so scaling down does it by hand
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "template": _template(cluster),
    }
    if not storage.ephemeral:
        spec["volumeClaimTemplates"] = [claim("jetstream", storage)]
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": cluster.metadata(cluster.name, annotations=dict(cluster.annotations)),
        "spec": spec,
    }


def claim(name: str, storage: Storage) -> Object:
    """A volume claim template."""
    spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage.size}}}
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {**spec, "volumeMode": "Filesystem"},
    }


def _template(cluster: Cluster) -> Object:
    spec = cluster.spec
    scheduling = spec.scheduling
    pod: Object = {
        "serviceAccountName": cluster.name,
        "automountServiceAccountToken": False,
        # variables for a Service called "orisun" would be taken for settings
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE,
        "securityContext": pod_security(),
        "containers": [_server(cluster), nats.container(cluster)],
        "volumes": _volumes(cluster),
        "affinity": scheduling.affinity if scheduling.affinity is not None else _apart(cluster),
    }
    for key, value in (
        ("imagePullSecrets", spec.image_pull_secrets),
        ("topologySpreadConstraints", scheduling.topology_spread_constraints),
        ("tolerations", scheduling.tolerations),
        ("nodeSelector", scheduling.node_selector),
        ("priorityClassName", scheduling.priority_class_name),
    ):
        if value:
            pod[key] = value
    return {
        "metadata": {
            "labels": {**spec.pod_template.labels, **cluster.labels()},
            "annotations": {
                **spec.pod_template.annotations,
                "kubectl.kubernetes.io/default-container": "server",
                TEMPLATE_ANNOTATION: cluster.template,
                STREAMS_ANNOTATION: cluster.streams,
            },
        },
        "spec": pod,
    }


def _server(cluster: Cluster) -> Object:
    spec = cluster.spec
    # there from the server's first moment; while it waits for PostgreSQL or its schema it lives and is not ready
    lives: Object = {"httpGet": {"path": "/healthz", "port": "admin", "scheme": cluster.web_scheme}}
    # the kubelet's gRPC probe knows no TLS
    serves: Object = {"grpc": {"port": GRPC_PORT}}
    if spec.tls.enabled:
        serves = {"httpGet": {"path": "/readyz", "port": "admin", "scheme": cluster.web_scheme}}
    mounts: list[Object] = [
        {"name": "shared", "mountPath": nats.SHARED},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of its own
    ]
    if spec.tls.enabled:
        mounts.append({"name": "tls", "mountPath": _TLS, "readOnly": True})
    if spec.tls.client_auth is not None:
        mounts.append({"name": "client-ca", "mountPath": _CLIENT_CA, "readOnly": True})
    if connection(cluster).ca is not None:
        mounts.append({"name": "postgres-ca", "mountPath": _POSTGRES_CA, "readOnly": True})
    made: Object = {
        "name": "server",
        "image": cluster.image,
        "command": ["orisun", "serve"],
        "env": environment(cluster),
        "ports": [
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        "startupProbe": {**lives, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 120},
        "readinessProbe": {**serves, "periodSeconds": 2, "timeoutSeconds": 3, "failureThreshold": 2},
        "livenessProbe": {**lives, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_NOTICE)]}}},
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if cluster.pull_policy:
        made["imagePullPolicy"] = cluster.pull_policy
    if spec.resources:
        made["resources"] = spec.resources
    return made


def environment(cluster: Cluster) -> list[Object]:
    """Variables of the server's container."""
    spec = cluster.spec
    admin = spec.admin.boundary
    values: dict[str, str] = {
        "ORISUN_GRPC_HOST": "0.0.0.0",  # noqa: S104 - a pod
        "ORISUN_GRPC_PORT": str(GRPC_PORT),
        "ORISUN_ADMIN_PORT": str(ADMIN_PORT),
        "ORISUN_GRPC_ENABLE_REFLECTION": str(spec.grpc.reflection).lower(),
        "ORISUN_ADMIN_BOUNDARY": admin,
        # every other boundary comes from the catalog
        "ORISUN_BOUNDARIES": json.dumps([{"name": admin, "description": "The servers' own events"}]),
        "ORISUN_PG_SCHEMAS": f"{admin}:{default_schema(admin)}",
        "ORISUN_SCHEMA_MIGRATIONS": "verify",
        "ORISUN_ADMIN_PASSWORD_ENFORCED": "true",
        "ORISUN_DRAINED_FILE": nats.DRAINED_FILE,
        "ORISUN_SHUTDOWN_GRACE": f"{_DRAIN}s",
        "ORISUN_LOGGING_FORMAT": "json",
        "ORISUN_NATS_EVENT_STREAM_REPLICAS": str(spec.stream_replicas),
        "ORISUN_NATS_MAX_STORE": str(int(bytes_of(spec.nats.storage.size) * _STORE_SHARE)),
    }
    limits = spec.nats.jetstream
    values |= _given("ORISUN_NATS_EVENT_STREAM_MAX_", age=limits.max_age, bytes=limits.max_bytes, msgs=limits.max_msgs)
    for name in ("write", "read", "admin"):
        pool: Pool = getattr(spec.postgres.pools, name)
        values |= _given(
            f"ORISUN_PG_{name.upper()}_",
            max_open_conns=pool.max_open,
            max_idle_conns=_idle(name, pool),
            conn_max_idle_time=pool.max_idle_time,
            conn_max_lifetime=pool.max_lifetime,
        )
    if spec.tls.enabled:
        values |= {
            "ORISUN_GRPC_TLS_ENABLED": "true",
            "ORISUN_GRPC_TLS_CERT_FILE": f"{_TLS}/tls.crt",
            "ORISUN_GRPC_TLS_KEY_FILE": f"{_TLS}/tls.key",
        }
        if spec.tls.client_auth is not None:
            values["ORISUN_GRPC_TLS_CA_FILE"] = f"{_CLIENT_CA}/ca.crt"
            values["ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED"] = str(spec.tls.client_auth.required).lower()
    postgres = connection(cluster)
    values |= postgres.values
    if postgres.ca is not None:
        values["ORISUN_PG_SSLROOTCERT"] = f"{_POSTGRES_CA}/ca.crt"
    keys = spec.admin.secret_ref
    from_secrets = {
        **postgres.from_secret,
        "ORISUN_NATS_URL": (cluster.nats_secret, nats.URL),
        "ORISUN_ADMIN_USERNAME": (cluster.admin_secret, keys.username_key if keys else "username"),
        "ORISUN_ADMIN_PASSWORD": (cluster.admin_secret, keys.password_key if keys else "password"),
    }
    # of two of one name the API server would refuse the whole StatefulSet
    theirs = {variable["name"] for variable in spec.env}
    return [
        *({"name": name, "value": value} for name, value in values.items() if name not in theirs),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
            for name, (secret, key) in from_secrets.items()
        ),
        *spec.env,
    ]


def _idle(name: str, pool: Pool) -> int | None:
    """Idle connections to keep, of which the server takes no more than there may be connections."""
    if pool.max_idle is None:
        return None
    most: int = pool.max_open or Settings.model_fields[f"pg_{name}_max_open_conns"].default
    return min(pool.max_idle, most)


def _given(prefix: str, **values: object) -> dict[str, str]:
    return {prefix + key.upper(): str(value) for key, value in values.items() if value is not None}


def _volumes(cluster: Cluster) -> list[Object]:
    spec = cluster.spec
    volumes: list[Object] = [
        {"name": "shared", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        *nats.volumes(cluster),
    ]
    if spec.nats.storage.ephemeral:
        volumes.append({"name": "jetstream", "emptyDir": {"sizeLimit": spec.nats.storage.size}})
    if spec.tls.enabled:
        volumes.append(
            {"name": "tls", "secret": {"secretName": cluster.tls_secret, "defaultMode": 0o440, "items": _TLS_FILES}}
        )
    if spec.tls.client_auth is not None:
        reference = spec.tls.client_auth.ca_secret_ref
        volumes.append(_one_file("client-ca", reference.name, reference.key))
    if (authority := connection(cluster).ca) is not None:
        volumes.append(_one_file("postgres-ca", authority.name, authority.key))
    return volumes


_TLS_FILES = [{"key": key, "path": key} for key in ("tls.crt", "tls.key")]


def _one_file(volume: str, secret: str, key: str) -> Object:
    items = [{"key": key, "path": "ca.crt"}]
    return {"name": volume, "secret": {"secretName": secret, "defaultMode": 0o444, "items": items}}


def _apart(cluster: Cluster) -> Object:
    """On different nodes where there are enough."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": cluster.selector()}}
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def bytes_of(quantity: str) -> int:
    """A Kubernetes quantity of bytes, such as 2Gi. Raises ValueError."""
    value = parse_quantity(quantity)
    if value is None:
        raise ValueError(f"{quantity!r} is no quantity such as 2Gi")
    return int(value)
