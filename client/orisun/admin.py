"""Administration: boundaries, indexes, users and API tokens."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from orisun_api import admin_pb2 as admin_pb
from orisun_api import eventstore_pb2 as pb

from .administered import (
    ApiToken,
    BoundaryInfo,
    Index,
    IndexBuild,
    IndexCondition,
    IndexField,
    NewApiToken,
    User,
    boundary_of,
    condition_message,
    field_message,
    index_of,
    token_of,
    user_of,
)
from .calls import Calls
from .errors import DeadlineExceeded, FailedPrecondition, refuse

T = TypeVar("T")
#: Seconds between two looks at something that is being made.
_AGAIN = 0.05


class Admin:
    """Boundaries, indexes, users and API tokens; ``client.admin`` is it. Most of it needs the role ADMIN."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create_boundary(
        self,
        name: str,
        *,
        schema: str = "public",
        description: str = "",
        existed_before: bool = False,
        timeout: float = 30.0,
    ) -> BoundaryInfo:
        """Create a boundary in a PostgreSQL schema and wait until it is active; other servers follow within seconds.

        ``existed_before`` takes over tables that are there already. Raises AlreadyExists, InvalidArgument (the name or
        the schema), FailedPrecondition (it could not be made, and why) and DeadlineExceeded.
        """
        request = admin_pb.CreateBoundaryRequest(
            name=name,
            description=description,
            placement=admin_pb.BoundaryPlacementInput(backend="postgres", namespace=schema),
            existed_before_catalog=existed_before,
        )
        deadline = time.monotonic() + timeout
        made = boundary_of((await self._admin("CreateBoundary", request, repeatable=False)).boundary)
        while made.status == "provisioning":
            _check_time(deadline, f'boundary "{name}" is not active yet')
            await asyncio.sleep(_AGAIN)
            made = await self.boundary(name)
        if made.status == "failed":
            raise FailedPrecondition(f'boundary "{name}" could not be created: {made.last_error}')
        return made

    async def boundaries(self) -> list[BoundaryInfo]:
        """The boundaries, by name."""
        found = await self._admin("ListBoundaries", admin_pb.ListBoundariesRequest())
        return [boundary_of(info) for info in found.boundaries]

    async def boundary(self, name: str) -> BoundaryInfo:
        """One boundary. Raises NotFound."""
        return boundary_of((await self._admin("GetBoundary", admin_pb.GetBoundaryRequest(name=name))).boundary)

    async def event_count(self, boundary: str) -> int:
        """How many events a boundary has; at most a second late under load."""
        return int((await self._admin("GetEventCount", admin_pb.GetEventCountRequest(boundary=boundary))).count)

    async def create_index(
        self,
        boundary: str,
        name: str,
        fields: Iterable[str | IndexField],
        *,
        conditions: Iterable[IndexCondition | tuple[str, str, str]] = (),
        any_condition: bool = False,
        timeout: float | None = 300.0,
    ) -> Index:
        """Create an index over keys of the events' data and wait until it is in use (``timeout`` None: do not wait).

        One over the keys that criteria name, in any order, makes reads and append conditions cost one look-up. Creating
        it again with the same shape changes nothing; with another one it raises AlreadyExists. Raises DeadlineExceeded
        when the build takes longer than ``timeout`` seconds: it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        request = pb.CreateIndexRequest(
            boundary=boundary,
            name=name,
            fields=[field_message(item) for item in _listed("fields", fields)],
            conditions=[condition_message(item) for item in conditions],
            condition_combinator=pb.OR if any_condition else pb.AND,
        )
        await self._calls.unary("events", "CreateIndex", request)
        while True:
            index = await self.index(boundary, name)
            if index.ready or deadline is None:
                return index
            _check_time(deadline, f'index "{name}" of boundary "{boundary}" is still being built')
            await asyncio.sleep(_AGAIN)

    async def drop_index(self, boundary: str, name: str) -> None:
        """Drop an index; one that is not there is fine."""
        await self._calls.unary("events", "DropIndex", pb.DropIndexRequest(boundary=boundary, name=name))

    async def indexes(self, boundary: str) -> list[Index]:
        """The indexes of a boundary, by name."""
        found = await self._calls.unary("events", "ListIndexes", pb.ListIndexesRequest(boundary=boundary))
        return [index_of(definition) for definition in found.indexes]

    async def index(self, boundary: str, name: str) -> Index:
        """One index. Raises NotFound."""
        request = pb.GetIndexRequest(boundary=boundary, name=name)
        return index_of((await self._calls.unary("events", "GetIndex", request)).index)

    async def index_build(self, boundary: str, name: str) -> IndexBuild:
        """How far the build of an index is. Raises NotFound, and Unimplemented from older servers."""
        request = admin_pb.GetIndexBuildRequest(boundary=boundary, name=name)
        found = await self._admin("GetIndexBuild", request)
        return IndexBuild(found.state == pb.INDEX_STATE_READY, found.percent, found.phase)

    async def create_user(self, username: str, password: str, roles: Iterable[str], *, name: str = "") -> User:
        """Create a user with roles ADMIN, OPERATIONS, USER or READER; all but ADMIN may be limited to a boundary, as in
        ``READER:orders``. Raises AlreadyExists, InvalidArgument."""
        request = admin_pb.CreateUserRequest(
            name=name or username, username=username, password=password, roles=_listed("roles", roles)
        )
        return user_of((await self._admin("CreateUser", request, repeatable=False)).user)

    async def delete_user(self, user_id: str) -> None:
        """Delete a user; its sessions end at once. Raises NotFound, FailedPrecondition for oneself."""
        await self._admin("DeleteUser", admin_pb.DeleteUserRequest(user_id=user_id), repeatable=False)

    async def set_roles(self, user_id: str, roles: Iterable[str]) -> User:
        """Replace a user's roles; they hold at once. The last ADMIN stays one."""
        request = admin_pb.SetUserRolesRequest(user_id=user_id, roles=_listed("roles", roles))
        return user_of((await self._admin("SetUserRoles", request)).user)

    async def change_password(self, user_id: str, current: str, new: str) -> None:
        """Change one's own password; all sessions end, this client's too: connect again with the new one.

        ``user_id`` may be one's user name.
        """
        request = admin_pb.ChangePasswordRequest(user_id=user_id, current_password=current, new_password=new)
        await self._admin("ChangePassword", request, repeatable=False)

    async def users(self) -> list[User]:
        """The users, by user name."""
        return [user_of(user) for user in (await self._admin("ListUsers", admin_pb.ListUsersRequest())).users]

    async def user_count(self) -> int:
        """How many users there are."""
        return int((await self._admin("GetUserCount", admin_pb.GetUserCountRequest())).count)

    async def validate_credentials(self, username: str, password: str) -> User | None:
        """The user whom they belong to, None when they do not belong together."""
        request = admin_pb.ValidateCredentialsRequest(username=username, password=password)
        answer = await self._admin("ValidateCredentials", request)
        return user_of(answer.user) if answer.success else None

    async def create_token(self, name: str, roles: Iterable[str], expires_at: datetime.datetime) -> NewApiToken:
        """Issue an API token that holds until ``expires_at`` (with a time zone); its secret is told this once."""
        if expires_at.tzinfo is None:
            refuse("expires_at needs a time zone, as datetime.now(UTC) + timedelta(days=90) has")
        expiry = Timestamp()
        expiry.FromDatetime(expires_at)
        request = admin_pb.CreateTokenRequest(name=name, roles=_listed("roles", roles), expires_at=expiry)
        answer = await self._admin("CreateToken", request, repeatable=False)
        return NewApiToken(token_of(answer.info), answer.token)

    async def tokens(self) -> list[ApiToken]:
        """The API tokens that were not revoked, by name; never their secrets."""
        return [token_of(token) for token in (await self._admin("ListTokens", admin_pb.ListTokensRequest())).tokens]

    async def revoke_token(self, token_id: str) -> None:
        """Revoke an API token; it is refused everywhere within a second. Raises NotFound."""
        await self._admin("RevokeToken", admin_pb.RevokeTokenRequest(token_id=token_id), repeatable=False)

    async def _admin(self, rpc: str, request: Any, *, repeatable: bool = True) -> Any:
        return await self._calls.unary("admin", rpc, request, repeatable=repeatable)


def _listed(what: str, given: Iterable[T]) -> list[T]:
    """A list of what was given; a text alone is a mistake, not its letters."""
    if isinstance(given, str):
        refuse(f'{what} is a list: ["{given}"]')
    return list(given)


def _check_time(deadline: float, message: str) -> None:
    if time.monotonic() > deadline:
        raise DeadlineExceeded(message)
