"""``orisun token``."""

from __future__ import annotations

import datetime
import re
from typing import Any

import click

from ..administered import ApiToken
from ..errors import NotFound
from .base import Session, command, confirmed, group
from .output import Column, Record, write
from .raw import seconds, timestamp
from .user import tell_of_unknown

token = group(
    "token",
    "Issue and revoke API tokens, for programs that sign in without a user.",
    """
    orisun token create billing --role USER:payments --expires 90d
    orisun token list
    orisun token revoke billing
    """,
)

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}

_COLUMNS = (
    Column("NAME", "name"),
    Column("ROLES", "roles"),
    Column("STATE", "state"),
    Column("EXPIRES (UTC)", lambda record: seconds(record["expires_at"])),
    Column("CREATED (UTC)", lambda record: seconds(record["created_at"])),
    Column("BY", "created_by"),
    Column("TOKEN ID", "token_id"),
)


class _Expiry(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime.datetime:
        if isinstance(value, datetime.datetime):
            return value
        try:
            if (found := re.fullmatch(r"(\d+)([hdw])", str(value))) is not None:
                span = datetime.timedelta(**{_UNITS[found[2]]: int(found[1])})
                return datetime.datetime.now(datetime.UTC) + span
            moment = datetime.datetime.fromisoformat(str(value))
        except (ValueError, OverflowError):
            self.fail(f'"{value}" is no span such as 12h, 90d or 8w, and no date such as 2027-01-31', param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _record(one: ApiToken) -> Record:
    expired = one.expires_at <= datetime.datetime.now(datetime.UTC)
    return {
        "token_id": one.token_id,
        "name": one.name,
        "roles": list(one.roles),
        "state": "expired" if expired else "valid",
        "created_at": timestamp(one.created_at),
        "expires_at": timestamp(one.expires_at),
        "created_by": one.created_by,
    }


@command(
    "create",
    within=token,
    shown="""
    orisun token create billing --role USER:payments --expires 90d
    orisun token create backup --role READER --expires 2027-01-31 > backup.token
    ORISUN_CLIENT_TOKEN=$(cat backup.token) orisun events export orders --file orders.jsonl
    """,
)
@click.argument("name")
@click.option(
    "--role", "roles", multiple=True, required=True, metavar="ROLE[:BOUNDARY]",
    help="ADMIN, OPERATIONS, USER or READER; all but ADMIN may be limited to a boundary. Repeatable.",
)  # fmt: skip
@click.option(
    "--expires", "expires_at", type=_Expiry(), required=True, metavar="TIME",
    help="When it ends: 12h, 90d, 8w from now, or a date such as 2027-01-31 (UTC).",
)  # fmt: skip
async def create(session: Session, *, name: str, roles: tuple[str, ...], expires_at: datetime.datetime) -> None:
    """Issue a token, and print it: this once, since the server keeps only its hash. Needs the role ADMIN."""
    made = await session.client.admin.create_token(name, roles, expires_at)
    if session.show.for_people:
        session.show.say(
            f'Token "{name}" holds until {seconds(timestamp(made.info.expires_at))} UTC. It is shown this once; '
            "programs send it as ORISUN_CLIENT_TOKEN or `authorization: Bearer ...`:"
        )
        write(made.token + "\n")
    else:
        session.show.record({**_record(made.info), "token": made.token})
    await tell_of_unknown(session, made.info.roles)


@command("list", within=token, shown="orisun token list")
async def list_tokens(session: Session) -> None:
    """List the tokens that were not revoked, never their secrets. Needs the role ADMIN."""
    found = await session.client.admin.tokens()
    session.show.records([_record(one) for one in found], _COLUMNS, empty="No tokens.")


@command("revoke", within=token, shown="orisun token revoke billing --yes")
@click.argument("name")
@confirmed('Revoke token "{name}"? Programs that use it are refused within a second.')
async def revoke(session: Session, *, name: str) -> None:
    """Revoke a token, by name or id. It is refused everywhere within a second. Needs the role ADMIN."""
    for one in await session.client.admin.tokens():
        if name in (one.name, one.token_id):
            await session.client.admin.revoke_token(one.token_id)
            session.show.say(f'Token "{one.name}" is revoked.')
            return
    raise NotFound(f'there is no token "{name}"; `orisun token list` shows them')
