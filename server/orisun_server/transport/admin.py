"""The service orisun.Admin, without gRPC: requests in, responses out, errors raised."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from orisun_api import admin_pb2 as pb
from orisun_api.eventstore_pb2 import INDEX_STATE_BUILDING, INDEX_STATE_READY

from ..core.access import RPCS, holds
from ..core.audit import BOUNDARY_CREATED
from ..core.users import ApiToken, Caller, User
from ..errors import InvalidArgument
from ..storage.catalog import BoundaryRecord, BoundaryStatus, Catalog
from ..storage.counts import EventCounts
from ..storage.index_catalog import READY
from ..storage.indexes import Indexes
from . import convert
from .indexes import AuditLog, IndexRpcs

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Admin"]
_LIST = RPCS["orisun.Admin/ListBoundaries"]
_MAX_DESCRIPTION = 1_000
_STATUS = {
    BoundaryStatus.PROVISIONING: pb.BOUNDARY_LIFECYCLE_STATUS_PROVISIONING,
    BoundaryStatus.ACTIVE: pb.BOUNDARY_LIFECYCLE_STATUS_ACTIVE,
    BoundaryStatus.FAILED: pb.BOUNDARY_LIFECYCLE_STATUS_FAILED,
}


class UserReader(Protocol):
    """The users; admin/users.py implements it."""

    async def list(self) -> list[User]: ...

    async def count(self) -> int: ...


class PasswordCheck(Protocol):
    """Whom a password belongs to; admin/logins.py implements it."""

    async def check(self, username: str, password: str, peer: str) -> User | None: ...


class AccountAdministration(Protocol):
    """Changes of users and tokens, and the rules for them; admin/accounts.py implements it."""

    async def create(self, name: str, username: str, password: str, roles: Iterable[str], *, by: Caller) -> User: ...

    async def delete(self, user_id: str, *, by: Caller) -> None: ...

    async def set_roles(self, user_id: str, roles: Iterable[str], *, by: Caller) -> User: ...

    async def change_password(self, user_id: str, current: str, new: str, *, by: Caller) -> None: ...

    async def create_token(
        self, name: str, roles: Iterable[str], expires_at: datetime | None, *, by: Caller
    ) -> tuple[str, ApiToken]: ...

    async def list_tokens(self) -> list[ApiToken]: ...

    async def revoke_token(self, token_id: str, *, by: Caller) -> None: ...


class Admin(IndexRpcs):
    """Boundaries, users, API tokens, counts, and indexes once more."""

    def __init__(
        self,
        catalog: Catalog,
        indexes: Indexes,
        *,
        counts: EventCounts,
        users: UserReader,
        passwords: PasswordCheck,
        accounts: AccountAdministration,
        audit: AuditLog,
    ) -> None:
        super().__init__(catalog, indexes, audit)
        self._counts = counts
        self._users, self._passwords, self._accounts = users, passwords, accounts

    async def create_boundary(self, request: pb.CreateBoundaryRequest, caller: Caller) -> pb.CreateBoundaryResponse:
        name = convert.boundary_name(request.name)
        if not request.HasField("placement"):
            raise InvalidArgument("boundary placement is required")
        if "\0" in request.description:
            raise InvalidArgument("boundary description must not contain NUL characters")
        if len(request.description) > _MAX_DESCRIPTION:
            raise InvalidArgument(
                f"boundary description: {len(request.description)} characters; at most {_MAX_DESCRIPTION} are allowed"
            )
        placement = request.placement
        record = await self._catalog.create(
            name, request.description, placement.backend, placement.namespace, request.existed_before_catalog
        )
        await self._audit.acted(BOUNDARY_CREATED, caller, boundary=name, namespace=record.namespace)
        return pb.CreateBoundaryResponse(boundary=_boundary(record))

    async def list_boundaries(self, _request: pb.ListBoundariesRequest, caller: Caller) -> pb.ListBoundariesResponse:
        seen = (record for record in await self._catalog.list() if holds(_LIST, caller, record.name))
        return pb.ListBoundariesResponse(boundaries=map(_boundary, seen))

    async def get_boundary(self, request: pb.GetBoundaryRequest, _: Caller) -> pb.GetBoundaryResponse:
        return pb.GetBoundaryResponse(boundary=_boundary(await self._catalog.find(convert.boundary_name(request.name))))

    async def get_index_build(self, request: pb.GetIndexBuildRequest, _: Caller) -> pb.GetIndexBuildResponse:
        record = await self._indexes.get(self._named(request.boundary, request.name), request.name)
        if record.state == READY:
            return pb.GetIndexBuildResponse(state=INDEX_STATE_READY, percent=100)
        found = await self._indexes.progress(record)
        phase, percent = ("", 0) if found is None else (found.phase, found.percent)
        return pb.GetIndexBuildResponse(state=INDEX_STATE_BUILDING, phase=phase, percent=percent)

    async def create_user(self, request: pb.CreateUserRequest, caller: Caller) -> pb.CreateUserResponse:
        user = await self._accounts.create(request.name, request.username, request.password, request.roles, by=caller)
        return pb.CreateUserResponse(user=_user(user))

    async def delete_user(self, request: pb.DeleteUserRequest, caller: Caller) -> pb.DeleteUserResponse:
        await self._accounts.delete(request.user_id, by=caller)
        return pb.DeleteUserResponse(success=True)

    async def change_password(self, request: pb.ChangePasswordRequest, caller: Caller) -> pb.ChangePasswordResponse:
        await self._accounts.change_password(request.user_id, request.current_password, request.new_password, by=caller)
        return pb.ChangePasswordResponse(success=True)

    async def list_users(self, _request: pb.ListUsersRequest, _: Caller) -> pb.ListUsersResponse:
        return pb.ListUsersResponse(users=map(_user, await self._users.list()))

    async def validate_credentials(
        self, request: pb.ValidateCredentialsRequest, caller: Caller
    ) -> pb.ValidateCredentialsResponse:
        if not request.username or not request.password:
            raise InvalidArgument("username and password are required")
        user = await self._passwords.check(request.username, request.password, caller.peer)
        return pb.ValidateCredentialsResponse(success=user is not None, user=user and _user(user))

    async def get_user_count(self, _request: pb.GetUserCountRequest, _: Caller) -> pb.GetUserCountResponse:
        return pb.GetUserCountResponse(count=await self._users.count())

    async def get_event_count(self, request: pb.GetEventCountRequest, _: Caller) -> pb.GetEventCountResponse:
        if not request.boundary:
            raise InvalidArgument("boundary is required")
        return pb.GetEventCountResponse(count=await self._counts.count(self._boundary(request.boundary)))

    async def set_user_roles(self, request: pb.SetUserRolesRequest, caller: Caller) -> pb.SetUserRolesResponse:
        user = await self._accounts.set_roles(request.user_id, request.roles, by=caller)
        return pb.SetUserRolesResponse(user=_user(user))

    async def create_token(self, request: pb.CreateTokenRequest, caller: Caller) -> pb.CreateTokenResponse:
        expires_at = convert.time(request.expires_at, "expires_at") if request.HasField("expires_at") else None
        token, info = await self._accounts.create_token(request.name, request.roles, expires_at, by=caller)
        return pb.CreateTokenResponse(token=token, info=_token(info))

    async def list_tokens(self, _request: pb.ListTokensRequest, _: Caller) -> pb.ListTokensResponse:
        return pb.ListTokensResponse(tokens=map(_token, await self._accounts.list_tokens()))

    async def revoke_token(self, request: pb.RevokeTokenRequest, caller: Caller) -> pb.RevokeTokenResponse:
        await self._accounts.revoke_token(request.token_id, by=caller)
        return pb.RevokeTokenResponse(success=True)


def _token(token: ApiToken) -> pb.ApiToken:
    return pb.ApiToken(
        token_id=token.token_id,
        name=token.name,
        roles=token.roles,
        created_at=token.created_at,
        expires_at=token.expires_at,
        created_by=token.created_by,
    )


def _user(user: User) -> pb.AdminUser:
    return pb.AdminUser(
        user_id=user.user_id,
        name=user.name,
        username=user.username,
        roles=user.roles,
        created_at=user.created_at,
        updated_at=user.updated_at,
    )


def _boundary(record: BoundaryRecord) -> pb.BoundaryInfo:
    return pb.BoundaryInfo(
        name=record.name,
        description=record.description,
        placement=pb.BoundaryPlacementInput(backend=record.backend, namespace=record.namespace),
        status=_STATUS[record.status],
        existed_before_catalog=record.existed_before_catalog,
        last_error=record.last_error,
        definition_position=convert.position_message(record.definition_position),
        status_position=convert.position_message(record.status_position),
    )
