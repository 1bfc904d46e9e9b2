"""What the checks of `orisun doctor` give."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal, NamedTuple

from ..channels import TLS

#: Seconds that clocks may differ by; times of HTTP are whole seconds.
SKEW = 2.0
#: Seconds that a look at a server may take.
PATIENCE = 5.0


class Finding(NamedTuple):
    """What a check found."""

    level: Literal["ok", "warning", "problem", "skipped"]
    check: str
    found: str
    #: What to do about it.
    todo: str = ""


def trusting(tls: TLS) -> ssl.SSLContext:
    """Trust and certificate of the connection, for what is no gRPC. Raises OSError."""
    context = ssl.create_default_context(cafile=_path(tls.ca))
    if tls.certificate is not None and tls.key is not None:
        context.load_cert_chain(str(tls.certificate), str(tls.key))
    return context


def _path(given: bytes | str | Path | None) -> str | None:
    return str(given) if isinstance(given, str | Path) else None
