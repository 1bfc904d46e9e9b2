"""Every ORISUN_* variable, once: its default and what it means.

A field is called like its variable in lower case without ``ORISUN_``. The defaults are those of the documents that the
product was asked for from (the newest wins); fields that those do not know carry "Ours" in their description.
``environment.load`` reads them; ``orisun config --output markdown`` generates ``docs/configuration.md`` from them.
"""

from __future__ import annotations

import ipaddress
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from orisun_server.addresses import NatsServers, Networks, OtlpEndpoint, Routes
from orisun_server.setting_types import (
    BoundarySetting,
    CertificateUsers,
    Count,
    Duration,
    Level,
    Limit,
    Password,
    Port,
    Text,
    Word,
    default_schema,
    derive_boundaries,
    entries,
    format_definitions,
    format_schemas,
)

MIB = 1024 * 1024
ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 - a container must be reachable; laptops get loopback

#: What NATS must let through at least, in bytes: the headers of an event alone may take 4 KiB (delivery/stream.py).
MIN_PAYLOAD = 8 * 1024

#: What pydantic reads as true.
_YES = frozenset({"true", "t", "yes", "y", "on", "1"})


def _var(default: Any, description: str) -> Any:
    return Field(default=default, description=description)


class Settings(BaseModel):
    """What the server was told. Immutable; durations are seconds, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    boundaries: tuple[BoundarySetting, ...] = _var(
        (), "JSON list of `{name, description}`: boundaries made at the start when the catalog does not know them"
    )
    admin_boundary: Text = _var("orisun_admin", "Boundary of the server's own events; its schema holds the catalog")

    grpc_host: str = _var("", "Ours. Address to listen on; by default loopback when PostgreSQL is embedded, else all")
    grpc_port: Port = _var(5005, "Port of the gRPC API; 0 takes a free one")
    grpc_enable_reflection: bool = _var(True, "Serve gRPC reflection, which grpcurl uses")
    grpc_transport: Literal["auto", "grpcio", "native"] = _var(
        "auto", "Ours. The HTTP/2 implementation underneath; `auto` is native where installed and no TLS is asked for"
    )
    grpc_max_request_bytes: Count = _var(64 * MIB, "Ours. Largest request; beyond it RESOURCE_EXHAUSTED")
    grpc_tls_enabled: bool = _var(False, "Serve TLS")
    grpc_tls_cert_file: Path = _var("/etc/orisun/tls/server.crt", "Certificate of the server, PEM")
    grpc_tls_key_file: Path = _var("/etc/orisun/tls/server.key", "Private key of the server, PEM")
    grpc_tls_ca_file: Path = _var("/etc/orisun/tls/ca.crt", "Authority that client certificates are checked against")
    grpc_tls_client_auth_required: bool = _var(False, "Refuse clients without a certificate of that authority")
    grpc_tls_client_users: CertificateUsers = _var(
        "",
        "Ours. Client certificates that stand for users, comma-separated `name=user`; the name is the certificate's"
        " common name or one of its alternative names, and `*` alone lets each common name stand for the user that"
        " is called so",
    )
    trusted_proxies: Networks = _var(
        "",
        "Ours. Addresses or networks of the proxies before this server, comma-separated: from them `X-Forwarded-For` "
        "says where calls and requests come from, and `X-Forwarded-Proto` whether a browser spoke TLS",
    )

    admin_enabled: bool = _var(True, "Ours. Serve the admin page, `/metrics`, `/healthz` and `/readyz`")
    admin_port: Port = _var(8991, "Port of the admin page, on ORISUN_GRPC_HOST; a free one when the default is taken")
    admin_metrics_public: bool = _var(True, "Ours. Serve `/metrics` to everybody; else to ADMIN and OPERATIONS only")
    admin_username: Annotated[str, Field(min_length=3, max_length=255, pattern=r"^[^:]+$")] = _var(
        "admin", "Name of the first administrator: at least 3 characters, without a colon"
    )
    admin_password: Password = _var("changeit", "Password of the first administrator, at least 6 characters; change it")
    admin_password_enforced: bool = _var(
        False,
        "Ours. At each start, make that user and set its password where they differ (in a cluster: from a Secret); "
        "with the default password the server does not start then",
    )

    pg_host: Text = _var("localhost", "Host of PostgreSQL, or the directory of its socket")
    pg_port: Port = _var(5432, "Port of PostgreSQL")
    pg_user: Text = _var("postgres", "User of PostgreSQL")
    pg_password: SecretStr = _var("postgres", "Password of that user")
    pg_name: Text = _var("orisun", "Database")
    pg_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = _var(
        "prefer", "Ours. TLS towards PostgreSQL, as libpq's sslmode"
    )
    pg_sslrootcert: str = _var("", "Ours. Authority that verify-ca and verify-full check against, PEM")
    pg_statement_cache: Literal["auto", "on", "off"] = _var(
        "auto", "Ours. Prepared statements; `auto` turns them off behind a transaction pooler"
    )
    pg_direct_host: str = _var(
        "", "Ours. Host of PostgreSQL itself where ORISUN_PG_HOST is a pooler, for LISTEN; unset, publishers poll"
    )
    pg_direct_port: Port = _var(5432, "Ours. Its port")
    pg_listen_enabled: bool = _var(True, "Wake publishers by LISTEN/NOTIFY; without it they poll")
    pg_write_max_open_conns: Count = _var(25, "Most connections that append")
    pg_write_max_idle_conns: Count = _var(10, "Idle ones kept")
    pg_write_conn_max_idle_time: Duration = _var("5m", "Idle time after which a surplus one is closed")
    pg_write_conn_max_lifetime: Duration = _var("30m", "Age after which one is replaced")
    pg_read_max_open_conns: Count = _var(50, "Most connections that read")
    pg_read_max_idle_conns: Count = _var(25, "Idle ones kept")
    pg_read_conn_max_idle_time: Duration = _var("5m", "Idle time after which a surplus one is closed")
    pg_read_conn_max_lifetime: Duration = _var("30m", "Age after which one is replaced")
    pg_admin_max_open_conns: Count = _var(5, "Most connections for catalog, leases and users")
    pg_admin_max_idle_conns: Count = _var(2, "Idle ones kept")
    pg_admin_conn_max_idle_time: Duration = _var("5m", "Idle time after which a surplus one is closed")
    pg_admin_conn_max_lifetime: Duration = _var("30m", "Age after which one is replaced")

    nats_url: NatsServers | None = _var(
        None,
        "Ours. NATS servers to use, comma-separated `nats://user:password@host:4222` (`tls://` for TLS); unset embeds"
        " one",
    )
    nats_server_name: Word = _var("orisun-nats-2", "Name of the embedded server; unique, and derived, in a cluster")
    nats_port: Port = _var(4224, "Port of the embedded server, on loopback; a free one when the default is taken")
    nats_max_payload: Annotated[int, Field(ge=MIN_PAYLOAD, le=64 * MIB)] = _var(
        1048576,
        f"Largest message of the embedded server; {MIN_PAYLOAD} at least, also of a NATS of your own",
    )
    nats_store_dir: Path = _var("./data/orisun/nats", "Directory of the embedded server's JetStream")
    nats_event_stream_max_bytes: Limit = _var(536870912, "Bytes that a boundary's stream keeps; -1 for no limit")
    nats_event_stream_max_msgs: Limit = _var(-1, "Events that a boundary's stream keeps; -1 for no limit")
    nats_event_stream_max_age: Duration = _var("5m", "Age until which a boundary's stream keeps events; 0 for no limit")
    nats_event_stream_storage: Literal["file", "memory"] = _var("file", "Ours. Where JetStream keeps the streams")
    nats_event_stream_replicas: Annotated[int, Field(ge=0, le=5)] = _var(
        0, "Ours. Copies of a stream; 0 means 3 when ORISUN_NATS_CLUSTER_ENABLED, else 1"
    )
    nats_max_store: Annotated[int, Field(ge=0)] = _var(
        0, "Ours. Bytes of all streams together, kept by trimming the largest; 0 for no limit"
    )
    nats_cluster_enabled: bool = _var(False, "Join the embedded servers of several Orisun servers into one cluster")
    nats_cluster_name: Word = _var("orisun-nats-cluster", "Name of that cluster, the same on each server")
    nats_cluster_host: Text = _var(ALL_ADDRESSES, "Address for the other servers; advertised where it is not local")
    nats_cluster_port: Port = _var(6222, "Port for the other servers")
    nats_cluster_routes: Routes = _var(
        "nats://0.0.0.0:6223,nats://0.0.0.0:6224", "Addresses of the other servers, comma-separated"
    )
    nats_cluster_username: Text = _var("nats", "User that the servers of the cluster show each other")
    nats_cluster_password: SecretStr = _var("password@1", "Password that they show each other")
    nats_cluster_timeout: Duration = _var("1800s", "Time after which a cluster without a leader is reported as failed")

    polling_publisher_batch_size: Count = _var(1000, "Most events that a publisher reads at once")
    publisher_poll_interval: Annotated[Duration, Field(gt=0)] = _var(
        "1s", "Ours. Pause between two looks at all boundaries for events that nobody told of"
    )
    append_max_events: Count = _var(10000, "Ours. Most events of one SaveEvents")
    append_max_criteria: Count = _var(100, "Ours. Most criteria of one request")
    append_max_tags: Count = _var(50, "Ours. Most tags of one criterion")
    append_queue_calls: Count = _var(20000, "Ours. Most SaveEvents waiting; beyond it RESOURCE_EXHAUSTED")
    append_queue_bytes: Count = _var(256 * MIB, "Ours. Most bytes of SaveEvents waiting")
    unscoped_expected_position: Literal["check", "ignore"] = _var(
        "check", "Ours. An expected position without criteria: checked against the whole boundary, or ignored"
    )

    data_dir: Path = _var("./data/orisun", "Ours. Directory of the embedded PostgreSQL (below it, in `postgres`)")
    schema_migrations: Literal["apply", "verify"] = _var(
        "apply",
        "Ours. Migrate the schema at the start, or only check that it fits (in a cluster, where the operator migrates);"
        " a boundary that is made by rpc gets its tables either way",
    )
    shutdown_grace: Duration = _var("30s", "Ours. Time to finish what was taken when asked to stop")
    drained_file: Path | None = _var(
        None, "Ours. File that says `serving` while calls are taken, then `drained` (in a pod, for the NATS beside it)"
    )
    node_ttl: Annotated[Duration, Field(gt=0)] = _var("6s", "Ours. Silence after which others take a server's work")

    logging_level: Level = _var("INFO", "DEBUG, INFO, WARN or ERROR")
    logging_format: Literal["auto", "json", "console"] = _var(
        "auto", "Ours. `auto` writes for people on a terminal and JSON else"
    )
    slow_query_threshold: Duration = _var("500ms", "Ours. Reads and context checks that take longer are logged")
    otel_enabled: bool = _var(True, "OpenTelemetry: traces and metrics over OTLP, as soon as the endpoint answers")
    otel_endpoint: OtlpEndpoint = _var(
        "localhost:4317", "OTLP endpoint (gRPC): `host:port`, or a URL; `https://` for TLS"
    )
    otel_service_name: str = _var("orisun", "Name of the service in traces and metrics")
    otel_traces_per_second: Annotated[int, Field(ge=0)] = _var(
        10, "Ours. Most traces a second that the server begins by itself"
    )
    otel_client_traces_per_second: Annotated[int, Field(ge=0)] = _var(
        100, "Ours. Most calls a second that are traced since their client brought a sampled `traceparent`"
    )
    otel_metrics_interval: Annotated[Duration, Field(gt=0)] = _var("60s", "Ours. Pause between two exports of metrics")
    pprof_enabled: bool = _var(False, "Serve CPU and heap profiles, for ADMIN only")
    pprof_port: Port = _var(6060, "Port of the profiles, on ORISUN_GRPC_HOST")

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: Any) -> Any:
        """Fill in what follows from other values; what was given stays as it is."""
        if not isinstance(values, dict):
            return values
        given = dict(values)
        admin = given.get("admin_boundary", "orisun_admin")
        if "boundaries" not in given:
            given["boundaries"] = derive_boundaries(None, None, str(admin)).boundaries
        elif admin not in {boundary[0] for boundary in given["boundaries"]}:
            added = BoundarySetting(str(admin), "", default_schema(str(admin)))
            given["boundaries"] = (*given["boundaries"], added)
        if not given.get("grpc_host"):
            given["grpc_host"] = ALL_ADDRESSES if CONNECTION_FIELDS & given.keys() else "127.0.0.1"
        if "nats_server_name" not in given and str(given.get("nats_cluster_enabled")).lower() in _YES:
            given["nats_server_name"] = f"orisun-{platform.node() or 'node'}-{given.get('nats_port', 4224)}"
        return given

    @property
    def embeds_postgres(self) -> bool:
        """Whether no ORISUN_PG_* variable names a PostgreSQL, so that one is started."""
        return not CONNECTION_FIELDS & self.model_fields_set

    @property
    def embeds_nats(self) -> bool:
        """Whether ORISUN_NATS_URL is unset, so that a nats-server is started."""
        return self.nats_url is None

    @property
    def nats_servers(self) -> tuple[str, ...]:
        """The addresses of ORISUN_NATS_URL, with credentials: secrets."""
        return () if self.nats_url is None else entries(self.nats_url.get_secret_value())

    @property
    def certificate_users(self) -> dict[str, str]:
        """Name of a client certificate -> user name; ``*`` -> "" where every common name is a user's."""
        pairs = (entry.rpartition("=") for entry in self.grpc_tls_client_users)
        return {name or "*": user if name else "" for name, _, user in pairs}

    @property
    def admin_schema(self) -> str:
        """The schema of the admin boundary, which holds the catalog, leases and users."""
        return next(boundary.schema for boundary in self.boundaries if boundary.name == self.admin_boundary)

    @property
    def stream_replicas(self) -> int:
        """Copies of each JetStream stream."""
        return self.nats_event_stream_replicas or (3 if self.nats_cluster_enabled else 1)

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can reach the gRPC API."""
        try:
            return ipaddress.ip_address(self.grpc_host.strip("[]")).is_loopback
        except ValueError:
            return self.grpc_host == "localhost"

    @property
    def has_default_password(self) -> bool:
        """Whether everybody knows the first administrator's password."""
        return self.admin_password.get_secret_value() == "changeit"

    @property
    def pg_schemas(self) -> str:
        """The boundaries as ORISUN_PG_SCHEMAS writes them."""
        return format_schemas(self.boundaries)

    @property
    def boundary_definitions(self) -> str:
        """The boundaries as ORISUN_BOUNDARIES writes them."""
        return format_definitions(self.boundaries)


#: Setting one of these means that there is a PostgreSQL to use.
CONNECTION_FIELDS = frozenset({"pg_host", "pg_port", "pg_user", "pg_password", "pg_name"})

#: The first field of each section of ``docs/configuration.md``.
SECTIONS = {
    "boundaries": "Boundaries",
    "grpc_host": "gRPC",
    "admin_port": "Administration",
    "pg_host": "PostgreSQL",
    "pg_write_max_open_conns": "Pools of PostgreSQL connections",
    "nats_url": "NATS",
    "nats_cluster_enabled": "Cluster of embedded NATS servers",
    "polling_publisher_batch_size": "Publishing, appending and their limits",
    "data_dir": "Life of the server",
    "logging_level": "Logs and observation",
}
