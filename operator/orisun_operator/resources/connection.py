"""How servers reach PostgreSQL: variables of their container, by where the spec says that it is."""

from __future__ import annotations

from dataclasses import dataclass

from ..api.cluster import KeyRef
from .cluster import Cluster


@dataclass(frozen=True)
class Connection:
    """``from_secret`` is variable to (Secret, key)."""

    values: dict[str, str]
    from_secret: dict[str, tuple[str, str]]
    ca: KeyRef | None = None

    @property
    def secret(self) -> str:
        """The Secret with the credentials."""
        return self.from_secret["ORISUN_PG_PASSWORD"][0]


def connection(cluster: Cluster) -> Connection:
    """Of the servers to their PostgreSQL."""
    postgres = cluster.spec.postgres
    if (external := postgres.external) is not None:
        credentials = external.credentials_secret_ref
        return Connection(
            {
                "ORISUN_PG_HOST": external.host,
                "ORISUN_PG_PORT": str(external.port),
                "ORISUN_PG_NAME": external.database,
                "ORISUN_PG_SSLMODE": external.ssl_mode,
            },
            {
                "ORISUN_PG_USER": (credentials.name, credentials.username_key),
                "ORISUN_PG_PASSWORD": (credentials.name, credentials.password_key),
            },
            external.ca_secret_ref,
        )
    if (native := postgres.cloud_native_pg) is not None:
        secret = f"{native.cluster_name}-app"
        values = {"ORISUN_PG_HOST": f"{native.cluster_name}-rw", "ORISUN_PG_SSLMODE": "require"}
        names = {"PORT": "port", "USER": "username", "PASSWORD": "password"}
        keys = {f"ORISUN_PG_{name}": (secret, key) for name, key in names.items()}
        if native.database:
            values["ORISUN_PG_NAME"] = native.database
        else:
            keys["ORISUN_PG_NAME"] = (secret, "dbname")
        return Connection(values, keys)
    secret = cluster.postgres
    names = {"HOST": "host", "PORT": "port", "NAME": "database", "USER": "username", "PASSWORD": "password"}
    return Connection(
        {"ORISUN_PG_SSLMODE": "disable"}, {f"ORISUN_PG_{name}": (secret, key) for name, key in names.items()}
    )
