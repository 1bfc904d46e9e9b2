"""What is wrong with settings of which each by itself is well written: they contradict each other, a file is missing.

``environment.load`` lists it beside all other mistakes. A command asks for the checks of what it does: who migrates
needs no certificate of the server's.
"""

from __future__ import annotations

from collections.abc import Iterator

from .setting_types import Mistake
from .settings import Settings
from .storage import tls
from .transport import checks as transport


def of_postgres(settings: Settings) -> Iterator[Mistake]:
    """For whoever connects to PostgreSQL."""
    if not settings.embeds_postgres:
        yield from tls.mistakes(settings)


def of_server(settings: Settings) -> Iterator[Mistake]:
    """For a server."""
    yield from transport.mistakes(settings)
    if settings.admin_password_enforced and settings.has_default_password:
        yield (
            "ORISUN_ADMIN_PASSWORD",
            "is the default that everybody knows, and ORISUN_ADMIN_PASSWORD_ENFORCED would set it at each start; choose"
            " another one (in a cluster, in the administrator's Secret)",
        )
    yield from of_postgres(settings)
