"""What `orisun doctor` looks at through the admin page: readiness, the server's clock, metrics."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import json
import re
import shlex
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Literal

from ..channels import addresses
from .base import Session
from .connection import Connection
from .findings import PATIENCE, SKEW, Finding, trusting

_LAG_SECONDS = 30.0
#: Indexes of a boundary that are proposed.
_MOST_COMMANDS = 3
_SAMPLE = re.compile(r'(\w+)(?:\{boundary="((?:[^"\\]|\\.)*)"\})? (\S+)')


async def admin_page(session: Session, url: str | None) -> AsyncIterator[Finding]:
    """NATS, clocks and queries, as the server at that URL tells them; by default the one beside the first address."""
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
        context = trusting(tls) if tls is not None else None
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
        level: Literal["ok", "warning"] = "warning" if abs(skew) > SKEW else "ok"
        todo = "set both clocks by NTP: tokens and certificates end by them" if level == "warning" else ""
        yield Finding(level, "clocks", f"the server's differs from this machine's by {abs(skew):.1f} s", todo)
    try:
        _, _, text = await asyncio.to_thread(_get, f"{base.rstrip('/')}/metrics", context, session.connection)
    except (OSError, ValueError) as problem:
        yield Finding(
            "skipped", "queries", f"the metrics may not be read: {problem}",
            "call as a user with the role ADMIN or OPERATIONS for all boundaries",
        )  # fmt: skip
        return
    helpful: dict[str, list[str]] = {}
    # older servers do not have it, and not everybody may see it
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        _, _, told = await asyncio.to_thread(_get, f"{base.rstrip('/')}/queries.json", context, session.connection)
        for query in json.loads(told):
            index = query["create_index"]
            fields = [part for field in index["fields"] for part in ("--field", field["json_key"])]
            words = ["orisun", "index", "create", index["boundary"], index["name"], *fields]
            helpful.setdefault(index["boundary"], []).append(shlex.join(words))
    for finding in _metrics(text, helpful):
        yield finding


def _metrics(text: str, helpful: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """``helpful`` are, by boundary, the commands that would create what is missing, the most useful first."""
    fine = True
    for name, boundary, value in _SAMPLE.findall(text):
        if name == "orisun_unindexed_queries_total" and float(value) > 0:
            fine = False
            yield Finding(
                "warning", f"boundary {boundary}", f"{float(value):,.0f} criteria were looked up without an index",
                "; or ".join(helpful.get(boundary, [])[:_MOST_COMMANDS])
                or "the admin page's Queries, and the log, say for which keys: orisun index create "
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


def _get(
    url: str, context: ssl.SSLContext | None, connection: Connection | None = None
) -> tuple[int, Mapping[str, str], str]:
    """Status, headers and body. Where the server asks who is calling, ``connection`` tells it, if a password or a token
    does: never in the clear where calls are made by TLS.

    Raises OSError (also for a status that is no answer) or ValueError.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f'"{url}" is no http:// or https:// address')
    request = urllib.request.Request(url, headers={"accept": "text/plain, application/json"})  # noqa: S310 - checked
    try:
        return _opened(request, context)
    except urllib.error.HTTPError as problem:
        if problem.code != 401 or connection is None or not (connection.token or connection.username):
            raise
        if connection.tls is not None and url.startswith("http://"):
            raise ValueError("it asks who is calling, which is not told by http:// where calls speak TLS") from None
        request.add_unredirected_header("Authorization", _authorization(connection))
        return _opened(request, context)


def _opened(request: urllib.request.Request, context: ssl.SSLContext | None) -> tuple[int, Mapping[str, str], str]:
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as answer:  # noqa: S310 - checked
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read().decode()
    except urllib.error.HTTPError as problem:
        if problem.code != 503:
            raise
        return problem.code, {k.lower(): v for k, v in problem.headers.items()}, problem.read().decode()


def _authorization(connection: Connection) -> str:
    if connection.token:
        return f"Bearer {connection.token}"
    return "Basic " + base64.b64encode(f"{connection.username}:{connection.password}".encode()).decode()
