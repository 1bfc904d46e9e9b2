"""JetStream as the operator sees it: the health of each NATS server, the members of the cluster, their removal.

Health and membership come from nats-server's monitoring port; members are removed through the system account.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import nats.errors
import structlog
from nats.aio.client import Client

from .resources.cluster import MONITOR_PORT, NATS_PORT

log = structlog.get_logger(__name__)

_PATIENCE = 3
_REMOVE = "$JS.API.SERVER.REMOVE"


@dataclass(frozen=True)
class Peer:
    """A member of JetStream's cluster."""

    name: str
    offline: bool


@dataclass(frozen=True)
class Health:
    """``problem`` says why JetStream is not as it should be, "" when it is."""

    problem: str = ""
    leader: str = ""
    #: Members, as the leader knows them; empty without a leader or a cluster.
    peers: Sequence[Peer] = ()
    #: Pod to the name that its NATS server answers with.
    names: Mapping[str, str] = field(default_factory=dict)


class JetStreamError(Exception):
    """The NATS servers did not do what they were asked."""


class JetStream:
    """Asks the NATS servers of pods; ``close`` it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def health(self, pods: Mapping[str, str], *, clustered: bool) -> Health:
        """``pods`` is name to address. Every server must be current in all that it holds, and have a leader."""
        answers = await asyncio.gather(*(self._look(name, ip) for name, ip in pods.items()))
        problems = [problem for _, problem, _, _ in answers if problem]
        names = {pod: server for pod, _, server, _ in answers if server}
        leader, members = "", dict[str, Peer]()
        for _, _, server, meta in answers:
            told = str(meta.get("leader") or "")
            leader = leader or told
            if told and told == server:  # the others know less
                leader = told
                members = {
                    str(r["name"]): Peer(str(r["name"]), bool(r.get("offline"))) for r in meta.get("replicas") or ()
                }
                members[told] = Peer(told, False)
        if clustered and not leader and not problems:
            problems.append("JetStream's cluster has no leader")
        return Health("; ".join(problems), leader, tuple(members.values()), names)

    async def remove(self, addresses: Iterable[str], user: str, password: str, peer: str) -> None:
        """Remove a member for good; its copies of streams are made elsewhere. Raises JetStreamError."""
        client = Client()
        try:
            async with asyncio.timeout(2 * _PATIENCE):
                await client.connect(
                    [f"nats://{ip}:{NATS_PORT}" for ip in addresses],
                    user=user,
                    password=password,
                    connect_timeout=_PATIENCE,
                    allow_reconnect=False,
                    error_cb=_quiet,
                )
                answer = await client.request(_REMOVE, json.dumps({"peer": peer}).encode(), timeout=_PATIENCE)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise JetStreamError(f"the NATS servers do not answer: {error or type(error).__name__}") from error
        finally:
            transport = client._transport  # close() leaves it open where connecting failed
            await client.close()
            if transport is not None:
                transport.close()  # type: ignore[no-untyped-call]
        told = json.loads(answer.data)
        if not told.get("success"):
            raise JetStreamError(f"{peer} is not removed: {told.get('error', {}).get('description', told)}")

    async def _look(self, pod: str, ip: str) -> tuple[str, str, str, dict[str, Any]]:
        """Pod, problem, server's name, what it knows of the cluster."""
        try:
            _, varz = await self._get(ip, "/varz")
            status, health = await self._get(ip, "/healthz")
            _, jsz = await self._get(ip, "/jsz")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return pod, f"{pod}: its NATS server does not answer ({type(error).__name__})", "", {}
        problem = "" if status == 200 else f"{pod}: {health.get('error') or 'its NATS server is not healthy'}"
        return pod, problem, str(varz.get("server_name") or ""), jsz.get("meta_cluster") or {}

    async def _get(self, ip: str, path: str) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE))
        host = f"[{ip}]" if ":" in ip else ip
        async with self._session.get(f"http://{host}:{MONITOR_PORT}{path}") as response:
            return response.status, json.loads(await response.read())


async def _quiet(_: Exception) -> None:
    """Whoever asked is told by an exception."""
