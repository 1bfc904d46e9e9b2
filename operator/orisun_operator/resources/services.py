"""Services of a cluster, and what else stands around its pods."""

from __future__ import annotations

from ..api.cluster import Service
from .cluster import ADMIN_PORT, GRPC_PORT, MONITOR_PORT, NATS_PORT, POSTGRES_PORT, ROUTE_PORT, Cluster, Object


def headless(cluster: Cluster) -> Object:
    """Stable names of the pods, also while they are not ready: NATS servers find each other by it."""
    ports = (("grpc", GRPC_PORT), ("admin", ADMIN_PORT), ("nats", NATS_PORT), ("routes", ROUTE_PORT))
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": cluster.metadata(cluster.headless),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": cluster.selector(),
            "ports": [
                *(_port(name, port) for name, port in ports),
                _port("monitor", MONITOR_PORT),
            ],
        },
    }


def client(cluster: Cluster) -> Object:
    """Where clients connect: gRPC on every ready server."""
    service: Service = cluster.spec.grpc.service
    port = _port("grpc", GRPC_PORT)
    if service.node_port is not None and service.type != "ClusterIP":
        port["nodePort"] = service.node_port
    spec: Object = {"type": service.type, "selector": cluster.selector(), "ports": [{**port, "appProtocol": "grpc"}]}
    if service.load_balancer_class is not None and service.type == "LoadBalancer":
        spec["loadBalancerClass"] = service.load_balancer_class
    metadata = cluster.metadata(cluster.name)
    if service.annotations:
        metadata["annotations"] = dict(service.annotations)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def admin(cluster: Cluster) -> Object:
    """The admin page; a session stays with one server."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": cluster.metadata(cluster.admin_service),
        "spec": {
            "type": "ClusterIP",
            "sessionAffinity": "ClientIP",
            "selector": cluster.selector(),
            "ports": [_port("admin", ADMIN_PORT)],
        },
    }


def service_account(cluster: Cluster) -> Object:
    """Without rights and without a token in the pods."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": cluster.metadata(cluster.name),
        "automountServiceAccountToken": False,
    }


def disruption_budget(cluster: Cluster) -> Object | None:
    """None for a single server: a budget would keep its node from ever being drained.

    Never so many that a majority could go, of the servers, also while the cluster grows or shrinks, or of the copies of
    a stream, which may all be on those that go.
    """
    budget = cluster.spec.pod_disruption_budget
    if max(cluster.spec.replicas, cluster.pods) < 2 or not budget.enabled:
        return None
    fewest = min(cluster.spec.replicas, cluster.pods or cluster.spec.replicas, cluster.spec.stream_replicas)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": cluster.metadata(cluster.name),
        "spec": {
            "maxUnavailable": max(1, min(budget.max_unavailable, (fewest - 1) // 2)),
            # a server that hangs must not keep a node from being drained
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": cluster.selector()},
        },
    }


def network_policies(cluster: Cluster) -> list[Object]:
    """Who may reach what: clients gRPC and the admin page, the operator and the pods themselves the rest."""
    if not cluster.spec.network_policy.enabled:
        return []
    pods: Object = {"podSelector": {"matchLabels": cluster.selector()}}
    operator: Object = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.operator_namespace}}
    }
    clients: Object = {"ports": [_allowed(GRPC_PORT), _allowed(ADMIN_PORT)]}
    if cluster.spec.network_policy.client_peers:
        clients["from"] = [*cluster.spec.network_policy.client_peers, operator]
    policies = [
        _policy(
            cluster,
            "server",
            cluster.name,
            [
                clients,
                {"from": [pods], "ports": [_allowed(ROUTE_PORT)]},
                {"from": [operator], "ports": [_allowed(NATS_PORT), _allowed(MONITOR_PORT)]},
            ],
        )
    ]
    if cluster.spec.postgres.embedded is not None:
        archives: Object = {"podSelector": {"matchLabels": cluster.selector("archive")}}
        rule: Object = {"from": [pods, archives, operator], "ports": [_allowed(POSTGRES_PORT)]}
        policies.append(_policy(cluster, "postgres", cluster.postgres, [rule]))
    return policies


def pod_monitor(cluster: Cluster) -> Object | None:
    """For the Prometheus operator."""
    monitor = cluster.spec.monitoring.pod_monitor
    if not monitor.enabled:
        return None
    metadata = cluster.metadata(cluster.name)
    metadata["labels"] = {**monitor.labels, **metadata["labels"]}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": cluster.selector()},
            "podMetricsEndpoints": [
                {
                    "port": "admin",
                    "path": "/metrics",
                    "interval": monitor.interval,
                    "scheme": cluster.web_scheme.lower(),
                    # pods are asked by address, which no certificate names
                    **({"tlsConfig": {"insecureSkipVerify": True}} if cluster.spec.tls.enabled else {}),
                }
            ],
        },
    }


def _policy(cluster: Cluster, component: str, name: str, ingress: list[Object]) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": cluster.metadata(name, component),
        "spec": {
            "podSelector": {"matchLabels": cluster.selector(component)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _port(name: str, port: int) -> Object:
    return {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}


def _allowed(port: int) -> Object:
    return {"port": port, "protocol": "TCP"}
