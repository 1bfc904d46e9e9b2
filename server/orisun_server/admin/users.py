"""Users: the rules for them, their rows in the admin schema, and the copy that every server keeps of them.

The copy is what calls are authenticated with, so that no call waits for PostgreSQL. It is loaded again when the version
of the topic 'user' has grown, which one statement asks twice a second: what one server changes ends sessions everywhere
within a second (contract.md, Authentication).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import asyncpg
import structlog

from ..core.users import Role, User
from ..errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from ..storage.database import Database
from ..storage.names import quote
from ..tasks import end
from .passwords import Passwords

_POLL_INTERVAL = 0.5
_MAX_TEXT = 255
_COLUMNS = "user_id, name, username, roles, auth_version, created_at, updated_at"

_log = structlog.get_logger(__name__)


class Users:
    """The users of a cluster; ``start`` before use."""

    def __init__(self, database: Database, schema: str, passwords: Passwords) -> None:
        """``schema`` is the admin schema's name, unquoted."""
        self._database = database
        self._passwords = passwords
        self._schema = quote(schema)
        self._table = f"{self._schema}.orisun_user"
        self._version = -1
        self._users: dict[str, User] = {}
        self._hashes: dict[str, tuple[User, str]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._refreshing = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the users and keeps the copy fresh from then on. Raises Unavailable without PostgreSQL."""
        await self.refresh()
        _log.info("User projector started")
        self._poller = asyncio.create_task(self._poll(), name="users")

    async def stop(self) -> None:
        if self._poller is not None:
            await end([self._poller])
        self._passwords.close()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls ``listener()`` after the copy has changed."""
        self._listeners.append(listener)

    def get(self, user_id: str) -> User | None:
        """A user of the copy."""
        return self._users.get(user_id)

    async def ensure_first(self, username: str, password: str) -> bool:
        """Creates the first administrator when there is no user at all; tells whether it did. Safe among servers."""
        if self._users:
            return False
        password_hash = await self._passwords.hash(password)
        with self._database.guard():
            async with self._database.admin.acquire() as connection, connection.transaction():
                # two servers that start at once may be given different names
                await connection.execute(f"LOCK TABLE {self._table} IN SHARE ROW EXCLUSIVE MODE")
                created = await connection.fetchval(
                    f"INSERT INTO {self._table} (user_id, name, username, password_hash, roles)"
                    f" SELECT $1, $2, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM {self._table}) RETURNING true",
                    *(str(uuid.uuid4()), username, password_hash, [Role.ADMIN.value]),
                )
        await self.refresh()
        return bool(created)

    async def verify(self, username: str, password: str) -> User | None:
        """The user with that name and password, else None; takes the same time for a name that nobody has.

        Raises ResourceExhausted when too many passwords are being checked.
        """
        known = self._hashes.get(username)
        if not await self._passwords.verify(username, known[1] if known else None, password) or known is None:
            return None
        # not when it was deleted or changed while the password was being checked
        return known[0] if self._hashes.get(username) == known else None

    async def create(self, name: str, username: str, password: str, roles: Iterable[str]) -> User:
        """Creates a user. Raises InvalidArgument or AlreadyExists."""
        wanted = _checked(name, username, password, list(roles))
        password_hash = await self._passwords.hash(password)
        try:
            row = await self._fetchrow(
                f"INSERT INTO {self._table} (user_id, name, username, password_hash, roles)"
                f" VALUES ($1, $2, $3, $4, $5) RETURNING {_COLUMNS}",
                *(str(uuid.uuid4()), name, username, password_hash, wanted),
            )
        except asyncpg.UniqueViolationError:
            raise AlreadyExists(f"failed to create user: username {username} already exists") from None
        await self.refresh()
        return _user(row)

    async def delete(self, user_id: str, *, by: str) -> None:
        """Deletes a user and ends its sessions; ``by`` is the id of the user who asks.

        Raises InvalidArgument, FailedPrecondition (the own account) or NotFound.
        """
        if not user_id:
            raise InvalidArgument("user_id is required")
        if user_id == by:
            raise FailedPrecondition("cannot delete your own account")
        if "\0" in user_id or not await self._fetchrow(
            f"DELETE FROM {self._table} WHERE user_id = $1 RETURNING user_id", user_id
        ):
            raise NotFound("user not found")
        await self.refresh()

    async def change_password(self, user_id: str, current: str, new: str, *, by: str) -> None:
        """Changes the own password and ends the sessions that began before.

        Raises InvalidArgument, PermissionDenied (another's password), Unauthenticated (wrong current password) or
        NotFound (deleted meanwhile).
        """
        if not user_id:
            raise InvalidArgument("user_id is required")
        if user_id != by:
            raise PermissionDenied("can only change your own password")
        if not new:
            raise InvalidArgument("new_password is required")
        _check_password("new_password", new)
        user = self._users.get(user_id)
        if user is None:
            raise NotFound("user not found")
        if await self.verify(user.username, current) is None:
            raise Unauthenticated("invalid current password")
        password_hash = await self._passwords.hash(new)
        # of two changes at once one wins: the other's current password is no longer the current one
        if not await self._fetchrow(
            f"UPDATE {self._table} SET password_hash = $2, auth_version = auth_version + 1, updated_at = now()"
            " WHERE user_id = $1 AND auth_version = $3 RETURNING user_id",
            *(user_id, password_hash, user.auth_version),
        ):
            raise Unauthenticated("invalid current password")
        await self.refresh()

    async def list(self) -> list[User]:
        """All users by user name, from PostgreSQL."""
        with self._database.guard():
            rows = await self._database.admin.fetch(f"SELECT {_COLUMNS} FROM {self._table} ORDER BY username")
        return [_user(row) for row in rows]

    async def count(self) -> int:
        """Number of users, from PostgreSQL."""
        row = await self._fetchrow(f"SELECT count(*) FROM {self._table}")
        return int(row[0])

    async def refresh(self) -> None:
        """Loads the users when they have changed since the last look."""
        # one at a time: of two looks at once the later answer could be the older one
        async with self._refreshing:
            with self._database.guard():
                rows = await self._database.admin.fetch(
                    f"SELECT v.version, u.* FROM {self._schema}.orisun_version v"
                    f" LEFT JOIN {self._table} u ON v.version <> $1 WHERE v.topic = 'user'",
                    self._version,
                )
            if rows[0]["version"] != self._version:
                self._take(rows)

    def _take(self, rows: Sequence[Any]) -> None:
        self._version = rows[0]["version"]
        known = [(_user(row), row["password_hash"]) for row in rows if row["user_id"] is not None]
        self._users = {user.user_id: user for user, _ in known}
        self._hashes = {user.username: (user, password_hash) for user, password_hash in known}
        for listener in self._listeners:
            listener()

    async def _poll(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(_POLL_INTERVAL)
            try:
                await self.refresh()
                failing = False
            except Exception as problem:  # the copy serves until PostgreSQL answers again
                if not failing:
                    _log.warning("Failed to start user projection (likely due to lock contention)")
                    _log.warning("users cannot be read; the last known ones are used", reason=type(problem).__name__)
                failing = True

    async def _fetchrow(self, statement: str, *arguments: Any) -> Any:
        with self._database.guard():
            return await self._database.admin.fetchrow(statement, *arguments)


def _user(row: Any) -> User:
    return User(
        row["user_id"],
        row["name"],
        row["username"],
        tuple(row["roles"]),
        row["auth_version"],
        row["created_at"],
        row["updated_at"],
    )


def _checked(name: str, username: str, password: str, roles: list[str]) -> list[str]:
    """The roles in upper case; raises InvalidArgument for what breaks a rule, in the order of contract.md."""
    _check_text("name", name)
    _check_text("username", username)
    if len(username) < 3:
        raise _invalid("username must be at least 3 characters")
    if ":" in username:
        raise _invalid("username must not contain a colon")
    if not password:
        raise _invalid("password is required")
    _check_password("password", password)
    if not roles:
        raise _invalid("at least one role is required")
    for role in roles:
        if role.upper() not in Role.__members__:
            raise _invalid(f'unsupported role "{role}"; valid roles are {", ".join(Role)}')
    return list(dict.fromkeys(role.upper() for role in roles))


def _check_text(field: str, text: str) -> None:
    if not text.strip():
        raise _invalid(f"{field} is required")
    if len(text) > _MAX_TEXT or "\0" in text:
        raise _invalid(f"{field} must be at most {_MAX_TEXT} characters, without NUL characters")


def _check_password(field: str, password: str) -> None:
    if len(password) < 6:
        raise _invalid(f"{field} must be at least 6 characters")
    if len(password) > 4 * _MAX_TEXT:
        raise _invalid(f"{field} must be at most {4 * _MAX_TEXT} characters")


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument(f"invalid request: {problem}")
