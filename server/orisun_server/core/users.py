"""Who may call the server: users, API tokens, their roles, and the caller of one rpc."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from ..errors import InvalidArgument

#: Characters of a password.
MIN_PASSWORD, MAX_PASSWORD = 6, 1020
#: Roles of one user or token; each may name boundaries by the hundred, not without end.
_MAX_ROLES = 1_000


class Role(enum.StrEnum):
    """What a user may do; core/access.py tells which rpc and page asks for which role."""

    ADMIN = "ADMIN"
    OPERATIONS = "OPERATIONS"
    USER = "USER"
    READER = "READER"


class User(NamedTuple):
    """A user, without the password's hash: that never leaves admin/users.py."""

    user_id: str
    name: str
    username: str
    #: ``ADMIN``, or limited to a boundary: ``READER:orders``.
    roles: tuple[str, ...]
    #: Grows when the password changes; sessions of an earlier version have ended.
    auth_version: int
    created_at: datetime
    updated_at: datetime


class ApiToken(NamedTuple):
    """A named API token, without its secret or the hash of it."""

    token_id: str
    name: str
    roles: tuple[str, ...]
    created_at: datetime
    expires_at: datetime
    #: User name of who issued it.
    created_by: str


class Caller(NamedTuple):
    """The authenticated user of a call, or what stands for one."""

    user_id: str
    username: str
    #: As in ``User``.
    roles: frozenset[str]
    auth_version: int
    #: How it was authenticated: ``password``, ``token`` (an API token, then ``user_id`` is its id) or ``certificate``.
    via: str = "password"
    #: Address of the machine that calls, without its port; "" where nobody asked for it.
    peer: str = ""

    @property
    def is_admin(self) -> bool:
        return Role.ADMIN in self.roles

    @property
    def is_token(self) -> bool:
        return self.via == "token"


class Session(NamedTuple):
    """An authenticated call, and the token that the client may send instead of its password from now on ("" for
    none)."""

    caller: Caller
    token: str


def parse_roles(roles: Iterable[str]) -> list[str]:
    """Roles in normal form: upper case, each once; ``reader:orders`` becomes ``READER:orders``.

    Raises InvalidArgument that names the first role which is none (contract.md, Users).
    """
    wanted = list(roles)
    if not wanted:
        raise InvalidArgument("invalid request: at least one role is required")
    if len(wanted) > _MAX_ROLES:
        raise InvalidArgument(f"invalid request: {len(wanted)} roles; at most {_MAX_ROLES} are allowed")
    return list(dict.fromkeys(map(_parse_role, wanted)))


def _parse_role(text: str) -> str:
    name, colon, boundary = text.partition(":")
    role = name.upper()
    if role not in Role.__members__:
        raise InvalidArgument(f'invalid request: unsupported role "{text}"; valid roles are {", ".join(Role)}')
    if not colon:
        return role
    if role == Role.ADMIN:
        raise InvalidArgument(
            f'invalid request: unsupported role "{text}"; ADMIN cannot be limited to a boundary, OPERATIONS can'
        )
    if not is_boundary_name(boundary):
        raise InvalidArgument(
            f'invalid request: unsupported role "{text}"; after the colon comes the name of one boundary, as in'
            f" {role}:orders"
        )
    return f"{role}:{boundary}"


def is_boundary_name(text: str) -> bool:
    """Whether a boundary may be called so (contract.md, Boundaries)."""
    return 0 < len(text) <= 63 and text.isascii() and text.replace("_", "a").isalnum() and not text[0].isdigit()
