"""``orisun status``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click
import grpc

from ..administered import BoundaryInfo
from ..channels import addresses
from ..client import Client
from ..endpoints import Endpoints
from ..errors import NotFound, OrisunError, PermissionDenied, Unavailable
from .base import Exit, Session, command, unreachable
from .connection import Connection
from .output import Column, Record
from .raw import last, position_record, position_text, seconds, timestamp

#: Boundaries that are asked about at the same time.
_AT_ONCE = 16
_HEALTH = "/grpc.health.v1.Health/Check"
#: HealthCheckResponse{status: SERVING}; the message is one number, so its package is not needed.
_SERVING = b"\x08\x01"


def _indexes(record: Record) -> str:
    if record["indexes"] is None:
        return ""
    building = record["indexes_building"]
    return f"{record['indexes']}{f' ({building} building)' if building else ''}"


_SERVERS = (
    Column("SERVER", "server"),
    Column("HEALTH", "health"),
    Column("VERSION", "version"),
    Column("NODE", "node_id"),
    Column("BACKEND", "backend"),
    Column("ANSWERS IN", lambda record: "" if record["seconds"] is None else f"{record['seconds'] * 1000:.1f} ms"),
    Column("PROBLEM", "problem", is_flexible=True),
)
_BOUNDARIES = (
    Column("BOUNDARY", "boundary"),
    Column("STATUS", "status"),
    Column("EVENTS", "events"),
    Column("LAST POSITION", position_text),
    Column("LAST EVENT (UTC)", lambda record: seconds(record["last_event_at"] or "")),
    Column("INDEXES", _indexes),
    Column("PROBLEM", "problem", is_flexible=True),
)


async def health(connection: Connection, address: str) -> str:
    """``serving`` or ``not serving``, as grpc.health.v1 tells everybody. Raises Unavailable."""
    endpoints = Endpoints(address, connection.tls, 0)
    try:
        channel = endpoints.pick().channel
        check: Any = channel.unary_unary(_HEALTH, request_serializer=bytes, response_deserializer=bytes)
        answer = await check(b"", timeout=min(connection.timeout, 5.0))
    except grpc.aio.AioRpcError as error:
        raise Unavailable(error.details() or error.code().name) from None
    finally:
        await endpoints.close()
    return "serving" if answer == _SERVING else "not serving"


async def server_record(connection: Connection, address: str) -> dict[str, Any]:
    """What one server says about itself, or what is wrong with it."""
    record: dict[str, Any] = {
        "server": address, "health": "unreachable", "version": None, "node_id": None, "backend": None,
        "capabilities": [], "seconds": None, "problem": None,
    }  # fmt: skip
    try:
        record["health"] = await health(connection, address)
        async with connection.client(address) as client:
            info = await client.server_info()
            began = time.perf_counter()
            await client.ping()
            record["seconds"] = round(time.perf_counter() - began, 6)
            record |= {"version": info.version, "node_id": info.node_id, "backend": info.backend}
            record["capabilities"] = sorted(info.capabilities)
    except OrisunError as error:
        record["problem"] = (isinstance(error, Unavailable) and unreachable(str(error))) or str(error)
        record["error"] = error
    return record


async def boundary_record(client: Client, info: BoundaryInfo) -> dict[str, Any]:
    """A boundary's counts and last position; None where the caller may not see them."""
    record: dict[str, Any] = {
        "boundary": info.name, "status": info.status, "events": None, "position": None, "last_event_at": None,
        "indexes": None, "indexes_building": None, "problem": info.last_error or None,
    }  # fmt: skip
    if info.status != "active":
        return record
    try:
        record["events"] = await client.admin.event_count(info.name)
        event = await last(client, info.name)
        if event is not None:
            record |= {"position": position_record(event.position), "last_event_at": timestamp(event.created_at)}
        indexes = await client.admin.indexes(info.name)
        record |= {"indexes": len(indexes), "indexes_building": sum(not index.ready for index in indexes)}
    except PermissionDenied:
        record["problem"] = record["problem"] or "not all of it may be seen"
    except OrisunError as error:
        record["problem"] = str(error)
    return record


async def boundary_records(client: Client, infos: list[BoundaryInfo]) -> list[dict[str, Any]]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(info: BoundaryInfo) -> dict[str, Any]:
        async with room:
            return await boundary_record(client, info)

    return list(await asyncio.gather(*map(one, infos)))


@command(
    "status",
    shown="""
    orisun status
    orisun status orders payments
    orisun status --server orisun-0:5005,orisun-1:5005,orisun-2:5005
    orisun status --output json | jq '.boundaries[] | {boundary, events}'
    """,
)
@click.argument("boundaries", nargs=-1)
async def status(session: Session, *, boundaries: tuple[str, ...]) -> None:
    """Show the servers and the boundaries: health, versions, counts, positions.

    Each address of --server is asked by itself. Boundaries need the role ADMIN or OPERATIONS. The exit code is 4 when
    no server serves, 1 when something else is wrong; `orisun doctor` looks closer.
    """
    connection, show = session.connection, session.show
    servers = await asyncio.gather(*(server_record(connection, one) for one in addresses(connection.server)))
    errors = [record.pop("error") for record in servers if "error" in record]
    reached = [record for record in servers if record["version"]]
    if not reached and errors:
        raise errors[0]
    told, found = "", list[dict[str, Any]]()
    try:
        infos = await session.client.admin.boundaries()
        if missing := set(boundaries) - {info.name for info in infos}:
            raise NotFound(f'there is no boundary "{min(missing)}"; `orisun boundary list` shows which there are')
        found = await boundary_records(session.client, [i for i in infos if not boundaries or i.name in boundaries])
    except PermissionDenied:
        told = f"{connection.caller} may not list boundaries: that takes the role ADMIN or OPERATIONS."
    if show.for_people:
        show.records(servers, _shown(_SERVERS, servers))
        if found:
            click.echo()
            show.records(found, _shown(_BOUNDARIES, found))
        show.say(told)
    else:
        show.record({"servers": servers, "boundaries": found if not told else None})
    if not any(record["health"] == "serving" for record in servers):
        raise click.exceptions.Exit(Exit.UNAVAILABLE)
    if (
        errors
        or any(record["health"] != "serving" for record in servers)
        or any(r["status"] == "failed" for r in found)
    ):
        raise click.exceptions.Exit(Exit.FAILURE)


def _shown(columns: tuple[Column, ...], records: list[dict[str, Any]]) -> tuple[Column, ...]:
    """The column of problems only where there are some."""
    return columns if any(record["problem"] for record in records) else columns[:-1]
