"""What ``orisun doctor`` looks at through the API and TLS."""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from ..channels import addresses
from ..errors import OrisunError, PermissionDenied, Unauthenticated
from .base import Session, failure
from .findings import PATIENCE, SKEW, Finding, trusting
from .page_checks import admin_page
from .status import boundary_records, server_record

_TLS_DAYS = 30
#: Events from which on a boundary without an index is worth a word.
_LARGE = 10_000


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
    async for finding in admin_page(session, admin_url):
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
        context = trusting(tls)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as plain,
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
            if ahead > SKEW:
                yield Finding(
                    "warning", "clocks", f"{check} has an event from {ahead:.0f} s in the future of this machine",
                    "set this machine's clock and PostgreSQL's by NTP",
                )  # fmt: skip
    if fine:
        yield Finding("ok", "boundaries", f"{fine} are active")
