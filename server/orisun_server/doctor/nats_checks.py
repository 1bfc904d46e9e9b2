"""NATS with JetStream as the publishers need it. Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.errors import Error
from nats.js.api import StreamInfo
from nats.js.errors import APIError

from ..settings import MIN_PAYLOAD, Settings
from . import Finding

_PATIENCE = 5.0
_OLDEST = (2, 11, 1)


async def all_of(settings: Settings) -> AsyncIterator[Finding]:
    """Every check in turn."""
    client = Client()

    async def quiet(_: Exception) -> None:
        """nats-py would print what is raised anyway."""

    try:
        async with asyncio.timeout(_PATIENCE):
            await client.connect(
                _with_credentials(settings.nats_servers), allow_reconnect=False,
                error_cb=quiet, connect_timeout=2, max_reconnect_attempts=1,
            )  # fmt: skip
    except (Error, OSError, TimeoutError) as problem:
        yield Finding(
            "problem", "NATS", f"cannot be reached: {str(problem) or type(problem).__name__}",
            "start it, or mend ORISUN_NATS_URL; appends and reads go on without it",
        )  # fmt: skip
        return
    try:
        version = client.connected_server_version
        found = (version.major, version.minor, version.patch)
        text = ".".join(map(str, found))
        known = len(client.servers)
        if found < _OLDEST:
            yield Finding("problem", "NATS", f"version {text} is too old", "2.11.1 or newer is needed")
        else:
            yield Finding("ok", "NATS", f"version {text}, {known} server{'s' * (known != 1)} known")
        if client.max_payload < MIN_PAYLOAD:
            yield Finding(
                "problem", "NATS's max_payload", f"{client.max_payload} bytes, too little for an event",
                f"set it to {MIN_PAYLOAD} at least",
            )  # fmt: skip
        async for finding in _jetstream(client, known):
            yield finding
    finally:
        await client.close()


def _with_credentials(urls: Sequence[str]) -> list[str]:
    """The URLs, each with the user and password that one of them names, as the server understands them."""
    parts = [urlsplit(url if "://" in url else f"nats://{url}") for url in urls]
    user = next((part.netloc.rpartition("@")[0] for part in parts if "@" in part.netloc), "")
    return [
        part._replace(netloc=f"{user}@{part.netloc.rpartition('@')[2]}" if user else part.netloc).geturl()
        for part in parts
    ]


async def _jetstream(client: Client, known: int) -> AsyncIterator[Finding]:
    manager = client.jsm(timeout=_PATIENCE)
    try:
        await manager.account_info()
        streams: list[StreamInfo] = []
        while page := await manager.streams_info(offset=len(streams)):  # 256 at a time
            streams += page
    except APIError as problem:
        yield Finding("problem", "JetStream", str(problem.description), "enable JetStream for the account")
        return
    except (Error, TimeoutError):
        yield Finding(
            "problem", "NATS's quorum", "JetStream does not answer: it has no leader",
            "most of its servers must run: 2 of 3, 3 of 5; start the others",
        )  # fmt: skip
        return
    problems = 0
    for stream in streams:
        cluster, name = stream.cluster, stream.config.name
        replicas = (cluster.replicas or []) if cluster else []
        away = [peer.name for peer in replicas if peer.offline]
        late = [peer.name for peer in replicas if not peer.offline and not peer.current]
        if cluster is not None and known > 1 and not cluster.leader:
            problems += 1
            yield Finding("problem", f"stream {name}", "has no leader", "start the servers that hold its copies")
        elif away or late:
            problems += 1
            yield Finding(
                "warning", f"stream {name}",
                f"copies are {'away' if away else 'late'}: {', '.join(map(str, away or late))}",
                "one more loss costs the quorum; events stay in PostgreSQL in any case",
            )  # fmt: skip
        elif known > 1 and (stream.config.num_replicas or 1) == 1:
            problems += 1
            yield Finding(
                "warning", f"stream {name}", f"one copy in a cluster of {known} servers",
                "set ORISUN_NATS_EVENT_STREAM_REPLICAS=3",
            )  # fmt: skip
    if not problems:
        yield Finding("ok", "NATS's quorum", f"JetStream answers; {len(streams)} streams have leader and copies")
