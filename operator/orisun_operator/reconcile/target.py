"""Where the PostgreSQL of an OrisunCluster is and how to get in, from the spec and the Secrets that it names."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import SecretStr

from orisun_server.settings import Settings

from ..api.cluster import ClusterSpec, read_spec
from ..certificates import check_authorities
from ..kube import Kube, Ref
from . import Blocked

#: Seconds between looks at whether a cluster still hibernates.
_ASLEEP = 15.0
_POOLS: Mapping[str, int] = {
    f"pg_{pool}_{limit}": number
    for pool, most in (("write", 1), ("read", 2), ("admin", 4))
    for limit, number in (("max_open_conns", most), ("max_idle_conns", 1))
}


class Target(NamedTuple):
    """Where a PostgreSQL is and how to get in; ``ca`` is PEM, "" for none."""

    host: str
    port: int
    database: str
    user: str
    password: str
    sslmode: str
    ca: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes when anything does, and tells nobody the password."""
        return hashlib.sha256("\0".join(map(str, self)).encode()).hexdigest()

    def settings(self) -> Settings:
        """For ``Database.connect``."""
        return Settings(
            pg_host=self.host,
            pg_port=self.port,
            pg_name=self.database,
            pg_user=self.user,
            pg_password=SecretStr(self.password),
            pg_sslmode=self.sslmode,  # type: ignore[arg-type] # pydantic checks it
            pg_sslrootcert=self.ca,
            **_POOLS,  # type: ignore[arg-type]
        )


async def find_target(kube: Kube, cluster: Mapping[str, Any]) -> Target:
    """Where an OrisunCluster's PostgreSQL is, from its spec and its Secrets.

    external: host, port, database and sslMode of the spec, and a Secret with username and password.
    cloudNativePG: the Secret NAME-app and the Service NAME-rw, as CloudNativePG makes them.
    embedded: the Secret CLUSTER-postgres, which the operator makes.

    Raises Blocked (SecretNotFound, UnknownSecretKey, InvalidSecret, InvalidSpec, ClusterHibernates).
    """
    namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
    spec = spec_of(cluster)
    postgres = spec.postgres
    secrets = _Secrets(kube, namespace)
    if (external := postgres.external) is not None:
        reference, ca = external.credentials_secret_ref, ""
        secret = await secrets.get(reference.name, "spec.postgres.external.credentialsSecretRef")
        if (authority := external.ca_secret_ref) is not None:
            ca_secret = await secrets.get(authority.name, "spec.postgres.external.caSecretRef")
            ca = ca_secret.authorities(authority.key)
        return Target(
            _reachable(external.host, namespace),
            external.port,
            external.database,
            secret.value(reference.username_key),
            secret.value(reference.password_key),
            external.ssl_mode,
            ca,
        )
    if (native := postgres.cloud_native_pg) is not None:
        of = native.cluster_name
        secret = await secrets.get(f"{of}-app", "spec.postgres.cloudNativePG.clusterName", passing=True)
        return Target(
            _reachable(f"{of}-rw", namespace),
            secret.port(),
            native.database or secret.value("dbname"),
            secret.value("username"),
            secret.value("password"),
            "require",
        )
    if postgres.embedded is not None:
        if spec.hibernate:
            raise Blocked(
                "ClusterHibernates",
                f"OrisunCluster {namespace}/{name} hibernates, and its embedded PostgreSQL with it: set spec.hibernate"
                " to false",
                stalled=False,
                retry=_ASLEEP,
            )
        secret = await secrets.get(f"{name}-postgres", "spec.postgres.embedded", passing=True)
        return Target(
            _reachable(secret.optional("host") or f"{name}-postgres", namespace),
            secret.port(),
            secret.optional("database") or "orisun",
            secret.value("username"),
            secret.value("password"),
            "prefer",
        )
    raise Blocked(
        "InvalidSpec",
        f"OrisunCluster {namespace}/{name} names no PostgreSQL:"
        " set spec.postgres to external, cloudNativePG or embedded",
    )


def spec_of(cluster: Mapping[str, Any]) -> ClusterSpec:
    """The typed spec of an OrisunCluster. Raises Blocked (InvalidSpec)."""
    try:
        return read_spec(cluster)
    except ValueError as error:
        raise Blocked("InvalidSpec", f"OrisunCluster {cluster['metadata']['name']}: {error}") from None


def _reachable(host: str, namespace: str) -> str:
    """A bare name is of the cluster's own namespace; the operator runs in another one."""
    return (
        host if "." in host or ":" in host or host.startswith("/") or host == "localhost" else f"{host}.{namespace}.svc"
    )


class _Secret:
    def __init__(self, namespace: str, name: str, data: Mapping[str, str]) -> None:
        self._name, self._data = f"{namespace}/{name}", data

    def value(self, key: str) -> str:
        found = self.optional(key)
        if found is None:
            keys = ", ".join(sorted(self._data)) or "none"
            raise Blocked(
                "UnknownSecretKey",
                f"Secret {self._name} has no key {key!r} (it has {keys}): add it, or name another key",
            )
        return found

    def authorities(self, key: str) -> str:
        """Certificates in PEM, and nothing that a message of a failure must not quote."""
        text = self.value(key)
        try:
            check_authorities(text.encode())
        except ValueError as error:
            raise Blocked("BadCertificate", f"Secret {self._name}: {key} {error}: correct it") from None
        return text

    def port(self) -> int:
        text = self.value("port")
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            raise Blocked("InvalidSecret", f"Secret {self._name}: key port must be a number from 1 to 65535")
        return int(text)

    def optional(self, key: str) -> str | None:
        try:
            return base64.b64decode(self._data[key], validate=True).decode() if key in self._data else None
        except (binascii.Error, UnicodeDecodeError):
            raise Blocked("InvalidSecret", f"Secret {self._name}: key {key!r} must be text in UTF-8") from None


class _Secrets:
    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._namespace = kube, namespace

    async def get(self, name: str, field: str, *, passing: bool = False) -> _Secret:
        """``passing``: somebody makes it, so that waiting is enough."""
        found = await self._kube.get(Ref("v1", "Secret", self._namespace, name)) if name else None
        if found is None:
            advice = "waiting for it" if passing else "create it, or name another one"
            raise Blocked(
                "SecretNotFound",
                f"Secret {self._namespace}/{name}, which {field} asks for, does not exist: {advice}",
                stalled=not passing,
                retry=5.0 if passing else 15.0,
            )
        return _Secret(self._namespace, name, found.get("data") or {})
