"""A PostgreSQL that takes nobody without TLS, with Service, Secrets and certificate as CloudNativePG makes them.

Its operator is not there: its objects are made by hand in the same shape, and its host names are resolved here.
"""

from __future__ import annotations

import base64
import datetime
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from orisun_operator.api import API_VERSION
from orisun_operator.certificates import Issued, issue, make_authority
from orisun_operator.kube import Kube, Object, Ref
from orisun_operator.reconcile import boundary as boundaries
from orisun_server import environment
from orisun_server.embedded.process import run
from orisun_server.embedded.standalone import StandalonePostgres
from orisun_server.settings import Settings
from tests.harness import Connection, eventually, free_port
from tests.integration.test_subscriptions_wire import Boundary
from tests.operator.clusters import NAME, Stage
from tests.operator.stores import condition

MakeServer = Callable[..., Awaitable[Connection]]
_PASSWORD = "of-the-application"


class _Postgres(StandalonePostgres):
    """With a certificate; ``hostssl`` alone is let in."""

    certificate: Issued

    async def _configure(self) -> None:
        self._configuration |= {"fsync": "off", "ssl": "on"}
        await super()._configure()
        files = {
            "server.crt": self.certificate.certificate.decode(),
            "server.key": self.certificate.key.decode(),
            "pg_hba.conf": "local all all trust\nhostssl all all all scram-sha-256\n",
        }
        for name, text in files.items():
            write = 'umask 077; printf %s "$2" > "$1"'
            await run(["/bin/sh", "-ec", write, "sh", str(self.data / name), text], self.log_file, self._account)


@dataclass(frozen=True)
class Native:
    """A Cluster of CloudNativePG, called events, in ``namespace``."""

    postgres: _Postgres
    authority: Issued
    port: int
    namespace: str

    def app_secret(self, password: str = _PASSWORD) -> Object:
        host, port = f"events-rw.{self.namespace}", str(self.port)
        values = {
            "username": "app",
            "user": "app",
            "password": password,
            "dbname": "app",
            "host": "events-rw",
            "port": port,
            "uri": f"postgresql://app:{password}@{host}:{port}/app",
            "pgpass": f"events-rw:{port}:app:app:{password}\n",
        }
        return _secret(self.namespace, "events-app", values, "kubernetes.io/basic-auth")

    def objects(self) -> list[Object]:
        authority = {"ca.crt": self.authority.certificate.decode(), "ca.key": self.authority.key.decode()}
        metadata = {"name": "events-rw", "namespace": self.namespace}
        ports = [{"name": "postgres", "port": self.port, "targetPort": 5432}]
        service = {"selector": {"cnpg.io/cluster": "events", "cnpg.io/instanceRole": "primary"}, "ports": ports}
        return [
            self.app_secret(),
            _secret(self.namespace, "events-ca", authority),
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        ]

    async def sql(self, query: str) -> list[asyncpg.Record]:
        """As its superuser, by its socket."""
        connection = await self.postgres._connect("app")
        try:
            found: list[asyncpg.Record] = await connection.fetch(query)
            return found
        finally:
            await connection.close()


def _secret(namespace: str, name: str, data: dict[str, str], type: str = "Opaque") -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": type, "stringData": data}


def _binaries() -> Path:
    """Of a PostgreSQL that was built with TLS, which the embedded one is not; skips where there is none."""
    places = [os.environ.get("ORISUN_TEST_PG_BIN", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which("postgres", path=os.pathsep.join([*places, os.environ.get("PATH", "")]))
    if found is None or b"SSL_CTX_new" not in Path(found).read_bytes():
        pytest.skip("no PostgreSQL with TLS in ORISUN_TEST_PG_BIN or PATH: CloudNativePG's shape is NOT TESTED")
    return Path(found).resolve().parent


@pytest.fixture
async def native(data_dir: Path, namespace: str) -> AsyncIterator[Native]:
    now, port = datetime.datetime.now(datetime.UTC), free_port()
    authority = make_authority("events", now)
    names = ["events-rw", f"events-rw.{namespace}", f"events-rw.{namespace}.svc"]
    postgres = _Postgres(
        data_dir / "postgres",
        host="127.0.0.1",
        port=port,
        user="app",
        password=_PASSWORD,
        database="app",
        binaries=_binaries(),
    )
    postgres.certificate = issue(authority, names, datetime.timedelta(days=1), now)
    postgres._port = port
    await postgres.start()
    yield Native(postgres, authority, port, namespace)
    await postgres.stop()


@pytest.fixture(autouse=True)
def names(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name service of a Kubernetes cluster: that Service's names lead here."""
    ask = socket.getaddrinfo

    def answer(host: Any, *arguments: Any, **more: Any) -> Any:
        ours = host in ("events-rw", f"events-rw.{namespace}.svc")
        return ask("127.0.0.1" if ours else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


async def _settings_of_pods(stage: Stage, tmp_path: Path) -> Settings:
    """What a server reads from the variables and files of its container, as the kubelet would make them."""
    pod = (await stage.statefulset())["spec"]["template"]["spec"]
    container = next(one for one in pod["containers"] if one["name"] == "server")

    async def key(secret: str, name: str) -> str:
        found = await stage.get("v1", "Secret", secret)
        assert found is not None
        return base64.b64decode(found["data"][name]).decode()

    values = {}
    for variable in container["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        values[variable["name"]] = await key(reference["name"], reference["key"]) if reference else variable["value"]
    for volume in pod["volumes"]:
        if volume["name"] == "postgres-ca":
            (item,) = volume["secret"]["items"]
            (mount,) = (one["mountPath"] for one in container["volumeMounts"] if one["name"] == "postgres-ca")
            file = tmp_path / item["path"]
            file.write_text(await key(volume["secret"]["secretName"], item["key"]))
            assert values["ORISUN_PG_SSLROOTCERT"] == f"{mount}/{item['path']}"
            values["ORISUN_PG_SSLROOTCERT"] = str(file)
    loaded = environment.load(values)
    assert not loaded.warnings
    ours = {name: getattr(stage.settings, name) for name in ("nats_url", "grpc_host", "grpc_port", "admin_port")}
    # the administrator's password is the cluster's own; tests have theirs
    ours |= {"drained_file": None, "nats_event_stream_replicas": 1, "admin_password": SecretStr("changeit")}
    return loaded.settings.model_copy(update={**ours, "admin_password_enforced": False, "otel_enabled": False})


async def test_a_store_on_it(kube: Kube, native: Native, stage: Stage, make_server: MakeServer, tmp_path: Path) -> None:
    await stage.create(replicas=1, postgres={"cloudNativePG": {"clusterName": "events"}}, admin={})
    await stage.reconcile()
    _, reason, message = await stage.condition("Ready")
    assert (reason, "events-app" in message) == ("SecretNotFound", True)
    for obj in native.objects():
        await kube.create(obj)
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    assert (await stage.status())["postgres"] == {"mode": "cloudNativePG", "secret": "events-app"}
    await _serves(native, stage, await make_server(await _settings_of_pods(stage, tmp_path)))

    # it renews the password
    before = await stage.pods()
    await native.sql("ALTER ROLE app PASSWORD 'renewed'")
    secret = native.app_secret("renewed")
    await kube.patch(Ref.of(secret), {"stringData": secret["stringData"]})
    await stage.settle()
    after = await stage.pods()
    assert after["store-0"]["metadata"]["uid"] != before["store-0"]["metadata"]["uid"]
    assert (await _settings_of_pods(stage, tmp_path)).pg_password.get_secret_value() == "renewed"


async def test_a_store_that_checks_its_certificate(
    kube: Kube, native: Native, stage: Stage, make_server: MakeServer, tmp_path: Path
) -> None:
    """As an external one, which the documents advise where that is wanted."""
    for obj in native.objects():
        await kube.create(obj)
    other = make_authority("other", datetime.datetime.now(datetime.UTC))
    await kube.create(_secret(stage.namespace, "other-ca", {"ca.crt": other.certificate.decode()}))
    external = {
        "host": "events-rw",
        "port": native.port,
        "database": "app",
        "sslMode": "verify-full",
        "credentialsSecretRef": {"name": "events-app"},
        "caSecretRef": {"name": "other-ca"},
    }
    await stage.create(replicas=1, postgres={"external": external}, admin={})
    await stage.reconcile()
    _, reason, message = await stage.condition("Ready")
    assert reason == "UntrustedCertificate"
    assert "unable to get local issuer certificate" in message
    assert "correct caSecretRef" in message
    await stage.patch(postgres={"external": {**external, "caSecretRef": {"name": "events-ca"}}})
    await stage.settle()
    assert (await stage.condition("Ready"))[0] == "True"
    await _serves(native, stage, await make_server(await _settings_of_pods(stage, tmp_path)))


async def _serves(native: Native, stage: Stage, server: Connection) -> None:
    """Events are stored, over TLS alone."""
    metadata = {"name": "orders", "namespace": stage.namespace}
    spec = {"clusterRef": {"name": NAME}}
    await stage.kube.create({"apiVersion": API_VERSION, "kind": "Boundary", "metadata": metadata, "spec": spec})
    boundary = Boundary(server, "orders")

    async def ready() -> bool:
        await boundaries.reconcile(stage.context, stage.namespace, "orders")
        found = await stage.get(API_VERSION, "Boundary", "orders")
        assert found is not None
        return condition(found["status"], "Ready")["status"] == "True"

    await eventually(ready, 30, 0.1)
    assert await boundary.append({"n": 1}) == (1, 0)
    used = await native.sql(
        "SELECT s.ssl FROM pg_stat_ssl AS s JOIN pg_stat_activity USING (pid) WHERE usename = 'app'"
    )
    assert len(used) > 1
    assert {one["ssl"] for one in used} == {True}
