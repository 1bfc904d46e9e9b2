"""TLS towards PostgreSQL, by libpq's rules."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..setting_types import Mistake

if TYPE_CHECKING:
    from ..settings import Settings


def mistakes(settings: Settings) -> Iterator[Mistake]:
    """What of ORISUN_PG_SSLMODE and ORISUN_PG_SSLROOTCERT cannot be used."""
    verifies = settings.pg_sslmode in ("verify-ca", "verify-full")
    if verifies and not settings.pg_sslrootcert and not _has_default_authority():
        yield (
            "ORISUN_PG_SSLMODE",
            f'"{settings.pg_sslmode}" needs ORISUN_PG_SSLROOTCERT, the authority to check against',
        )
    try:
        context(settings)
    except (OSError, ValueError, TypeError) as error:
        shown = "the certificate" if _is_inline(settings.pg_sslrootcert) else f'"{settings.pg_sslrootcert}"'
        problem = getattr(error, "reason", None) or getattr(error, "strerror", None) or "holds no PEM certificates"
        yield "ORISUN_PG_SSLROOTCERT", f"{shown} cannot be used: {problem}"


def _has_default_authority() -> bool:
    """Whether there is one where libpq, and asyncpg after it, look by themselves."""
    return "PGSSLROOTCERT" in os.environ or (Path.home() / ".postgresql" / "root.crt").exists()


def _is_inline(authority: str) -> bool:
    """Whether it is the certificate itself instead of a file: the operator has it from a Secret."""
    return "-----BEGIN" in authority


def context(settings: Settings) -> str | ssl.SSLContext:
    """What asyncpg takes: the mode, or a context where an authority's certificate is given (as libpq treats it).

    Raises what ``mistakes`` tells of.
    """
    given = settings.pg_sslrootcert
    if not given or settings.pg_sslmode in ("disable", "allow", "prefer"):
        return settings.pg_sslmode
    inline = _is_inline(given)
    made = ssl.create_default_context(cadata=given) if inline else ssl.create_default_context(cafile=given)
    made.check_hostname = settings.pg_sslmode == "verify-full"
    return made
