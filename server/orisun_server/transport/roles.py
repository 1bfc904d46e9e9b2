"""Which role may call which rpc: the one table, and the rule of the admin boundary (contract.md, Authentication)."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.users import Caller, Role
from ..errors import PermissionDenied

_ADMINS = frozenset({Role.ADMIN})
_OPERATORS = frozenset({Role.ADMIN, Role.OPERATIONS})
_WRITERS = frozenset({Role.ADMIN, Role.OPERATIONS, Role.USER})
_READERS = frozenset(Role)

#: Full name of the rpc -> roles that may call it. An rpc that is missing here is for nobody.
ALLOWED: Mapping[str, frozenset[Role]] = {
    "orisun.EventStore/SaveEvents": _WRITERS,
    "orisun.EventStore/GetEvents": _READERS,
    "orisun.EventStore/GetLatestByCriteria": _READERS,
    "orisun.EventStore/CatchUpSubscribeToEvents": _READERS,
    "orisun.EventStore/GetCommands": _READERS,
    "orisun.EventStore/Ping": _READERS,
    "orisun.EventStore/GetServerInfo": _READERS,
    "orisun.EventStore/PublishToPubSub": _WRITERS,
    "orisun.EventStore/SubscribeToPubSub": _READERS,
    "orisun.EventStore/CreateIndex": _ADMINS,
    "orisun.EventStore/DropIndex": _ADMINS,
    "orisun.EventStore/ListIndexes": _OPERATORS,
    "orisun.EventStore/GetIndex": _OPERATORS,
    "orisun.Admin/CreateBoundary": _ADMINS,
    "orisun.Admin/ListBoundaries": _OPERATORS,
    "orisun.Admin/GetBoundary": _OPERATORS,
    "orisun.Admin/CreateUser": _ADMINS,
    "orisun.Admin/DeleteUser": _ADMINS,
    # Everyone may change the own password; the rpc itself refuses another's.
    "orisun.Admin/ChangePassword": _READERS,
    "orisun.Admin/ListUsers": _ADMINS,
    "orisun.Admin/ValidateCredentials": _ADMINS,
    "orisun.Admin/GetUserCount": _ADMINS,
    "orisun.Admin/GetEventCount": _OPERATORS,
    "orisun.Admin/CreateIndex": _ADMINS,
    "orisun.Admin/DropIndex": _ADMINS,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _READERS,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READERS,
}

_ADMINISTRATION = frozenset(
    {f"orisun.EventStore/{name}" for name in ("CreateIndex", "DropIndex", "ListIndexes", "GetIndex")}
)


class AdminRoleRequired(PermissionDenied):
    """user does not have a role required for this admin operation"""


def check_role(rpc: str, caller: Caller) -> None:
    """Raises PermissionDenied unless the table lets one of the caller's roles call the rpc."""
    if ALLOWED.get(rpc, frozenset()).isdisjoint(caller.roles):
        if rpc in _ADMINISTRATION or rpc.startswith("orisun.Admin/"):
            raise AdminRoleRequired
        raise PermissionDenied


def check_boundary(boundary: str, admin_boundary: str, caller: Caller) -> None:
    """Raises PermissionDenied when a request names the admin boundary and its caller is not an ADMIN."""
    if boundary == admin_boundary and not caller.is_admin:
        raise PermissionDenied(f'the admin boundary "{boundary}" is for the role ADMIN only')
