"""What ``orisun serve`` tells a person once it serves: what runs, where, and what to try next."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

from orisun_server.settings import ALL_ADDRESSES, Settings

_EVENT = (
    r'{"boundary":"%s","events":[{"event_id":"user-001","event_type":"UserRegistered",'
    r'"data":"{\"username\":\"alice\"}"}]}'
)
_PYTHON = """\
{python} -c '
import grpc
from orisun_api import eventstore_pb2 as m, eventstore_pb2_grpc as s
store = s.EventStoreStub(grpc.insecure_channel("{address}"))
basic = [("authorization", "Basic {basic}")]
print(store.GetEvents(m.GetEventsRequest(boundary="{boundary}", count=10), metadata=basic))'"""
_DEFAULT_BASIC = "YWRtaW46Y2hhbmdlaXQ="  # admin:changeit


def banner(asked: Settings, effective: Settings, address: str, page: str = "", *, color: bool = False) -> str:
    """The text, given the settings as asked for and with the addresses of what was embedded; ``page`` is the admin
    page's URL.

    A password shows only where it is the default, which everybody knows.
    """
    address = _for_clients(address)
    boundary = next((b.name for b in asked.boundaries if b.name != asked.admin_boundary), asked.admin_boundary)
    rows = [
        ("gRPC", f"{address}  ({'TLS' if asked.grpc_tls_enabled else 'plaintext'}, {_credentials(asked)})"),
        *([("admin page", _page(page))] if page else []),
        ("PostgreSQL", _postgres(asked, effective)),
        ("NATS", _nats(asked, effective)),
        ("boundaries", ", ".join(b.name for b in asked.boundaries)),
    ]
    basic = (
        _DEFAULT_BASIC
        if asked.has_default_password and asked.admin_username == "admin"
        else "<base64 of user:password>"
    )
    flags = f"-cacert {asked.grpc_tls_ca_file}" if asked.grpc_tls_enabled else "-plaintext"
    grpcurl = (
        f"grpcurl {flags} -H 'Authorization: Basic {basic}' \\\n"
        f"  -d '{_EVENT % boundary}' \\\n"
        f"  {address} orisun.EventStore/SaveEvents"
    )
    lines = ["", f"Orisun {importlib.metadata.version('orisun')} serves.", ""]
    lines += [f"  {name:<11}{value}" for name, value in rows]
    lines += ["", "Try next, in another terminal:", "", *grpcurl.splitlines()]
    if not asked.grpc_tls_enabled:
        python = _PYTHON.format(python=_python(), address=address, boundary=boundary, basic=basic)
        lines += ["", *python.splitlines()]
    lines += ["", "Ctrl-C stops all of it; the data stays.", ""]
    text = "\n".join(lines)
    return f"\033[36m{text}\033[0m" if color else text


def _for_clients(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host.strip("[]") in (ALL_ADDRESSES, "::", "127.0.0.1", "::1", "") else address


def _page(url: str) -> str:
    scheme, _, address = url.partition("://")
    return f"{scheme}://{_for_clients(address)}"


def _credentials(settings: Settings) -> str:
    shown = "changeit" if settings.has_default_password else "as you set it"
    return f"user {settings.admin_username}, first password {shown}"


def _postgres(asked: Settings, effective: Settings) -> str:
    if not asked.embeds_postgres:
        return f"{asked.pg_host}:{asked.pg_port}/{asked.pg_name}"
    data = (asked.data_dir / "postgres").resolve()
    return f"embedded, data in {data}, psql -h {effective.pg_host} -U {effective.pg_user}"


def _nats(asked: Settings, effective: Settings) -> str:
    if not asked.embeds_nats:
        return "ORISUN_NATS_URL"
    cluster = f", cluster {asked.nats_cluster_name}" if asked.nats_cluster_enabled else ""
    return f"embedded, localhost:{effective.nats_port}{cluster}, data in {asked.nats_store_dir.resolve()}"


def _python() -> str:
    """This Python as one would type it here."""
    here = Path.cwd()
    return os.path.relpath(sys.executable, here) if Path(sys.executable).is_relative_to(here) else sys.executable
