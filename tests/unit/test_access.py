"""Roles: how they are written, what each may do, and the page that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from orisun_server.admin.web.app import _PAGES, build
from orisun_server.core.access import (
    PAGES,
    PUBLIC,
    RPCS,
    AdminBoundaryDenied,
    RoleMissing,
    Scope,
    as_markdown,
    check,
    check_boundary,
)
from orisun_server.core.proxies import Proxies
from orisun_server.core.users import Caller, parse_roles
from orisun_server.errors import InvalidArgument, PermissionDenied
from orisun_server.transport.health import DESCRIPTOR as HEALTH

ROOT = Path(__file__).parents[2]


def caller(*roles: str) -> Caller:
    return Caller("id", "name", frozenset(roles), 1)


def may(rpc: str, boundary: str, *roles: str) -> bool:
    try:
        check(rpc, RPCS, caller(*roles))
        if boundary:
            check_boundary(rpc, RPCS, caller(*roles), boundary, "orisun_admin")
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["user"], ["USER"]),
        (["Reader:Orders", "reader:Orders", "READER"], ["READER:Orders", "READER"]),
        (["operations:a_1", "aDmIn"], ["OPERATIONS:a_1", "ADMIN"]),
    ],
)
def test_roles_in_any_case(written: list[str], meant: list[str]) -> None:
    assert parse_roles(written) == meant


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("king", 'unsupported role "king"; valid roles are ADMIN, OPERATIONS, USER, READER'),
        ("", 'unsupported role ""; valid roles are'),
        (":orders", 'unsupported role ":orders"'),
        ("admin:orders", "ADMIN cannot be limited"),
        ("reader:", "after the colon comes the name of one boundary"),
        ("reader:a-b", "after the colon comes the name of one boundary"),
        ("reader:1a", "after the colon comes the name of one boundary"),
        ("reader:a:b", "after the colon comes the name of one boundary"),
        ("reader:" + "x" * 64, "after the colon comes the name of one boundary"),
        ("reader:é", "after the colon comes the name of one boundary"),
    ],
)
def test_roles_that_are_none(role: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_roles(["user", role])
    assert str(refused.value).startswith("invalid request: unsupported role")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("rpc", "boundary", "roles", "allowed"),
    [
        ("orisun.EventStore/SaveEvents", "orders", ("USER:orders",), True),
        ("orisun.EventStore/SaveEvents", "orders", ("READER:orders",), False),
        ("orisun.EventStore/SaveEvents", "payments", ("USER:orders",), False),
        ("orisun.EventStore/SaveEvents", "Orders", ("USER:orders",), False),
        ("orisun.EventStore/SaveEvents", "payments", ("USER:orders", "READER", "USER:payments"), True),
        ("orisun.EventStore/GetEvents", "payments", ("USER:orders", "READER"), True),
        ("orisun.EventStore/GetEvents", "orisun_admin", ("READER", "READER:orisun_admin", "OPERATIONS"), False),
        ("orisun.EventStore/GetEvents", "orisun_admin", ("ADMIN",), True),
        ("orisun.EventStore/PublishToPubSub", "", ("USER:orders",), False),
        ("orisun.EventStore/PublishToPubSub", "", ("USER",), True),
        ("orisun.EventStore/Ping", "", ("READER:orders",), True),
        ("orisun.EventStore/CreateIndex", "orders", ("OPERATIONS", "OPERATIONS:orders"), False),
        ("orisun.Admin/GetEventCount", "orders", ("OPERATIONS:orders",), True),
        ("orisun.Admin/GetEventCount", "payments", ("OPERATIONS:orders",), False),
        ("orisun.Admin/CreateUser", "", ("OPERATIONS", "USER", "READER"), False),
        ("orisun.Admin/Nothing", "", ("ADMIN",), False),
        ("orisun.EventStore/Ping", "", (), False),
    ],
)
def test_who_may_do_what(rpc: str, boundary: str, roles: tuple[str, ...], allowed: bool) -> None:
    assert may(rpc, boundary, *roles) == allowed


def test_a_denial_says_which_role_is_missing() -> None:
    with pytest.raises(RoleMissing) as denied:
        check("orisun.EventStore/SaveEvents", RPCS, caller("READER"))
    assert str(denied.value) == (
        "user does not have a role required for this operation: orisun.EventStore/SaveEvents needs ADMIN, OPERATIONS"
        " or USER"
    )
    with pytest.raises(RoleMissing, match=r'needs .* for boundary "payments"$') as denied:
        check_boundary("orisun.EventStore/SaveEvents", RPCS, caller("USER:orders"), "payments", "orisun_admin")
    assert denied.value.info == {
        "rpc": "orisun.EventStore/SaveEvents", "roles": "ADMIN, OPERATIONS, USER", "boundary": "payments"
    }  # fmt: skip
    with pytest.raises(RoleMissing, match=r"needs ADMIN, OPERATIONS or USER for all boundaries$"):
        check("orisun.EventStore/PublishToPubSub", RPCS, caller("USER:orders"))
    with pytest.raises(RoleMissing, match=r"^user does not have a role required for this admin operation$") as denied:
        check("orisun.Admin/CreateUser", RPCS, caller("USER"))
    assert denied.value.info["roles"] == "ADMIN"
    with pytest.raises(AdminBoundaryDenied, match=r'^the admin boundary "orisun_admin" is for the role ADMIN only$'):
        check_boundary("orisun.EventStore/GetEvents", RPCS, caller("READER"), "orisun_admin", "orisun_admin")


def test_an_administrator_may_do_everything() -> None:
    for rules in (RPCS, PAGES):
        for name, rule in rules.items():
            check(name, rules, caller("ADMIN"))
            if rule.scope is Scope.BOUNDARY:
                check_boundary(name, rules, caller("ADMIN"), "orisun_admin", "orisun_admin")


def test_the_page_of_roles_is_generated_from_the_table() -> None:
    page = (ROOT / "docs" / "roles.md").read_text()
    assert page.endswith("-->\n\n" + as_markdown()), "run `make docs/roles.md`"


def test_what_is_open_to_everybody_is_in_the_table_too() -> None:
    state: Any = None
    app = build(state, secure=False, proxies=Proxies())
    with_role = {path for path, *_ in _PAGES} | {"/sign-out", "/queries.json"}
    paths = {route.path for route in app.routes if isinstance(route, Route)} - with_role
    assert paths | {f"grpc.health.v1.Health/{method.name}" for method in HEALTH.methods} == set(PUBLIC)
    assert {page for _, page, *_ in _PAGES} | {"metrics", "profiles"} == set(PAGES)


@pytest.mark.parametrize("name", ["a\0b", "x" * 1_000_000, "a b", "1a", "ä"])
def test_what_is_no_name_of_a_boundary_is_not_repeated(name: str) -> None:
    """It would be kept for the audit log, and travel in the error's details."""
    with pytest.raises(RoleMissing) as refused:
        check_boundary("orisun.EventStore/GetEvents", RPCS, caller("READER:orders"), name)
    assert refused.value.boundary == refused.value.info["boundary"] == "(an invalid name)"
    assert len(str(refused.value)) < 300
