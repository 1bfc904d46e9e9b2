"""Who may do what: the one table of every rpc and every page, and the rules that read it.

A role without a boundary holds in all of them, ``READER:orders`` in that one. docs/roles.md is generated from here
(``make docs/roles.md``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import PermissionDenied
from .users import Caller, Role, is_boundary_name

_ADMINS = frozenset({Role.ADMIN})
_OPERATORS = frozenset({Role.ADMIN, Role.OPERATIONS})
_WRITERS = frozenset({Role.ADMIN, Role.OPERATIONS, Role.USER})
_READERS = frozenset(Role)


class Scope(enum.Enum):
    """What a role must hold for; the value says it to people."""

    #: The request names a boundary: a role that is limited to it suffices.
    BOUNDARY = "the boundary that is named"
    #: It concerns the whole store: a limited role does not suffice.
    STORE = "the whole store"
    #: It concerns no boundary, or shows of each what the caller may see: a limited role suffices.
    ANY = "any boundary"


class Rule(NamedTuple):
    """Which roles suffice, and for what they must hold."""

    roles: frozenset[Role]
    scope: Scope
    #: Whether contract.md quotes the refusal of administrative rpcs for it.
    is_administration: bool = False


_READ = Rule(_READERS, Scope.BOUNDARY)
_WRITE = Rule(_WRITERS, Scope.BOUNDARY)
_ANYBODY = Rule(_READERS, Scope.ANY)
_LOOK = Rule(_OPERATORS, Scope.BOUNDARY, is_administration=True)
_ADMINISTER = Rule(_ADMINS, Scope.STORE, is_administration=True)

#: Full name of the rpc -> rule. An rpc that is missing here is for nobody.
RPCS: Mapping[str, Rule] = {
    "orisun.EventStore/SaveEvents": _WRITE,
    "orisun.EventStore/GetEvents": _READ,
    "orisun.EventStore/GetLatestByCriteria": _READ,
    "orisun.EventStore/CatchUpSubscribeToEvents": _READ,
    "orisun.EventStore/GetCommands": _READ,
    "orisun.EventStore/Ping": _ANYBODY,
    "orisun.EventStore/GetServerInfo": _ANYBODY,
    # subjects belong to no boundary
    "orisun.EventStore/PublishToPubSub": Rule(_WRITERS, Scope.STORE),
    "orisun.EventStore/SubscribeToPubSub": Rule(_READERS, Scope.STORE),
    "orisun.EventStore/CreateIndex": _ADMINISTER,
    "orisun.EventStore/DropIndex": _ADMINISTER,
    "orisun.EventStore/ListIndexes": _LOOK,
    "orisun.EventStore/GetIndex": _LOOK,
    "orisun.Admin/CreateBoundary": _ADMINISTER,
    "orisun.Admin/ListBoundaries": Rule(_OPERATORS, Scope.ANY, is_administration=True),
    "orisun.Admin/GetBoundary": _LOOK,
    "orisun.Admin/CreateUser": _ADMINISTER,
    "orisun.Admin/DeleteUser": _ADMINISTER,
    # everyone may change the own password; the rpc itself refuses another's
    "orisun.Admin/ChangePassword": Rule(_READERS, Scope.ANY, is_administration=True),
    "orisun.Admin/ListUsers": _ADMINISTER,
    "orisun.Admin/ValidateCredentials": _ADMINISTER,
    "orisun.Admin/GetUserCount": _ADMINISTER,
    "orisun.Admin/GetEventCount": _LOOK,
    "orisun.Admin/CreateIndex": _ADMINISTER,
    "orisun.Admin/DropIndex": _ADMINISTER,
    "orisun.Admin/SetUserRoles": _ADMINISTER,
    "orisun.Admin/CreateToken": _ADMINISTER,
    "orisun.Admin/ListTokens": _ADMINISTER,
    "orisun.Admin/RevokeToken": _ADMINISTER,
    "orisun.Admin/GetIndexBuild": _LOOK,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _ANYBODY,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ANYBODY,
}

#: Page of the admin web page -> rule. A page that is missing here is for nobody.
PAGES: Mapping[str, Rule] = {
    "overview": Rule(_OPERATORS, Scope.ANY),
    "boundary": Rule(_OPERATORS, Scope.BOUNDARY),
    "boundary: create": Rule(_ADMINS, Scope.STORE),
    "events": Rule(_READERS, Scope.BOUNDARY),
    "events: live tail": Rule(_READERS, Scope.BOUNDARY),
    "commands": Rule(_READERS, Scope.BOUNDARY),
    "indexes": Rule(_OPERATORS, Scope.BOUNDARY),
    "indexes: create, drop": Rule(_ADMINS, Scope.STORE),
    "users and tokens": Rule(_ADMINS, Scope.STORE),
    "own password": Rule(_READERS, Scope.ANY),
    "subscriptions": Rule(_OPERATORS, Scope.STORE),
    "audit": Rule(_ADMINS, Scope.STORE),
    "configuration": Rule(_ADMINS, Scope.STORE),
    "queries": Rule(_OPERATORS, Scope.STORE),
    # only while ORISUN_ADMIN_METRICS_PUBLIC is false
    "metrics": Rule(_OPERATORS, Scope.STORE),
    "profiles": Rule(_ADMINS, Scope.STORE),
}

#: Rpc, or path on the admin port -> why it is open to whoever reaches the port.
PUBLIC: Mapping[str, str] = {
    "grpc.health.v1.Health/Check": "probes and load balancers ask; it tells of no data",
    "grpc.health.v1.Health/List": "the same",
    "grpc.health.v1.Health/Watch": "the same",
    "/healthz": "probes ask",
    "/readyz": "the same",
    "/metrics": "while ORISUN_ADMIN_METRICS_PUBLIC is true, as it is by default; else it is the page metrics",
    "/sign-in": "who one is turns out here",
    "/favicon.ico": "nothing of the store's",
    "/static/{version}/{name}": "the same",
}

#: Stands for the name of a boundary that is none.
_NO_NAME = "(an invalid name)"


class RoleMissing(PermissionDenied):
    """A caller lacks a role."""

    reason = "ROLE_MISSING"

    def __init__(self, what: str, rule: Rule, boundary: str = "") -> None:
        # what no boundary can be called is not repeated: it may be megabytes, or hold what jsonb refuses
        self.what, self.boundary = what, boundary if not boundary or is_boundary_name(boundary) else _NO_NAME
        self.needed = ", ".join(role.value for role in Role if role in rule.roles)
        if rule.is_administration:
            super().__init__("user does not have a role required for this admin operation")
            return
        place = f' for boundary "{self.boundary}"' if boundary else " for all boundaries" * (rule.scope is Scope.STORE)
        super().__init__(
            f"user does not have a role required for this operation: {what} needs {_alternatives(rule)}{place}"
        )

    @property
    def info(self) -> Mapping[str, str]:
        """``rpc`` (or page), the ``roles`` that would suffice, and the boundary that they must hold for, if any."""
        named = {"boundary": self.boundary} if self.boundary else {}
        return {"rpc": self.what, "roles": self.needed, **named}


class AdminBoundaryDenied(PermissionDenied):
    """The admin boundary is for ADMIN only (contract.md, Authentication)."""

    def __init__(self, boundary: str) -> None:
        self.boundary = boundary
        super().__init__(f'the admin boundary "{boundary}" is for the role ADMIN only')


def check(what: str, rules: Mapping[str, Rule], caller: Caller) -> None:
    """Raises RoleMissing unless one of the caller's roles suffices, perhaps for a boundary only: where the rule asks
    for a boundary, ``check_boundary`` has the last word."""
    rule = rules.get(what)
    if rule is None:
        raise PermissionDenied(f"{what} is for nobody")
    if not rule.roles.isdisjoint(caller.roles):
        return
    if rule.scope is Scope.STORE or not any(role.partition(":")[0] in rule.roles for role in caller.roles):
        raise RoleMissing(what, rule)


def check_boundary(
    what: str, rules: Mapping[str, Rule], caller: Caller, boundary: str, admin_boundary: str = ""
) -> None:
    """Raises AdminBoundaryDenied, or RoleMissing where the caller's roles do not hold for the boundary that a request
    names."""
    rule = rules[what]
    if boundary == admin_boundary and not caller.is_admin:
        raise AdminBoundaryDenied(boundary)
    if rule.scope is Scope.BOUNDARY and not holds(rule, caller, boundary):
        raise RoleMissing(what, rule, boundary)


def holds(rule: Rule, caller: Caller, boundary: str) -> bool:
    """Whether one of the caller's roles suffices in that boundary."""
    return not rule.roles.isdisjoint(caller.roles) or any(f"{role}:{boundary}" in caller.roles for role in rule.roles)


def as_markdown() -> str:
    """The table for docs/roles.md."""
    lines = ["| rpc | ADMIN | OPERATIONS | USER | READER | the role must hold for |", "|---|---|---|---|---|---|"]
    lines += [_row(f"`{name}`", rule) for name, rule in RPCS.items()]
    lines += ["", "| page | ADMIN | OPERATIONS | USER | READER | the role must hold for |", "|---|---|---|---|---|---|"]
    lines += [_row(name, rule) for name, rule in PAGES.items()]
    lines += ["", "Without signing in:", "", "| rpc or path | why |", "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in PUBLIC.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, rule: Rule) -> str:
    marks = " | ".join("yes" if role in rule.roles else "" for role in Role)
    return f"| {name} | {marks} | {rule.scope.value} |"


def _alternatives(rule: Rule) -> str:
    names = [role.value for role in Role if role in rule.roles]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


if __name__ == "__main__":
    print(as_markdown(), end="")
