"""The spec of an OrisunCluster, typed. The CRD (crds/orisuncluster.yaml) has the same fields, documented for people.

The API server validates against the CRD first; this is the operator's reading of what it let through. Unknown fields
are kept out by the CRD and ignored here, so that an older operator can read a newer resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

KIND = "OrisunCluster"
ADMIN_BOUNDARY = "orisun_admin"

#: Kubernetes' own types, handed through as they are.
Raw = dict[str, Any]


class Model(BaseModel):
    """camelCase outside, snake_case inside; immutable."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )


class SecretRef(Model):
    """A Secret of the same namespace with a user name and a password."""

    name: str
    username_key: str = "username"
    password_key: str = "password"  # noqa: S105 - the name of a key


class KeyRef(Model):
    """One key of a Secret of the same namespace."""

    name: str
    key: str = "ca.crt"


class ExternalPostgres(Model):
    host: str
    port: int = 5432
    database: str = "orisun"
    ssl_mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    credentials_secret_ref: SecretRef
    ca_secret_ref: KeyRef | None = None


class CloudNativePostgres(Model):
    """A ``Cluster`` of CloudNativePG in the same namespace: its Service ``-rw`` and its Secret ``-app``."""

    cluster_name: str
    database: str = ""


class Storage(Model):
    size: str = "2Gi"
    storage_class_name: str | None = None
    #: An emptyDir, which goes with the pod.
    ephemeral: bool = False


class EmbeddedPostgres(Model):
    storage: Storage = Storage(size="1Gi")
    resources: Raw = Field(default_factory=dict)


class Pool(Model):
    """Connections of one pool of each server; unset leaves the server's default."""

    max_open: int | None = None
    max_idle: int | None = None
    max_idle_time: str | None = None
    max_lifetime: str | None = None


class Pools(Model):
    write: Pool = Pool()
    read: Pool = Pool()
    admin: Pool = Pool()


class Postgres(Model):
    """Exactly one of the first three."""

    external: ExternalPostgres | None = None
    cloud_native_pg: CloudNativePostgres | None = Field(default=None, alias="cloudNativePG")
    embedded: EmbeddedPostgres | None = None
    pools: Pools = Pools()

    @property
    def mode(self) -> str:
        """external, cloudNativePG or embedded."""
        return "embedded" if self.embedded else "external" if self.external else "cloudNativePG"


class Admin(Model):
    secret_ref: SecretRef | None = None
    boundary: str = ADMIN_BOUNDARY


class IssuerRef(Model):
    name: str
    kind: str = "Issuer"
    group: str = "cert-manager.io"


class ClientAuth(Model):
    required: bool = True
    ca_secret_ref: KeyRef


class Tls(Model):
    mode: Literal["none", "secret", "certManager", "operator"] = "none"
    secret_name: str = ""
    issuer_ref: IssuerRef | None = None
    dns_names: list[str] = Field(default_factory=list)
    duration: str = "2160h"
    renew_before: str = "720h"
    client_auth: ClientAuth | None = None

    @property
    def enabled(self) -> bool:
        return self.mode != "none"


class Service(Model):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    annotations: dict[str, str] = Field(default_factory=dict)
    node_port: int | None = None
    load_balancer_class: str | None = None


class Grpc(Model):
    reflection: bool = True
    service: Service = Service()


class JetStream(Model):
    """Limits of each boundary's stream; unset leaves the server's default."""

    max_age: str | None = None
    max_bytes: int | None = None
    max_msgs: int | None = None


class Nats(Model):
    image: str = ""
    resources: Raw = Field(default_factory=dict)
    jetstream: JetStream = JetStream()
    storage: Storage = Storage()
    stream_replicas: int | None = None


class Scheduling(Model):
    affinity: Raw | None = None
    topology_spread_constraints: list[Raw] | None = None
    tolerations: list[Raw] = Field(default_factory=list)
    node_selector: dict[str, str] = Field(default_factory=dict)
    priority_class_name: str = ""


class Disruption(Model):
    enabled: bool = True
    max_unavailable: int = 1


class UpdateStrategy(Model):
    #: RollingUpdate replaces pods one at a time, gated; OnDelete waits for a person to delete them.
    type: Literal["RollingUpdate", "OnDelete"] = "RollingUpdate"
    #: Seconds that a replaced pod may take until the rollout counts as stalled.
    pod_timeout_seconds: int = 300


class PodTemplate(Model):
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class PodMonitor(Model):
    enabled: bool = False
    interval: str = "30s"
    labels: dict[str, str] = Field(default_factory=dict)


class Monitoring(Model):
    pod_monitor: PodMonitor = PodMonitor()


class NetworkPolicy(Model):
    enabled: bool = True
    #: networking.k8s.io/v1 peers that may reach gRPC and the admin page; none for everybody.
    client_peers: list[Raw] = Field(default_factory=list, alias="from")


class ClusterSpec(Model):
    replicas: int = 3
    image: str = ""
    version: str = ""
    image_pull_policy: str = ""
    image_pull_secrets: list[Raw] = Field(default_factory=list)
    postgres: Postgres
    admin: Admin = Admin()
    tls: Tls = Tls()
    grpc: Grpc = Grpc()
    nats: Nats = Nats()
    resources: Raw = Field(default_factory=dict)
    scheduling: Scheduling = Scheduling()
    pod_disruption_budget: Disruption = Disruption()
    update_strategy: UpdateStrategy = UpdateStrategy()
    paused: bool = False
    hibernate: bool = False
    env: list[Raw] = Field(default_factory=list)
    pod_template: PodTemplate = PodTemplate()
    monitoring: Monitoring = Monitoring()
    network_policy: NetworkPolicy = NetworkPolicy()
    deletion_policy: Literal["Retain", "Delete"] = "Retain"

    @property
    def clustered(self) -> bool:
        """Whether NATS servers form a JetStream cluster."""
        return self.replicas > 1

    @property
    def stream_replicas(self) -> int:
        """Copies of each stream."""
        return min(self.nats.stream_replicas or (3 if self.replicas >= 3 else 1), self.replicas)


def read_spec(obj: Mapping[str, Any]) -> ClusterSpec:
    """The spec of an OrisunCluster as read from the API. Raises ValueError naming the field."""
    try:
        return ClusterSpec.model_validate(obj.get("spec") or {})
    except ValidationError as error:
        problems = [f"spec.{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise ValueError("; ".join(problems)) from None
