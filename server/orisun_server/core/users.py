"""Who may call the server: users, their roles, and the caller of one rpc."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import NamedTuple


class Role(enum.StrEnum):
    """What a user may do; transport/roles.py tells which rpc asks for which role."""

    ADMIN = "ADMIN"
    OPERATIONS = "OPERATIONS"
    USER = "USER"
    READER = "READER"


class User(NamedTuple):
    """A user, without the password's hash: that never leaves admin/users.py."""

    user_id: str
    name: str
    username: str
    roles: tuple[str, ...]
    #: Grows when the password changes; sessions of an earlier version have ended.
    auth_version: int
    created_at: datetime
    updated_at: datetime


class Caller(NamedTuple):
    """The authenticated user of a call."""

    user_id: str
    username: str
    roles: frozenset[str]
    auth_version: int

    @property
    def is_admin(self) -> bool:
        return Role.ADMIN in self.roles


class Session(NamedTuple):
    """An authenticated call, and the token that the client may send instead of its password from now on."""

    caller: Caller
    token: str
