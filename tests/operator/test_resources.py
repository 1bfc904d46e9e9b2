"""The objects of a cluster as pure functions of its spec."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from orisun_operator.api.boundary import BoundarySpec
from orisun_operator.api.cluster import ClusterSpec, read_spec
from orisun_operator.resources import archive, nats, pods, postgres, services
from orisun_operator.resources.cluster import Cluster, Object
from orisun_server import checks, environment

_EXTERNAL = {
    "external": {"host": "db.example", "port": 5433, "credentialsSecretRef": {"name": "db", "usernameKey": "u"}}
}


def _cluster(**spec: Any) -> Cluster:
    wanted = {"postgres": _EXTERNAL, **spec}
    return Cluster(
        "shop", "store", "uid", ClusterSpec.model_validate(wanted), "orisun:1", "orisun-nats:1", template="t", pods=3
    )


def _pod(cluster: Cluster) -> Object:
    spec: Object = pods.statefulset(cluster)["spec"]["template"]["spec"]
    return spec


def _env(cluster: Cluster) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in pods.environment(cluster)}


def _containers(cluster: Cluster) -> dict[str, Object]:
    return {container["name"]: container for container in _pod(cluster)["containers"]}


@pytest.mark.parametrize("make", [_pod, lambda c: postgres.statefulset(c, "orisun:1", "")["spec"]["template"]["spec"]])
def test_pods_pass_the_restricted_standard(make: Any) -> None:
    pod = make(_cluster(replicas=1, postgres={"embedded": {}}))
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["fsGroupChangePolicy"] == "OnRootMismatch"
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for volume in pod["volumes"]:
        assert "hostPath" not in volume


def test_no_password_stands_in_a_pod_or_a_config_map() -> None:
    passwords = {key: f"secret-{key}" for key in nats.PASSWORDS}
    cluster = _cluster()
    nats.auth_secret(cluster, passwords)
    text = json.dumps([pods.statefulset(cluster), nats.configuration(cluster)])
    assert "secret-" not in text


def test_the_server_accepts_every_variable_that_it_is_given() -> None:
    cluster = _cluster(
        tls={"mode": "secret", "secretName": "cert", "clientAuth": {"caSecretRef": {"name": "ca"}}},
        nats={"jetstream": {"maxAge": "1h", "maxBytes": 1000, "maxMsgs": -1}},
        postgres={**_EXTERNAL, "pools": {"write": {"maxOpen": 7, "maxIdleTime": "1m"}}},
    )
    values = {e["name"]: e.get("value", "value-of-a-secret") for e in pods.environment(cluster)}
    loaded = environment.load(values)
    assert not loaded.warnings
    settings = loaded.settings
    assert settings.schema_migrations == "verify"
    assert [b.name for b in settings.boundaries] == ["orisun_admin"]
    assert settings.admin_schema == "admin"
    assert settings.admin_password_enforced
    assert settings.grpc_tls_client_auth_required
    assert settings.stream_replicas == 3
    assert settings.nats_event_stream_max_age == 3600
    assert settings.nats_max_store == int(2 * 1024**3 * 0.75)
    assert (settings.pg_host, settings.pg_port, settings.pg_write_max_open_conns) == ("db.example", 5433, 7)
    assert not settings.embeds_postgres
    assert not settings.embeds_nats


def test_what_the_server_would_miss_are_the_files_of_its_pod_alone() -> None:
    authority = {"external": {**_EXTERNAL["external"], "sslMode": "verify-full", "caSecretRef": {"name": "ca"}}}
    tls = {"mode": "secret", "secretName": "cert", "clientAuth": {"caSecretRef": {"name": "ca"}}}
    cluster = _cluster(tls=tls, postgres=authority)
    values = {e["name"]: e.get("value", "value-of-a-secret") for e in pods.environment(cluster)}
    with pytest.raises(environment.SettingsError) as caught:
        environment.load(values, checks.of_server)
    files = {name for name in values if name.endswith(("_FILE", "ROOTCERT"))} - {"ORISUN_DRAINED_FILE"}
    assert {name for name, _ in caught.value.mistakes} == files
    assert len(files) == 4
    (server,) = (one for one in _pod(cluster)["containers"] if one["name"] == "server")
    mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
    assert {values[name].rpartition("/")[0] for name in files} <= mounts
    environment.load(
        {name: value for name, value in values.items() if "TLS" not in name and "SSL" not in name}, checks.of_server
    )


@pytest.mark.parametrize(
    ("pool", "kept"), [({"maxIdle": 60}, "50"), ({"maxIdle": 9, "maxOpen": 5}, "5"), ({"maxIdle": 9}, "9")]
)
def test_no_more_connections_are_kept_idle_than_there_may_be(pool: Object, kept: str) -> None:
    values = {
        e["name"]: e.get("value", "secret")
        for e in pods.environment(_cluster(postgres={**_EXTERNAL, "pools": {"read": pool}}))
    }
    assert values["ORISUN_PG_READ_MAX_IDLE_CONNS"] == kept
    environment.load(values, checks.of_server)


def test_credentials_come_from_the_secrets_that_the_spec_names() -> None:
    env = _env(_cluster(admin={"secretRef": {"name": "root", "passwordKey": "pw"}}))
    assert env["ORISUN_PG_USER"] == {"secretKeyRef": {"name": "db", "key": "u"}}
    assert env["ORISUN_ADMIN_PASSWORD"] == {"secretKeyRef": {"name": "root", "key": "pw"}}
    assert _env(_cluster())["ORISUN_ADMIN_PASSWORD"] == {"secretKeyRef": {"name": "store-admin", "key": "password"}}
    env = _env(_cluster(postgres={"cloudNativePG": {"clusterName": "pg"}}))
    assert env["ORISUN_PG_HOST"] == "pg-rw"
    assert env["ORISUN_PG_NAME"] == {"secretKeyRef": {"name": "pg-app", "key": "dbname"}}
    assert env["ORISUN_PG_PORT"] == {"secretKeyRef": {"name": "pg-app", "key": "port"}}
    assert env["ORISUN_PG_SSLMODE"] == "require"


def test_readiness_never_asks_for_the_quorum_of_jetstream() -> None:
    for container in _containers(_cluster()).values():
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = container[kind].get("httpGet", {"path": ""})
            assert (
                "healthz" not in get["path"] or container["name"] == "server" or "js-enabled-only=true" in get["path"]
            )
    assert _containers(_cluster())["server"]["readinessProbe"]["grpc"] == {"port": 5005}
    tls = _containers(_cluster(tls={"mode": "operator"}))["server"]["readinessProbe"]
    assert tls["httpGet"] == {"path": "/readyz", "port": "admin", "scheme": "HTTPS"}


def test_nats_waits_for_the_drain_within_the_grace_period() -> None:
    pod, containers = _pod(_cluster()), _containers(_cluster())
    stop = containers["nats"]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "grep -qs serving /run/orisun/state" in stop
    env = _env(_cluster())
    assert env["ORISUN_DRAINED_FILE"] == "/run/orisun/state"
    grace = int(env["ORISUN_SHUTDOWN_GRACE"].removesuffix("s"))
    assert grace < nats.DRAIN_PATIENCE < pod["terminationGracePeriodSeconds"]


def test_a_single_server_forms_no_cluster_and_has_no_budget() -> None:
    single, three = replace(_cluster(replicas=1), pods=1), _cluster(replicas=3)
    assert "cluster {" not in nats.configuration(single)["data"]["nats.conf"]
    assert services.disruption_budget(single) is None
    # while three still run
    assert services.disruption_budget(replace(single, pods=3)) is not None
    assert "cluster {" in nats.configuration(three)["data"]["nats.conf"]
    budget = services.disruption_budget(three)
    assert budget is not None
    assert budget["spec"]["maxUnavailable"] == 1
    assert services.disruption_budget(_cluster(podDisruptionBudget={"enabled": False})) is None
    assert (single.spec.stream_replicas, three.spec.stream_replicas) == (1, 3)
    assert nats.store_directory(single) != nats.store_directory(three)


def test_the_template_hash_changes_with_what_pods_are_made_from_alone() -> None:
    def hashed(**spec: Any) -> str:
        return pods.template_hash(_cluster(**spec), {"admin": "1"})

    base = hashed()
    same: list[dict[str, Any]] = [
        {"replicas": 5},
        {"paused": True},
        {"hibernate": True},
        {"deletionPolicy": "Delete"},
        {"podDisruptionBudget": {"maxUnavailable": 2}},
        {"networkPolicy": {"enabled": False}},
        {"monitoring": {"podMonitor": {"enabled": True}}},
        {"grpc": {"service": {"type": "LoadBalancer"}}},
        {"updateStrategy": {"type": "OnDelete"}},
        {"nats": {"storage": {"size": "9Gi"}}},
        {"tls": {"dnsNames": ["x"], "duration": "1h"}},
    ]
    for spec in same:
        assert hashed(**spec) == base, spec
    other: list[dict[str, Any]] = [
        {"replicas": 1},
        {"resources": {"limits": {"cpu": "1"}}},
        {"env": [{"name": "X", "value": "y"}]},
        {"podTemplate": {"annotations": {"a": "b"}}},
        {"tls": {"mode": "operator"}},
        {"nats": {"jetstream": {"maxAge": "1h"}}},
        {"nats": {"streamReplicas": 1}},
        {"scheduling": {"nodeSelector": {"a": "b"}}},
    ]
    hashes = [hashed(**spec) for spec in other]
    assert len({base, *hashes}) == len(other) + 1
    cluster = _cluster()
    assert pods.template_hash(replace(cluster, image="orisun:2"), {"admin": "1"}) != base
    assert pods.template_hash(cluster, {"admin": "2"}) != base
    # a rendering that says the same otherwise
    assert pods.template_hash(replace(cluster, domain="other.domain", operator_namespace="x"), {"admin": "1"}) == base


def test_what_an_operator_says_about_a_field_that_it_adds_changes_no_hash() -> None:
    full = ClusterSpec.model_validate({"postgres": _EXTERNAL}).model_dump(by_alias=True, exclude_none=True)
    spelled_out = replace(_cluster(), spec=ClusterSpec.model_validate(full))
    assert pods.template_hash(spelled_out, {}) == pods.template_hash(_cluster(), {})


def test_network_policies_keep_nats_and_postgres_to_the_cluster() -> None:
    server, database = services.network_policies(_cluster(replicas=1, postgres={"embedded": {}}))
    ports = {port["port"]: rule.get("from") for rule in server["spec"]["ingress"] for port in rule["ports"]}
    assert ports[5005] is None
    own = {"podSelector": {"matchLabels": _cluster().selector()}}
    assert ports[6222] == [own]
    assert all("podSelector" not in peer for peer in ports[4222])
    assert database["spec"]["ingress"][0]["from"][0] == own
    assert services.network_policies(_cluster(networkPolicy={"enabled": False})) == []
    limited = services.network_policies(_cluster(networkPolicy={"from": [{"podSelector": {}}]}))[0]
    assert {"podSelector": {}} in limited["spec"]["ingress"][0]["from"]


def test_services_select_the_servers_alone() -> None:
    cluster = _cluster()
    headless = services.headless(cluster)["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    for service in (headless, services.client(cluster)["spec"], services.admin(cluster)["spec"]):
        assert service["selector"]["app.kubernetes.io/component"] == "server"
    node_port = services.client(_cluster(grpc={"service": {"type": "NodePort", "nodePort": 30005}}))
    assert node_port["spec"]["ports"][0]["nodePort"] == 30005


def test_the_embedded_postgres_keeps_its_claim_unless_told_otherwise() -> None:
    cluster = _cluster(replicas=1, postgres={"embedded": {"storage": {"size": "3Gi", "storageClassName": "fast"}}})
    spec = postgres.statefulset(cluster, "orisun:1", "")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    claim = spec["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast"
    # somebody who deletes the StatefulSet has not asked for the events to go
    gone = _cluster(replicas=1, postgres={"embedded": {}}, deletionPolicy="Delete")
    policy = postgres.statefulset(gone, "orisun:1", "")["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert policy["whenDeleted"] == "Retain"


def test_the_budget_leaves_jetstream_its_majority() -> None:
    def allowed(replicas: int, pods: int, wanted: int, copies: int | None = None) -> int:
        copied = {"streamReplicas": copies} if copies else {}
        cluster = _cluster(replicas=replicas, podDisruptionBudget={"maxUnavailable": wanted}, nats=copied)
        budget = services.disruption_budget(replace(cluster, pods=pods))
        assert budget is not None
        return int(budget["spec"]["maxUnavailable"])

    assert allowed(3, 3, 2) == 1
    # two of five may be two of a stream's three
    assert allowed(5, 5, 2) == 1
    assert allowed(9, 9, 4) == 1
    assert allowed(5, 5, 2, copies=5) == 2
    assert allowed(9, 9, 4, copies=5) == 2
    assert allowed(5, 5, 4, copies=1) == 1
    # while it grows or shrinks
    assert allowed(5, 3, 2, copies=5) == 1
    assert allowed(3, 5, 2) == 1
    assert allowed(3, 0, 2) == 1


def test_a_variable_of_the_spec_stands_in_place_of_ours() -> None:
    """The API server refuses a list that has a name twice."""
    variables = pods.environment(_cluster(env=[{"name": "ORISUN_LOGGING_FORMAT", "value": "console"}]))
    assert [v["value"] for v in variables if v["name"] == "ORISUN_LOGGING_FORMAT"] == ["console"]
    assert len({v["name"] for v in variables}) == len(variables)


def test_an_archive_reads_the_authority_alone_of_its_secret() -> None:
    external = {**_EXTERNAL["external"], "sslMode": "verify-full", "caSecretRef": {"name": "db-ca", "key": "root.pem"}}
    spec = BoundarySpec.model_validate({"clusterRef": {"name": "store"}, "name": "orders", "schema": "orders"})
    obj = {"metadata": {"name": "orders", "namespace": "shop", "uid": "0" * 36}}
    pod = archive.job(obj, spec, _cluster(postgres={"external": external}))["spec"]["template"]["spec"]
    (volume,) = (one["secret"] for one in pod["volumes"] if one["name"] == "postgres-ca")
    assert volume["items"] == [{"key": "root.pem", "path": "ca.crt"}]
    variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert variables["ORISUN_PG_SSLROOTCERT"] == "/etc/orisun/postgres/ca.crt"


def test_archives_may_reach_the_embedded_postgres() -> None:
    cluster = _cluster(replicas=1, postgres={"embedded": {}})
    (policy,) = (one for one in services.network_policies(cluster) if one["metadata"]["name"] == cluster.postgres)
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": 5432, "protocol": "TCP"}]
    spec = BoundarySpec.model_validate({"clusterRef": {"name": "store"}, "name": "orders", "schema": "orders"})
    obj = {"metadata": {"name": "orders", "namespace": "shop", "uid": "0" * 36}}
    labels = archive.job(obj, spec, cluster)["spec"]["template"]["metadata"]["labels"]
    selectors = [one["podSelector"]["matchLabels"] for one in rule["from"] if "podSelector" in one]
    assert any(selector.items() <= labels.items() for selector in selectors)


def test_everything_belongs_to_the_resource() -> None:
    cluster = _cluster()
    monitor = services.pod_monitor(_cluster(monitoring={"podMonitor": {"enabled": True}}))
    assert monitor is not None
    for obj in (pods.statefulset(cluster), nats.configuration(cluster), services.client(cluster), monitor):
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("OrisunCluster", "uid", True)
        assert obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "orisun-operator"


def test_a_spec_that_cannot_be_read_names_its_field() -> None:
    with pytest.raises(ValueError, match=r"spec\.replicas: .*integer"):
        read_spec({"spec": {"replicas": "many", "postgres": _EXTERNAL}})


@pytest.mark.parametrize(("text", "bytes_"), [("2Gi", 2 * 1024**3), ("1.5G", 1_500_000_000), ("1024", 1024)])
def test_quantities(text: str, bytes_: int) -> None:
    assert pods.bytes_of(text) == bytes_
