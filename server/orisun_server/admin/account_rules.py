"""The rules for what administrators write: names, passwords, expiries (contract.md, Users). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from ..core.users import MAX_PASSWORD, MIN_PASSWORD, Role, User, parse_roles
from ..errors import FailedPrecondition, InvalidArgument

_MAX_TEXT = 255


def checked_user(name: str, username: str, password: str, roles: Iterable[str]) -> list[str]:
    """The roles in normal form; raises InvalidArgument for what breaks a rule, in the order of contract.md."""
    _check_text("name", name)
    _check_text("username", username)
    if len(username) < 3:
        raise _invalid("username must be at least 3 characters")
    if ":" in username:
        raise _invalid("username must not contain a colon")
    check_password("password", password)
    return parse_roles(roles)


def checked_token(name: str, roles: Iterable[str], expires_at: datetime | None) -> tuple[list[str], datetime]:
    """Roles in normal form and the expiry; raises InvalidArgument for what breaks a rule."""
    _check_text("name", name)
    if len(name) < 3:
        raise _invalid("name must be at least 3 characters")
    wanted = parse_roles(roles)
    if expires_at is None:
        raise _invalid("expires_at is required")
    if expires_at <= datetime.now(UTC):
        raise _invalid(f"expires_at {expires_at.isoformat(timespec='seconds')} is not in the future")
    return wanted, expires_at


def check_password(field: str, password: str) -> None:
    """Raises InvalidArgument unless this may be a password."""
    if not password:
        raise _invalid(f"{field} is required")
    if len(password) < MIN_PASSWORD:
        raise _invalid(f"{field} must be at least {MIN_PASSWORD} characters")
    if len(password) > MAX_PASSWORD:
        raise _invalid(f"{field} must be at most {MAX_PASSWORD} characters")


def check_an_admin_stays(users: Iterable[User], but: str, deed: str) -> None:
    """Raises FailedPrecondition unless somebody but the user of that id is ADMIN; ``deed`` is ``deleted``, say."""
    others = list(users)
    is_admin = any(user.user_id == but and Role.ADMIN in user.roles for user in others)
    if is_admin and not any(Role.ADMIN in user.roles for user in others if user.user_id != but):
        raise FailedPrecondition(f"the last ADMIN cannot be {deed}; give another user the role ADMIN first")


def _check_text(field: str, text: str) -> None:
    if not text.strip():
        raise _invalid(f"{field} is required")
    if len(text) > _MAX_TEXT or "\0" in text:
        raise _invalid(f"{field} must be at most {_MAX_TEXT} characters, without NUL characters")


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument(f"invalid request: {problem}")
