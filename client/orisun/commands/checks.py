"""What ``orisun doctor`` looks at through the API, the admin page and TLS."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import importlib.metadata
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..channels import TLS, addresses
from ..errors import OrisunError, PermissionDenied, Unauthenticated
from .base import Session, failure
from .status import boundary_records, server_record

#: Seconds that clocks may differ by; times of HTTP are whole seconds.
_SKEW = 2.0
_TLS_DAYS = 30
#: Events from which on a boundary without an index is worth a word.
_LARGE = 10_000
_LAG_SECONDS = 30.0
_PATIENCE = 5.0
_SAMPLE = re.compile(r'(\w+)(?:\{boundary="((?:[^"\\]|\\.)*)"\})? (\S+)')


class Finding(NamedTuple):
    """What a check found."""

    level: Literal["ok", "warning", "problem", "skipped"]
    check: str
    found: str
    #: What to do about it.
    todo: str = ""


async def all_of(session: Session, admin_url: str | None) -> AsyncIterator[Finding]:
    """Every check in turn."""
    servers = await asyncio.gather(
        *(server_record(session.connection, a) for a in addresses(session.connection.server))
    )
    for finding in _servers(session, servers):
        yield finding
    for finding in _versions(servers):
        yield finding
    for address in addresses(session.connection.server):
        yield await asyncio.to_thread(_tls, session, address)
    if any(record["version"] for record in servers):
        async for finding in _boundaries(session):
            yield finding
    async for finding in _admin_page(session, admin_url):
        yield finding


def _servers(session: Session, servers: list[dict[str, Any]]) -> Iterator[Finding]:
    connection = session.connection
    for record in servers:
        check, error = f"server {record['server']}", record.get("error")
        if isinstance(error, OrisunError):
            told = failure(error, connection).message
            todo = "" if "--server" in told else "the exit codes and messages are explained in docs/command-line.md"
            yield Finding("problem", check, told, "" if isinstance(error, Unauthenticated) else todo)
        elif record["health"] != "serving":
            yield Finding(
                "problem",
                check,
                "answers, and takes no calls",
                "its log says why: PostgreSQL, or a schema that does not fit",
            )
        elif record["seconds"] > 0.25:
            yield Finding(
                "warning", check, f"serving, but slow: a ping takes {record['seconds'] * 1000:.0f} ms",
                "look at the network between, and at the server's CPU",
            )  # fmt: skip
        else:
            yield Finding("ok", check, f"serving, a ping takes {record['seconds'] * 1000:.1f} ms")
    if connection.password == "changeit" and any(record["version"] for record in servers):  # noqa: S105 - the default
        yield Finding(
            "warning", "password", f'user "{connection.username}" has the default password, which everybody knows',
            "change it: orisun user password",
        )  # fmt: skip
    if connection.tls is None and not all(_is_local(record["server"]) for record in servers):
        yield Finding(
            "warning", "TLS", "passwords and events go over the network in the clear",
            "serve TLS (ORISUN_GRPC_TLS_ENABLED), and connect with --tls",
        )  # fmt: skip


def _versions(servers: list[dict[str, Any]]) -> Iterator[Finding]:
    versions = sorted({record["version"] for record in servers if record["version"]})
    if not versions:
        return
    own = importlib.metadata.version("orisun")
    if len(versions) > 1:
        yield Finding(
            "warning", "versions", f"servers of versions {' and '.join(versions)} run side by side",
            "fine during a rolling upgrade; finish it, or roll back",
        )  # fmt: skip
    elif _minor(versions[0]) != _minor(own):
        yield Finding(
            "warning", "versions", f"the server is {versions[0]}, this client {own}",
            "calls that one of them does not know end with UNIMPLEMENTED; install the same minor version",
        )  # fmt: skip
    else:
        yield Finding("ok", "versions", f"server {versions[0]}, client {own}")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _is_local(address: str) -> bool:
    return address.rpartition(":")[0].strip("[]") in ("localhost", "127.0.0.1", "::1") or address.startswith("unix:")


def _tls(session: Session, address: str) -> Finding:
    """How long the server's certificate is valid still, judged as clients judge it."""
    tls, check = session.connection.tls, f"certificate of {address}"
    if tls is None:
        return Finding("skipped", check, "no TLS")
    host, _, port = address.rpartition(":")
    try:
        context = _trusting(tls)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=tls.server_name or host.strip("[]")) as secured,
        ):
            certificate: Mapping[str, Any] = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as problem:
        return Finding(
            "problem", check, f"is not valid: {problem.verify_message}",
            "renew it (a running server takes the new file up), or name its authority with --ca",
        )  # fmt: skip
    except (OSError, ValueError) as problem:
        return Finding("problem", check, f"cannot be looked at: {problem}", "does the server speak TLS?")
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
    until = f"valid until {certificate['notAfter']}, {days:.0f} days"
    if days < _TLS_DAYS:
        return Finding("warning", check, until, "renew it; a running server takes the new file up")
    return Finding("ok", check, until)


def _trusting(tls: TLS) -> ssl.SSLContext:
    """Trust and certificate of the connection, for what is no gRPC. Raises OSError."""
    context = ssl.create_default_context(cafile=_path(tls.ca))
    if tls.certificate is not None and tls.key is not None:
        context.load_cert_chain(str(tls.certificate), str(tls.key))
    return context


def _path(given: bytes | str | Path | None) -> str | None:
    return str(given) if isinstance(given, str | Path) else None


async def _boundaries(session: Session) -> AsyncIterator[Finding]:
    client = session.client
    try:
        infos = await client.admin.boundaries()
        records = await boundary_records(client, infos)
    except PermissionDenied:
        yield Finding("skipped", "boundaries", "may not be seen", "call as a user with the role ADMIN or OPERATIONS")
        return
    except OrisunError as error:
        yield Finding("problem", "boundaries", str(error))
        return
    fine = 0
    now = datetime.datetime.now(datetime.UTC)
    for record in records:
        check = f"boundary {record['boundary']}"
        if record["status"] == "failed":
            yield Finding(
                "problem", check, f"its creation failed: {record['problem']}", "mend that, and create it again"
            )
        elif record["status"] != "active":
            yield Finding(
                "warning", check, f"is {record['status']}", "it is made within seconds; look at the log otherwise"
            )
        else:
            fine += 1
        if record["indexes_building"]:
            yield Finding(
                "warning", check, f"{record['indexes_building']} of its indexes are being built",
                "a long transaction delays a build; `orisun index list` shows when they are ready",
            )  # fmt: skip
        if record["indexes"] == 0 and (record["events"] or 0) >= _LARGE:
            yield Finding(
                "warning", check, f"{record['events']:,} events and no index: every criterion reads all of them",
                f"orisun index create {record['boundary']} NAME --field KEY, for the keys that criteria use",
            )  # fmt: skip
        if record["last_event_at"] is not None:
            ahead = (datetime.datetime.fromisoformat(record["last_event_at"]) - now).total_seconds()
            if ahead > _SKEW:
                yield Finding(
                    "warning", "clocks", f"{check} has an event from {ahead:.0f} s in the future of this machine",
                    "set this machine's clock and PostgreSQL's by NTP",
                )  # fmt: skip
    if fine:
        yield Finding("ok", "boundaries", f"{fine} are active")


async def _admin_page(session: Session, url: str | None) -> AsyncIterator[Finding]:
    first = addresses(session.connection.server)[0]
    host, _, port = first.rpartition(":")
    tls = session.connection.tls
    scheme = "http" if tls is None else "https"
    base = url or (f"{scheme}://{host}:8991" if port == "5005" and not first.startswith(("dns:", "unix:")) else None)
    if base is None:
        yield Finding("skipped", "NATS, clocks, queries", "no admin page is known", "give --admin-url http://HOST:8991")
        return
    try:
        sent = time.time()
        context = _trusting(tls) if tls is not None else None
        status, headers, body = await asyncio.to_thread(_get, f"{base.rstrip('/')}/readyz", context)
        local = (sent + time.time()) / 2
        told = json.loads(body)
    except (OSError, ValueError) as problem:
        yield Finding(
            "skipped", "NATS, clocks, queries", f"the admin page at {base} does not answer: {problem}",
            "give --admin-url, or ORISUN_ADMIN_URL",
        )  # fmt: skip
        return
    if told.get("nats") == "ok":
        yield Finding("ok", "NATS", "the server is connected to it")
    else:
        yield Finding(
            "problem", "NATS", "the server cannot reach it: live delivery reads PostgreSQL, pub/sub does not work",
            "start NATS, and look whether most of its servers run: JetStream needs a majority",
        )  # fmt: skip
    if told.get("postgresql") != "ok" or status != 200:
        yield Finding("problem", "PostgreSQL", f"the server is {told.get('status')}", "its log says why")
    if (date := headers.get("date")) is not None:
        # the header has no fractions: its middle is meant
        skew = email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - local
        level: Literal["ok", "warning"] = "warning" if abs(skew) > _SKEW else "ok"
        todo = "set both clocks by NTP: tokens and certificates end by them" if level == "warning" else ""
        yield Finding(level, "clocks", f"the server's differs from this machine's by {abs(skew):.1f} s", todo)
    try:
        _, _, text = await asyncio.to_thread(_get, f"{base.rstrip('/')}/metrics", context)
    except (OSError, ValueError):
        yield Finding(
            "skipped", "queries", "the metrics may not be read", "ORISUN_ADMIN_METRICS_PUBLIC=true shows them"
        )
        return
    for finding in _metrics(text):
        yield finding


def _metrics(text: str) -> Iterator[Finding]:
    fine = True
    for name, boundary, value in _SAMPLE.findall(text):
        if name == "orisun_unindexed_queries_total" and float(value) > 0:
            fine = False
            yield Finding(
                "warning", f"boundary {boundary}", f"{float(value):,.0f} criteria were looked up without an index",
                "the admin page's Queries, and the log, say for which keys: orisun index create "
                f"{boundary} NAME --field KEY",
            )  # fmt: skip
        elif name == "orisun_slow_queries_total" and float(value) > 0:
            fine = False
            yield Finding(
                "warning", f"boundary {boundary}", f"{float(value):,.0f} reads and checks were slow",
                "the admin page's Queries, and the log, say which",
            )  # fmt: skip
        elif name == "orisun_publisher_lag_seconds" and float(value) > _LAG_SECONDS:
            fine = False
            yield Finding(
                "problem", f"boundary {boundary}", f"its publisher is {float(value):,.0f} s behind",
                "subscriptions poll PostgreSQL meanwhile; look at NATS, and at the log of the lease's holder",
            )  # fmt: skip
    if fine:
        yield Finding("ok", "queries", "none was slow or without an index since the server started; publishers keep up")


def _get(url: str, context: ssl.SSLContext | None) -> tuple[int, Mapping[str, str], str]:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f'"{url}" is no http:// or https:// address')
    request = urllib.request.Request(url, headers={"accept": "text/plain, application/json"})  # noqa: S310 - checked
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE, context=context) as answer:  # noqa: S310 - checked above
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read().decode()
    except urllib.error.HTTPError as problem:
        if problem.code != 503:
            raise
        return problem.code, {k.lower(): v for k, v in problem.headers.items()}, problem.read().decode()
