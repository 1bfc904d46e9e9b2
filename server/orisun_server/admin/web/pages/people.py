"""Users, API tokens, and the own password."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from ....core.users import ApiToken, Role, User
from ....errors import InvalidArgument, NotFound, OrisunError, ResourceExhausted, Unauthenticated, Unavailable
from ..context import Context

#: Said where one signs in again.
PASSWORD_CHANGED = "Your password was changed. Sign in with the new one."  # noqa: S105 - a sentence
_PER_PAGE = 25
_MOST_DAYS = 3650
#: Boundaries that the account page has links to at a time.
_MOST_LINKS = 100


async def users(context: Context) -> Response:
    wanted = context.query.get("find", "").strip().lower()
    found = [
        u
        for u in await context.parts.administration.users.list()
        if wanted in u.username.lower() or wanted in u.name.lower()
    ]
    shown, page, pages = context.paged(found, _PER_PAGE)
    return context.render(
        "users.html", users=shown, page=page, pages=pages, total=len(found), find=context.query.get("find", "")
    )


async def new_user(context: Context) -> Response:
    return context.render("user_new.html", form={}, roles=list(Role), problem="")


async def create_user(context: Context) -> Response:
    form = await context.form()
    try:
        user = await context.parts.administration.accounts.create(
            form.get("name", "").strip(),
            form.get("username", "").strip(),
            form.get("password", ""),
            _roles(form.get("roles", "")),
            by=context.caller,
        )
    except Unavailable:
        raise
    except OrisunError as error:
        kept = {name: value for name, value in form.items() if name != "password"}
        return context.render("user_new.html", 400, form=kept, roles=list(Role), problem=_plain(error))
    return context.go("/users", f"User {user.username} was created.{_unknown(context, user.roles)}")


async def user(context: Context) -> Response:
    return context.render("user.html", user=_user(context), roles=list(Role), problem="")


async def set_roles(context: Context) -> Response:
    found, form = _user(context), await context.form()
    try:
        await context.parts.administration.accounts.set_roles(
            found.user_id, _roles(form.get("roles", "")), by=context.caller
        )
    except Unavailable:
        raise
    except OrisunError as error:
        return context.render("user.html", 400, user=found, roles=list(Role), problem=_plain(error))
    changed = context.parts.administration.users.get(found.user_id) or found
    return context.go("/users", f"The roles of {found.username} were changed.{_unknown(context, changed.roles)}")


async def ask_delete(context: Context) -> Response:
    """Also what outlives the user: the API tokens that it issued."""
    found = _user(context)
    issued = [t for t in await context.parts.administration.accounts.list_tokens() if t.created_by == found.username]
    return context.render("user_delete.html", user=found, tokens=issued)


async def delete(context: Context) -> Response:
    found = _user(context)
    await context.parts.administration.accounts.delete(found.user_id, by=context.caller)
    return context.go("/users", f"User {found.username} was deleted.")


async def tokens(context: Context) -> Response:
    found = await context.parts.administration.accounts.list_tokens()
    shown, page, pages = context.paged(found, _PER_PAGE)
    return context.render("tokens.html", tokens=shown, page=page, pages=pages, now=datetime.now(UTC))


async def new_token(context: Context) -> Response:
    return context.render("token_new.html", form={}, roles=list(Role), problem="")


async def create_token(context: Context) -> Response:
    """Shows the token, this once."""
    form = await context.form()
    try:
        days = int(form.get("days", "30") or "30")
        if not 0 < days <= _MOST_DAYS:
            raise InvalidArgument(f"a token is good for 1 to {_MOST_DAYS} days")
        secret, token = await context.parts.administration.accounts.create_token(
            form.get("name", "").strip(),
            _roles(form.get("roles", "")),
            datetime.now(UTC) + timedelta(days=days),
            by=context.caller,
        )
    except Unavailable:
        raise
    except ValueError:
        return context.render("token_new.html", 400, form=form, roles=list(Role), problem="days: give a whole number")
    except OrisunError as error:
        return context.render("token_new.html", 400, form=form, roles=list(Role), problem=_plain(error))
    return context.render("token_made.html", secret=secret, token=token, unknown=_unknown(context, token.roles))


async def ask_revoke(context: Context) -> Response:
    return context.render("token_revoke.html", token=await _token(context))


async def revoke(context: Context) -> Response:
    token = await _token(context)
    await context.parts.administration.accounts.revoke_token(token.token_id, by=context.caller)
    return context.go("/tokens", f"Token {token.name} was revoked.")


async def account(context: Context) -> Response:
    return _account(context)


async def change_password(context: Context) -> Response:
    form = await context.form()
    new = form.get("new", "")
    try:
        if new != form.get("again", ""):
            raise InvalidArgument("the new password and its repetition differ")
        await context.parts.administration.accounts.change_password(
            context.caller.user_id, form.get("current", ""), new, by=context.caller
        )
    except (InvalidArgument, Unauthenticated, ResourceExhausted) as error:
        return _account(context, 400, problem=_plain(error))
    response = context.go("/sign-in", PASSWORD_CHANGED)
    await context.sign_out(response)
    return response


def _account(context: Context, status: int = 200, *, problem: str = "") -> Response:
    """Besides, where a caller who has no overview finds events."""
    names = [one.name for one in context.parts.catalog.active() if context.may("events", one.name)]
    readable, page, pages = context.paged([] if context.may("overview") else names, _MOST_LINKS)
    return context.render("account.html", status, problem=problem, readable=readable, page=page, pages=pages)


def _user(context: Context) -> User:
    found = context.parts.administration.users.get(context.request.path_params["user_id"])
    if found is None:
        raise NotFound("there is no such user (any more)")
    return found


async def _token(context: Context) -> ApiToken:
    wanted = context.request.path_params["token_id"]
    for token in await context.parts.administration.accounts.list_tokens():
        if token.token_id == wanted:
            return token
    raise NotFound("there is no such token (any more)")


def _roles(text: str) -> list[str]:
    return [role for role in text.replace(",", " ").split() if role]


def _unknown(context: Context, roles: Iterable[str]) -> str:
    """Says which boundaries of roles there are not: they may come later, or be misspelt."""
    known = {one.name for one in context.parts.catalog.active()}
    missing = sorted({name for role in roles if (name := role.partition(":")[2]) and name not in known})
    return f" There is no boundary {', '.join(missing)} yet: the role holds once there is." if missing else ""


def _plain(error: OrisunError) -> str:
    """A message of the wire without the prefix that it has there."""
    return str(error).removeprefix("invalid request: ").removeprefix("failed to create user: ")
