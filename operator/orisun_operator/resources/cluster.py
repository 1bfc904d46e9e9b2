"""What every object of a cluster is made from: the spec, the names, the labels, who owns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..api import API_VERSION, PREFIX
from ..api.cluster import KIND, ClusterSpec

Object = dict[str, Any]

GRPC_PORT, ADMIN_PORT = 5005, 8991
NATS_PORT, ROUTE_PORT, MONITOR_PORT = 4222, 6222, 8222
POSTGRES_PORT = 5432
#: The user of the images; initdb wants it to have a name, which the image gives it.
USER_ID = 10001

#: On pods: the state of the spec that they were made from. It alone decides whether a pod is replaced.
TEMPLATE_ANNOTATION = f"{PREFIX}template"
#: On the embedded PostgreSQL's pod: fingerprint of the password that it gives its user at its start.
PASSWORD_ANNOTATION = f"{PREFIX}password"
#: On pods: which JetStream cluster they were made for.
STREAMS_ANNOTATION = f"{PREFIX}jetstream"
#: On the StatefulSet: the images that the cluster was created with, and its JetStream cluster's incarnation.
IMAGE_ANNOTATION, NATS_IMAGE_ANNOTATION = f"{PREFIX}default-image", f"{PREFIX}default-nats-image"
INCARNATION_ANNOTATION = f"{PREFIX}incarnation"


@dataclass(frozen=True)
class Cluster:
    """An OrisunCluster with what follows from its surroundings; the functions of this package take nothing else."""

    namespace: str
    name: str
    uid: str
    spec: ClusterSpec
    #: Resolved: what the spec names, else what the cluster was created with.
    image: str
    nats_image: str
    pull_policy: str = ""
    #: DNS domain of the Kubernetes cluster, and the namespace of the operator.
    domain: str = "cluster.local"
    operator_namespace: str = "orisun-system"
    #: Of ``pods.template_hash``.
    template: str = ""
    #: Pods that the StatefulSet has now; scaling goes there step by step.
    pods: int = 0
    #: Times that the JetStream cluster was begun anew (1 to n and back); each has a directory of its own.
    incarnation: int = 1
    #: Of the NATS credentials: servers with different ones cannot form a cluster.
    nats_digest: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def streams(self) -> str:
        """Which JetStream cluster a pod is made for."""
        kind = "cluster" if self.spec.clustered else "single"
        return f"{kind}-{self.incarnation}-{self.nats_digest[:8]}"

    # -- names -----------------------------------------------------------------------------------------------------

    @property
    def headless(self) -> str:
        return f"{self.name}-headless"

    @property
    def admin_service(self) -> str:
        return f"{self.name}-admin"

    @property
    def nats_config(self) -> str:
        return f"{self.name}-nats"

    @property
    def nats_secret(self) -> str:
        return nats_secret_of(self.name)

    @property
    def postgres(self) -> str:
        """Of the embedded PostgreSQL's StatefulSet, Service and Secret."""
        return f"{self.name}-postgres"

    @property
    def admin_secret(self) -> str:
        """The administrator's Secret: the spec's, or the generated one."""
        reference = self.spec.admin.secret_ref
        return reference.name if reference is not None else f"{self.name}-admin"

    @property
    def tls_secret(self) -> str:
        """The Secret with tls.crt and tls.key."""
        return self.spec.tls.secret_name or f"{self.name}-tls"

    def pod(self, ordinal: int) -> str:
        """Name of the pod with that ordinal."""
        return f"{self.name}-{ordinal}"

    def host(self, ordinal: int) -> str:
        """Stable DNS name of that pod."""
        return f"{self.pod(ordinal)}.{self.headless}.{self.namespace}.svc.{self.domain}"

    @property
    def grpc_host(self) -> str:
        return f"{self.name}.{self.namespace}.svc"

    @property
    def web_scheme(self) -> str:
        """Of the admin page, as probes write it."""
        return "HTTPS" if self.spec.tls.enabled else "HTTP"

    # -- metadata --------------------------------------------------------------------------------------------------

    def selector(self, component: str = "server") -> dict[str, str]:
        """Labels that never change: what Services and StatefulSets select by."""
        return {
            "app.kubernetes.io/name": "orisun",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": component,
        }

    def labels(self, component: str = "server") -> dict[str, str]:
        return {**self.selector(component), "app.kubernetes.io/managed-by": "orisun-operator"}

    def metadata(self, name: str, component: str = "server", **more: Any) -> Object:
        """Metadata of an object that goes with the OrisunCluster."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(component),
            "ownerReferences": [self.owner()],
            **more,
        }

    def owner(self) -> Object:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def nats_secret_of(cluster: str) -> str:
    """The Secret of a cluster's NATS servers."""
    return f"{cluster}-nats-auth"
