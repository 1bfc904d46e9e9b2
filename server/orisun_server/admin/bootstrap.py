"""The first administrator, and a warning for as long as everybody knows its password."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from ..errors import FailedPrecondition
from .accounts import Accounts
from .users import Users

if TYPE_CHECKING:
    from ..settings import Settings

_DEFAULT_PASSWORD = "changeit"  # noqa: S105 - documented, and warned about

_log = structlog.get_logger(__name__)


async def bootstrap(accounts: Accounts, settings: Settings) -> None:
    """Creates the administrator of ORISUN_ADMIN_USERNAME and ORISUN_ADMIN_PASSWORD when there is no user yet.

    With ORISUN_ADMIN_PASSWORD_ENFORCED those two rule at each start. Raises FailedPrecondition when that would make the
    default password rule, which everybody knows.
    """
    username, password = settings.admin_username, settings.admin_password.get_secret_value()
    if settings.admin_password_enforced:
        if password == _DEFAULT_PASSWORD:
            raise FailedPrecondition(
                "ORISUN_ADMIN_PASSWORD_ENFORCED is set, and ORISUN_ADMIN_PASSWORD is the default that everybody knows: "
                "choose another one (in a cluster, in the administrator's Secret)"
            )
        if await accounts.enforce(username, password):
            _log.info("the administrator is as ORISUN_ADMIN_PASSWORD says", username=username)
    elif await accounts.ensure_first(username, password):
        _log.info("created the first administrator", username=username)


async def warn_of_default_password(users: Users, settings: Settings) -> None:
    """Says so in the log when the administrator has the default password and others can reach the port."""
    username = settings.admin_username
    if not settings.listens_on_loopback and await users.verify(username, _DEFAULT_PASSWORD) is not None:
        _log.warning(
            "THE ADMINISTRATOR HAS THE DEFAULT PASSWORD and the port can be reached from other machines; "
            "change it with orisun.Admin/ChangePassword",
            username=username,
            host=settings.grpc_host,
        )
