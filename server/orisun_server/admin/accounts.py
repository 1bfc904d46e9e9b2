"""Changes of users and API tokens: decisions on the events of the admin boundary, recorded only if these still hold.

Each change reads the latest event about accounts, brings the projections up to it, decides on what they say, and
appends its event under the condition that this was still the latest (Command Context Consistency). So two servers
cannot take one user name twice, nor delete the last two administrators at once.
"""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ..core import audit
from ..core.append import Context
from ..core.users import ApiToken, Caller, Role, User, parse_roles
from ..errors import (
    AlreadyExists,
    ContextChanged,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from ..storage.catalog import Catalog
from ..storage.database import Database
from ..storage.names import quote
from ..storage.reads import Reader
from .account_rules import check_an_admin_stays, check_password, checked_token, checked_user
from .audit import Audit
from .logins import Logins
from .passwords import Passwords
from .projector import Projector
from .users import Users, hash_of_secret

#: How API tokens begin, so that scanners of repositories can find them.
TOKEN_PREFIX = "orisun_"  # noqa: S105 - no secret
_TRIES = 20
_CONTEXT = audit.of_types(audit.ACCOUNT_TYPES)
_Decision = Callable[[], tuple[str, Mapping[str, Any]]]


class Accounts:
    """Creates, changes and deletes users and API tokens; ``start`` before use.

    ``by`` is the caller who asks, for the audit log. Everything raises Unavailable without PostgreSQL.
    """

    def __init__(
        self,
        database: Database,
        schema: str,
        *,
        catalog: Catalog,
        admin_boundary: str,
        reader: Reader,
        users: Users,
        logins: Logins,
        passwords: Passwords,
        audit: Audit,
        projectors: Sequence[Projector],
    ) -> None:
        """``schema`` is the admin schema's name, unquoted."""
        self._database, self._credentials = database, f"{quote(schema)}.orisun_credential"
        self._old_users = f"{quote(schema)}.orisun_user"
        self._catalog, self._admin_boundary, self._reader = catalog, admin_boundary, reader
        self._users, self._logins, self._passwords, self._audit = users, logins, passwords, audit
        self._projectors = projectors

    async def start(self) -> None:
        """Brings the projections up to date, from before the first event of an account on."""
        if not await self._projectors[0].exists():
            await self._record_old_users()
        await self._project()

    async def ensure_first(self, username: str, password: str) -> bool:
        """Creates the first administrator when there is no user at all; tells whether it did. Safe among servers."""
        if self._users.all():
            return False
        try:
            await self._create(username, username, password, [Role.ADMIN.value], audit.SERVER, only_first=True)
        except AlreadyExists:
            return False
        return True

    async def create(self, name: str, username: str, password: str, roles: Iterable[str], *, by: Caller) -> User:
        """Creates a user. Raises InvalidArgument or AlreadyExists."""
        wanted = checked_user(name, username, password, roles)
        return await self._create(name, username, password, wanted, by)

    async def delete(self, user_id: str, *, by: Caller) -> None:
        """Deletes a user and ends its sessions. Raises InvalidArgument, NotFound, or FailedPrecondition (the own
        account, the last ADMIN)."""
        if not user_id:
            raise InvalidArgument("user_id is required")
        if user_id == by.user_id:
            raise FailedPrecondition("cannot delete your own account")

        def decide() -> tuple[str, Mapping[str, Any]]:
            user = self._existing(user_id)
            check_an_admin_stays(self._users.all(), user_id, "deleted")
            return audit.USER_DELETED, {"user_id": user_id, "username": user.username}

        await self._change(by, decide)

    async def set_roles(self, user_id: str, roles: Iterable[str], *, by: Caller) -> User:
        """Replaces a user's roles. Raises InvalidArgument, NotFound, or FailedPrecondition (the last ADMIN)."""
        if not user_id:
            raise InvalidArgument("user_id is required")
        wanted = parse_roles(roles)

        def decide() -> tuple[str, Mapping[str, Any]]:
            user = self._existing(user_id)
            if Role.ADMIN not in wanted:
                check_an_admin_stays(self._users.all(), user_id, "demoted")
            return audit.USER_ROLES_CHANGED, {
                "user_id": user_id, "username": user.username, "roles": wanted, "before": list(user.roles)
            }  # fmt: skip

        await self._change(by, decide)
        return self._existing(user_id)

    async def change_password(self, user_id: str, current: str, new: str, *, by: Caller) -> None:
        """Changes the own password and ends the sessions that began before.

        Raises InvalidArgument, PermissionDenied (another's password), Unauthenticated (wrong current password),
        ResourceExhausted (too many wrong ones) or NotFound (deleted meanwhile).
        """
        if not user_id:
            raise InvalidArgument("user_id is required")
        # who is no ADMIN cannot look up their id, but knows their name
        if user_id not in (by.user_id, by.username) or by.is_token:
            raise PermissionDenied("can only change your own password")
        user_id = by.user_id
        if not new:
            raise InvalidArgument("new_password is required")
        check_password("new_password", new)
        user = self._existing(user_id)
        # counted by itself: who is signed in is not held up by others who guess from the same address
        if await self._logins.verify(user.username, current, by.peer, f"session of {user_id}") is None:
            raise Unauthenticated("invalid current password")
        version = user.auth_version + 1

        def decide() -> tuple[str, Mapping[str, Any]]:
            # of two changes at once one wins: the other's current password is no longer the current one
            if self._existing(user_id).auth_version != user.auth_version:
                raise Unauthenticated("invalid current password")
            return audit.PASSWORD_CHANGED, {"user_id": user_id, "username": user.username, "auth_version": version}

        await self._change(by, decide, await self._passwords.hash(new))

    async def enforce(self, username: str, password: str) -> bool:
        """Makes the user an ADMIN with this password; tells whether anything was to do. Safe among servers.

        Raises InvalidArgument when the password is too short.
        """
        check_password("password", password)
        user = self._users.named(username)
        if user is None:
            try:
                await self._create(username, username, password, [Role.ADMIN.value], audit.SERVER)
            except AlreadyExists:
                return await self.enforce(username, password)
            return True
        user_id = user.user_id
        raised = Role.ADMIN not in user.roles
        if raised:
            await self.set_roles(user_id, [*user.roles, Role.ADMIN], by=audit.SERVER)
        if await self._users.verify(username, password) is not None:
            return raised

        def decide() -> tuple[str, Mapping[str, Any]]:
            version = self._existing(user_id).auth_version + 1
            return audit.PASSWORD_CHANGED, {"user_id": user_id, "username": username, "auth_version": version}

        await self._change(audit.SERVER, decide, await self._passwords.hash(password))
        return True

    async def create_token(
        self, name: str, roles: Iterable[str], expires_at: datetime | None, *, by: Caller
    ) -> tuple[str, ApiToken]:
        """Issues an API token: what its owner sends, which is told this once, and the rest about it.

        Raises InvalidArgument or AlreadyExists.
        """
        wanted, until = checked_token(name, roles, expires_at)
        token_id, secret = uuid.uuid4().hex, secrets.token_urlsafe(32)

        def decide() -> tuple[str, Mapping[str, Any]]:
            if any(token.name == name for token in self._users.tokens()):
                raise AlreadyExists(f"failed to create token: name {name} already exists; revoke that token first")
            return audit.TOKEN_CREATED, {
                "token_id": token_id, "name": name, "roles": wanted, "expires_at": until.isoformat(),
                "created_by": by.username,
            }  # fmt: skip

        await self._change(by, decide, hash_of_secret(secret))
        made = next((token for token in self._users.tokens() if token.token_id == token_id), None)
        if made is None:
            raise NotFound("token not found: it was revoked meanwhile")
        return f"{TOKEN_PREFIX}{token_id}_{secret}", made

    async def revoke_token(self, token_id: str, *, by: Caller) -> None:
        """Revokes an API token; its calls and streams end. Raises InvalidArgument or NotFound."""
        if not token_id:
            raise InvalidArgument("token_id is required")

        def decide() -> tuple[str, Mapping[str, Any]]:
            token = next((token for token in self._users.tokens() if token.token_id == token_id), None)
            if token is None:
                raise NotFound("token not found")
            return audit.TOKEN_REVOKED, {"token_id": token_id, "name": token.name}

        await self._change(by, decide)

    async def list_tokens(self) -> list[ApiToken]:
        """The API tokens by name, those that have expired included."""
        await self._users.refresh()
        return sorted(self._users.tokens(), key=lambda token: token.name)

    async def _create(
        self, name: str, username: str, password: str, roles: list[str], by: Caller, *, only_first: bool = False
    ) -> User:
        user_id = str(uuid.uuid4())

        def decide() -> tuple[str, Mapping[str, Any]]:
            if self._users.named(username) is not None or (only_first and self._users.all()):
                raise AlreadyExists(f"failed to create user: username {username} already exists")
            return audit.USER_CREATED, _created(user_id, name, username, roles, 1)

        await self._change(by, decide, await self._passwords.hash(password))
        return self._existing(user_id)

    def _existing(self, user_id: str) -> User:
        user = self._users.get(user_id)
        if user is None:
            raise NotFound("user not found")
        return user

    async def _change(self, by: Caller, decide: _Decision, new_hash: str | None = None) -> None:
        """Records what ``decide`` makes of the users as they are, and has it take effect.

        ``new_hash`` is the password's or token's; it counts only once the event that names it is there.
        """
        boundary = self._catalog.get(self._admin_boundary)
        credential_id = None if new_hash is None else await self._keep(new_hash)
        try:
            for _ in range(_TRIES):
                _, latest = await self._reader.latest(boundary, _CONTEXT)
                await self._project()
                event_type, data = decide()
                if credential_id is not None:
                    data = {**data, "credential_id": credential_id}
                with contextlib.suppress(ContextChanged):
                    await self._audit.append(event_type, by, data, Context(latest, _CONTEXT))
                    break
            else:
                raise FailedPrecondition("the accounts change too often at this moment; try again")
        except (InvalidArgument, AlreadyExists, NotFound, FailedPrecondition, Unauthenticated):
            # nothing was recorded; after any other error it may have been, and the hash stays
            if credential_id is not None:
                await self._execute(f"DELETE FROM {self._credentials} WHERE credential_id = $1", credential_id)
            raise
        await self._project()

    async def _keep(self, new_hash: str) -> str:
        credential_id = str(uuid.uuid4())
        await self._execute(
            f"INSERT INTO {self._credentials} (credential_id, hash) VALUES ($1, $2)", credential_id, new_hash
        )
        return credential_id

    async def _execute(self, statement: str, *arguments: object) -> None:
        with self._database.guard():
            await self._database.admin.execute(statement, *arguments)

    async def _project(self) -> None:
        for projector in self._projectors:
            await projector.catch_up()
        await self._users.refresh()

    async def _record_old_users(self) -> None:
        """Users of a store from before there were events for them; a repeat changes nothing."""
        with self._database.guard():
            rows = await self._database.admin.fetch(
                f"SELECT user_id, name, username, roles, auth_version FROM {self._old_users} ORDER BY created_at"
            )
        for row in rows:
            data = {**_created(*row), "credential_id": row["user_id"]}
            await self._audit.append(audit.USER_CREATED, audit.SERVER, data, event_id=f"user-created:{row['user_id']}")


def _created(user_id: str, name: str, username: str, roles: Sequence[str], version: int) -> dict[str, Any]:
    return {
        "user_id": user_id, "name": name, "username": username, "roles": list(roles), "auth_version": version
    }  # fmt: skip
