"""Tokens that a server of the store signed: whom they name, since when, for what."""

from __future__ import annotations

import base64
import hmac
from typing import NamedTuple

from ..core.users import Caller


class Signed(NamedTuple):
    """What a token of ours says."""

    user_id: str
    #: Version of the user's password when it was issued.
    auth_version: int
    #: Seconds since 1970.
    issued: float
    #: What makes it different from others of that second; "" where none does.
    nonce: str


class Signer:
    """Makes and reads tokens ``kind.user.version.time[.nonce].signature``, with a key that the servers share."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, kind: str, caller: Caller, issued: float, nonce: str = "") -> str:
        """``kind`` says what it is good for; it and the nonce have no dots. ``issued`` is in seconds since 1970."""
        user = _encode(caller.user_id.encode())
        body = ".".join([kind, user, str(caller.auth_version), str(int(issued)), *filter(None, [nonce])])
        return f"{body}.{self._signature(body)}"

    def read(self, token: str, kind: str) -> Signed | None:
        """None for what was not signed with this key, or is of another kind."""
        body, _, signature = token.rpartition(".")
        if not token.isascii() or not hmac.compare_digest(signature, self._signature(body)):
            return None
        found, user, version, issued, *nonce = body.split(".")
        return Signed(_decode(user).decode(), int(version), float(issued), "".join(nonce)) if found == kind else None

    def _signature(self, body: str) -> str:
        return _encode(hmac.digest(self._key, body.encode(), "sha256"))


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
