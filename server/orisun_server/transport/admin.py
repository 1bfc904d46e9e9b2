"""The service orisun.Admin, without gRPC: requests in, responses out, errors raised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from orisun_api import admin_pb2 as pb

from ..core.users import Caller, User
from ..errors import InvalidArgument
from ..storage.catalog import BoundaryRecord, BoundaryStatus, Catalog
from ..storage.indexes import Indexes
from ..storage.reads import Reader
from . import convert
from .indexes import IndexRpcs

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Admin"]
_STATUS = {
    BoundaryStatus.PROVISIONING: pb.BOUNDARY_LIFECYCLE_STATUS_PROVISIONING,
    BoundaryStatus.ACTIVE: pb.BOUNDARY_LIFECYCLE_STATUS_ACTIVE,
    BoundaryStatus.FAILED: pb.BOUNDARY_LIFECYCLE_STATUS_FAILED,
}


class UserAdministration(Protocol):
    """The users and the rules for them; admin/users.py implements it."""

    async def create(self, name: str, username: str, password: str, roles: Iterable[str]) -> User: ...

    async def delete(self, user_id: str, *, by: str) -> None: ...

    async def change_password(self, user_id: str, current: str, new: str, *, by: str) -> None: ...

    async def list(self) -> list[User]: ...

    async def verify(self, username: str, password: str) -> User | None: ...

    async def count(self) -> int: ...


class Admin(IndexRpcs):
    """Boundaries, users, counts, and indexes once more."""

    def __init__(self, catalog: Catalog, indexes: Indexes, reader: Reader, users: UserAdministration) -> None:
        super().__init__(catalog, indexes)
        self._reader = reader
        self._users = users

    async def create_boundary(self, request: pb.CreateBoundaryRequest, _: Caller) -> pb.CreateBoundaryResponse:
        name = convert.boundary_name(request.name)
        if not request.HasField("placement"):
            raise InvalidArgument("boundary placement is required")
        if "\0" in request.description:
            raise InvalidArgument("boundary description must not contain NUL characters")
        placement = request.placement
        record = await self._catalog.create(
            name, request.description, placement.backend, placement.namespace, request.existed_before_catalog
        )
        return pb.CreateBoundaryResponse(boundary=_boundary(record))

    async def list_boundaries(self, _request: pb.ListBoundariesRequest, _: Caller) -> pb.ListBoundariesResponse:
        return pb.ListBoundariesResponse(boundaries=map(_boundary, await self._catalog.list()))

    async def get_boundary(self, request: pb.GetBoundaryRequest, _: Caller) -> pb.GetBoundaryResponse:
        return pb.GetBoundaryResponse(boundary=_boundary(await self._catalog.find(convert.boundary_name(request.name))))

    async def create_user(self, request: pb.CreateUserRequest, _: Caller) -> pb.CreateUserResponse:
        user = await self._users.create(request.name, request.username, request.password, request.roles)
        return pb.CreateUserResponse(user=_user(user))

    async def delete_user(self, request: pb.DeleteUserRequest, caller: Caller) -> pb.DeleteUserResponse:
        await self._users.delete(request.user_id, by=caller.user_id)
        return pb.DeleteUserResponse(success=True)

    async def change_password(self, request: pb.ChangePasswordRequest, caller: Caller) -> pb.ChangePasswordResponse:
        await self._users.change_password(
            request.user_id, request.current_password, request.new_password, by=caller.user_id
        )
        return pb.ChangePasswordResponse(success=True)

    async def list_users(self, _request: pb.ListUsersRequest, _: Caller) -> pb.ListUsersResponse:
        return pb.ListUsersResponse(users=map(_user, await self._users.list()))

    async def validate_credentials(
        self, request: pb.ValidateCredentialsRequest, _: Caller
    ) -> pb.ValidateCredentialsResponse:
        if not request.username or not request.password:
            raise InvalidArgument("username and password are required")
        user = await self._users.verify(request.username, request.password)
        return pb.ValidateCredentialsResponse(success=user is not None, user=user and _user(user))

    async def get_user_count(self, _request: pb.GetUserCountRequest, _: Caller) -> pb.GetUserCountResponse:
        return pb.GetUserCountResponse(count=await self._users.count())

    async def get_event_count(self, request: pb.GetEventCountRequest, _: Caller) -> pb.GetEventCountResponse:
        if not request.boundary:
            raise InvalidArgument("boundary is required")
        return pb.GetEventCountResponse(count=await self._reader.count(self._boundary(request.boundary)))


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
