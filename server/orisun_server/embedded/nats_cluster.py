"""The cluster that the embedded nats-servers of several Orisun servers form (ORISUN_NATS_CLUSTER_*)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import nats
import structlog

from orisun_server.settings import ALL_ADDRESSES, Settings

log = structlog.get_logger(__name__)


def cluster_configuration(settings: Settings) -> dict[str, Any]:
    """The ``cluster`` part of nats-server's configuration."""
    user, password = settings.nats_cluster_username, settings.nats_cluster_password.get_secret_value()
    routes = []
    for route in settings.nats_cluster_routes:
        given, at, address = urlsplit(route).netloc.rpartition("@")
        login = map(unquote, given.split(":", 1)) if at else (user, password)
        # nats-server refuses a route in which a character stands that should be encoded
        routes.append(f"nats-route://{':'.join(quote(part, safe='') for part in login)}@{address}")
    host, port = settings.nats_cluster_host, settings.nats_cluster_port
    cluster: dict[str, Any] = {
        "name": settings.nats_cluster_name,
        "listen": f"{host}:{port}",
        "authorization": {"user": user, "password": password},
        "routes": routes,
        # Each Orisun server talks to its own nats-server; clients need not hear of the others.
        "no_advertise": True,
    }
    if not _is_local(host):
        cluster["listen"] = f"{ALL_ADDRESSES}:{port}"
        cluster["cluster_advertise"] = f"{host}:{port}"
    return cluster


def _is_local(host: str) -> bool:
    """Whether one can listen on that address here; else it is a name that others reach us by."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


async def report_leader(url: str, timeout: float) -> None:
    """Say in the log when JetStream has a leader, or that it has none after ``timeout`` seconds (0: wait forever)."""
    try:
        async with asyncio.timeout(timeout or None):
            await _leader(url)
    except TimeoutError:
        log.error(  # noqa: TRY400 - how it timed out tells nothing
            "the NATS cluster has no leader: more than half of its servers must run and reach each other; "
            "until then events are stored but not delivered live",
            waited=timeout,
        )
    else:
        log.info("the NATS cluster has a leader")


async def _leader(url: str) -> None:
    """Return once JetStream's API answers, which takes a leader."""

    async def quiet(_: Exception) -> None:
        """Whoever uses this connection in earnest reports its failures."""

    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.5, error_cb=quiet)
    try:
        while True:
            with contextlib.suppress(nats.errors.Error):
                await client.jetstream(timeout=1).account_info()
                return
            await asyncio.sleep(0.5)
    finally:
        await client.close()
