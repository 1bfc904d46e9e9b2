"""JetStream as the operator sees it: the health of each NATS server, the members of the cluster, their removal.

Health and membership come from nats-server's monitoring port; members are removed through the system account.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

import aiohttp
import nats.errors
import structlog
from nats.aio.client import Client

from .resources.cluster import MONITOR_PORT, NATS_PORT

log = structlog.get_logger(__name__)

_PATIENCE = 3
_REMOVE = "$JS.API.SERVER.REMOVE"
#: How nats-server says (monitor.go, isStreamHealthy and isConsumerHealthy of jetstream_cluster.go) that it has stopped
#: writing a stream, a consumer or the cluster's own log: for good, until it is started again.
_STOPPED = ("write error", "apply error")
#: With these a restart changes nothing.
_LASTING = ("no space left", "quota exceeded", "read-only file system")
#: Of the errors of a NATS server, how many are told.
_TOLD = 3


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
    #: Pods whose NATS server has a problem, and those of them that have stopped writing, which only a restart mends.
    ailing: Sequence[str] = ()
    stopped: Sequence[str] = ()


class _Answer(NamedTuple):
    """Of one NATS server: its name, what ails it, what it knows of the cluster."""

    pod: str
    problem: str = ""
    server: str = ""
    meta: Mapping[str, Any] = {}
    stopped: bool = False


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
        problems = [answer.problem for answer in answers if answer.problem]
        names = {answer.pod: answer.server for answer in answers if answer.server}
        ailing = tuple(answer.pod for answer in answers if answer.problem)
        stopped = tuple(answer.pod for answer in answers if answer.stopped)
        leader, members = "", dict[str, Peer]()
        for answer in answers:
            told = str(answer.meta.get("leader") or "")
            leader = leader or told
            if told and told == answer.server:  # the others know less
                leader, replicas = told, answer.meta.get("replicas") or ()
                members = {str(r["name"]): Peer(str(r["name"]), bool(r.get("offline"))) for r in replicas}
                members[told] = Peer(told, False)
        if clustered and not leader and not problems:
            problems.append("JetStream's cluster has no leader")
        return Health("; ".join(problems), leader, tuple(members.values()), names, ailing, stopped)

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

    async def _look(self, pod: str, ip: str) -> _Answer:
        try:
            _, varz = await self._get(ip, "/varz")
            status, health = await self._get(ip, "/healthz?details=true")
            _, jsz = await self._get(ip, "/jsz")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return _Answer(pod, f"{pod}: its NATS server does not answer ({type(error).__name__})")
        problem, stopped = "", False
        if status != HTTPStatus.OK:
            errors = [str(one.get("error") or "") for one in health.get("errors") or ()]
            stopped = any(_has(error, _STOPPED) and not _has(error, _LASTING) for error in errors)
            problem = f"{pod}: {_told(errors) or health.get('error') or 'its NATS server is not healthy'}"
            if stopped:
                problem += "; that lasts until the pod is deleted and made anew"
        server, meta = str(varz.get("server_name") or ""), jsz.get("meta_cluster") or {}
        return _Answer(pod, problem, server, meta, stopped)

    async def _get(self, ip: str, path: str) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE))
        host = f"[{ip}]" if ":" in ip else ip
        async with self._session.get(f"http://{host}:{MONITOR_PORT}{path}") as response:
            return response.status, json.loads(await response.read())


def _told(errors: Sequence[str]) -> str:
    """Those that only a restart mends come first: the others may be gone in a moment."""
    first = sorted(filter(None, errors), key=lambda error: (not _has(error, _STOPPED), error))
    more = [f"{len(first) - _TOLD} more"] if len(first) > _TOLD else []
    return ", ".join([*first[:_TOLD], *more])


def _has(error: str, texts: Sequence[str]) -> bool:
    return any(text in error for text in texts)


async def _quiet(_: Exception) -> None:
    """Whoever asked is told by an exception."""
