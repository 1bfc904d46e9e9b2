"""``orisun user``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from ..administered import User
from ..errors import NotFound, PermissionDenied
from .base import Session, command, confirmed, group
from .connection import read_secret
from .output import Column, Record
from .raw import seconds, timestamp

user = group(
    "user",
    "Look after users, their roles and passwords.",
    """
    orisun user list
    orisun user create reports --role READER:orders
    orisun user roles reports READER:orders READER:payments
    orisun user password
    orisun user delete reports
    """,
)

_COLUMNS = (
    Column("USERNAME", "username"),
    Column("ROLES", "roles"),
    Column("NAME", "name"),
    Column("CREATED (UTC)", lambda record: seconds(record["created_at"])),
    Column("USER ID", "user_id"),
)


def _record(one: User) -> Record:
    return {
        "user_id": one.user_id,
        "username": one.username,
        "name": one.name,
        "roles": list(one.roles),
        "created_at": timestamp(one.created_at),
        "updated_at": timestamp(one.updated_at),
    }


def _new_password(context: click.Context, _: click.Parameter, value: str | None) -> Any:
    if value is not None or context.resilient_parsing:
        return value if value is None else read_secret(value)
    if not sys.stdin.isatty():
        raise click.UsageError(
            "there is no terminal to ask for the new password at: give --new-password-file, - for standard input"
        )
    return click.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)


_new_password_option = click.option(
    "--new-password-file", "new_password", callback=_new_password, envvar="ORISUN_NEW_PASSWORD_FILE", show_envvar=True,
    metavar="FILE", help="Its first line is the new password; - reads standard input.  [default: asked for]",
)  # fmt: skip


@command("list", within=user, shown="orisun user list --output json")
async def list_users(session: Session) -> None:
    """List the users. Needs the role ADMIN."""
    session.show.records([_record(one) for one in await session.client.admin.users()], _COLUMNS, empty="No users.")


@command(
    "create",
    within=user,
    shown="""
    orisun user create reports --role READER:orders --role READER:payments
    orisun user create shop --role USER --name 'The shop' --new-password-file shop.secret
    pwgen 24 1 | tee shop.secret | orisun user create shop --role USER --new-password-file -
    """,
)
@click.argument("user_name", metavar="USERNAME")
@click.option(
    "--role", "roles", multiple=True, required=True, metavar="ROLE[:BOUNDARY]",
    help="ADMIN, OPERATIONS, USER or READER; all but ADMIN may be limited to a boundary. Repeatable.",
)  # fmt: skip
@click.option("--name", default="", metavar="TEXT", help="A name for people.")
@_new_password_option
async def create(session: Session, *, user_name: str, roles: tuple[str, ...], name: str, new_password: str) -> None:
    """Create a user. Needs the role ADMIN."""
    made = await session.client.admin.create_user(user_name, new_password, roles, name=name)
    session.show.record(_record(made), _COLUMNS)
    await tell_of_unknown(session, made.roles)


@command("delete", within=user, shown="orisun user delete reports --yes")
@click.argument("user_name", metavar="USERNAME")
@confirmed('Delete user "{user_name}"? Their sessions end at once.')
async def delete(session: Session, *, user_name: str) -> None:
    """Delete a user, by user name or id; their sessions end at once. Needs the role ADMIN."""
    await session.client.admin.delete_user((await _find(session, user_name)).user_id)
    session.show.say(f'User "{user_name}" is deleted.')


@command(
    "roles",
    within=user,
    shown="""
    orisun user roles reports READER:orders READER:payments
    orisun user roles ann ADMIN
    """,
)
@click.argument("user_name", metavar="USERNAME")
@click.argument("roles", nargs=-1, required=True, metavar="ROLE[:BOUNDARY]...")
async def roles_(session: Session, *, user_name: str, roles: tuple[str, ...]) -> None:
    """Replace a user's roles. They hold at once; the last ADMIN stays one. Needs the role ADMIN."""
    changed = await session.client.admin.set_roles((await _find(session, user_name)).user_id, roles)
    session.show.record(_record(changed), _COLUMNS)
    await tell_of_unknown(session, changed.roles)


@command(
    "password",
    within=user,
    shown="""
    orisun user password
    orisun user password --username ann --new-password-file ann.secret
    """,
)
@_new_password_option
async def password(session: Session, *, new_password: str) -> None:
    """Change your own password: that of the user who calls. All your sessions end."""
    connection = session.connection
    if connection.username is None or connection.password is None:
        raise PermissionDenied("a password is changed by who signs in with it")
    await session.client.admin.change_password(connection.username, connection.password, new_password)
    session.show.say(f'The password of user "{connection.username}" is changed. All sessions of before have ended.')


async def tell_of_unknown(session: Session, roles: Iterable[str]) -> None:
    """Says which boundaries of roles there are not: they may come later, or be misspelt."""
    named = {name for role in roles if (name := role.partition(":")[2])}
    if missing := sorted(named - {one.name for one in await session.client.admin.boundaries()} if named else ()):
        session.show.say(f"There is no boundary {', '.join(missing)} yet: the role holds once there is.")


async def _find(session: Session, username: str) -> User:
    users = await session.client.admin.users()
    for one in users:
        if one.username == username:
            return one
    for one in users:
        if one.user_id == username:
            return one
    raise NotFound(f'there is no user "{username}"; `orisun user list` shows them')
