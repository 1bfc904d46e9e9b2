"""Authentication: HTTP Basic once, a signed session token from then on; or an API token, or a client certificate.

A token names its user, the version of the user's password and the time of its issue, signed with a key that all servers
of a cluster share in PostgreSQL: any server checks it without asking anyone, it survives restarts, and it ends with the
user's deletion or change of password because the copy of the users (users.py) says so.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import structlog

from ..core.users import ApiToken, Caller, Session, User
from ..errors import Unauthenticated, Unavailable
from ..storage.database import Database
from ..storage.names import quote
from .accounts import TOKEN_PREFIX
from .logins import Logins
from .signing import Signed, Signer
from .users import Users

_log = structlog.get_logger(__name__)

#: Seconds that a token is good for. Past half of it a call gets a fresh one instead of the echo.
LIFETIME = 12 * 3600
#: Seconds after which one signs in to the admin page anew, however often its token was renewed.
LONGEST_SIGN_IN = 7 * 24 * 3600
_KEY_NAME = "session"
_KEY_BYTES = 32
#: The first part of a token: of rpcs, and of the admin page, whose tokens are good nowhere else.
_VERSION, _PAGE = "1", "page1"
#: The first part of what a browser keeps to show that a user has signed in there, and seconds that this is good for.
_DEVICE = "device1"
DEVICE_LIFETIME = 180 * 24 * 3600
_CACHE_SIZE = 10_000
_K = TypeVar("_K")
_V = TypeVar("_V")


class PageSession(NamedTuple):
    """A sign-in of the admin page."""

    caller: Caller
    #: Of this sign-in alone: random, and when it began, in seconds since 1970.
    nonce: str
    #: Seconds since 1970.
    issued: float


class Sessions:
    """Authenticates calls; ``start`` before use."""

    def __init__(
        self,
        database: Database,
        schema: str,
        users: Users,
        logins: Logins | None = None,
        *,
        certificates: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``schema`` is the admin schema's name, unquoted; ``clock`` gives seconds since 1970.

        ``certificates`` maps names of client certificates to user names (ORISUN_GRPC_TLS_CLIENT_USERS); the name ``*``
        has "" for its user and lets every certificate stand for the user that is called as it is.
        """
        self._database = database
        self._table = f"{quote(schema)}.orisun_secret"
        self._users = users
        self._logins = logins or Logins(users)
        self._certificates = certificates or {}
        self._clock = clock
        self._signer = Signer(b"")
        # cached headers are kept by a keyed hash: no password stays in memory, and no table of hashes fits
        self._cache_key = secrets.token_bytes(_KEY_BYTES)
        self._basic: OrderedDict[bytes, Caller] = OrderedDict()
        self._checks: dict[bytes, asyncio.Future[Caller | None]] = {}
        self._tokens: OrderedDict[str, tuple[Caller, float]] = OrderedDict()
        self._issued: OrderedDict[str, tuple[str, float]] = OrderedDict()
        users.on_change(self._forget)

    async def start(self) -> None:
        """Reads the cluster's key, and makes it when there is none. Raises Unavailable without PostgreSQL."""
        with self._database.guard():
            await self._database.admin.execute(
                f"INSERT INTO {self._table} (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                *(_KEY_NAME, secrets.token_bytes(_KEY_BYTES)),
            )
            key = await self._database.admin.fetchval(f"SELECT value FROM {self._table} WHERE name = $1", _KEY_NAME)
        self._signer = Signer(key)

    async def authenticate(
        self,
        authorization: str | None,
        token: str | None,
        peer: Callable[[], str] = str,
        certificate: Callable[[], Iterable[str]] = tuple,
        *,
        device: str = "",
    ) -> Session:
        """The session of a call with these headers (``authorization``, ``x-auth-token``).

        ``peer()`` is the IP address that it came from, ``certificate()`` the names in a client certificate that was
        checked, ``device`` what ``device_token`` gave. Raises Unauthenticated with the messages of contract.md, or
        ResourceExhausted when too many passwords are being checked or were wrong.
        """
        if token is not None and (found := self._check(token)) is not None:
            caller, issued = found
            fresh = self._clock() - issued < LIFETIME / 2
            return Session(caller, token if fresh else self._token(caller))
        if authorization is None:
            if self._certificates and (user := self._certified(certificate())) is not None:
                return Session(_caller(user)._replace(via="certificate"), "")
            raise Unauthenticated("missing authorization header")
        if authorization[:7].lower() == "bearer ":
            return Session(self._bearer(authorization[7:].strip()), "")
        fingerprint = hashlib.blake2b(authorization.encode(errors="surrogatepass"), key=self._cache_key).digest()
        known = self._basic.get(fingerprint)
        if known is None:
            known = await self._verified(fingerprint, authorization, peer(), device or token or "")
            if known is None or not self.is_valid(known):
                raise Unauthenticated("invalid credentials")
        return Session(known, self._token(known))

    def device_token(self, caller: Caller) -> str:
        """What a browser keeps, beyond its session, to show that the caller has signed in there. It lets nobody in."""
        return self._signer.token(_DEVICE, caller, self._clock(), secrets.token_urlsafe(12))

    def page_token(self, caller: Caller, nonce: str = "") -> str:
        """What the cookie of a sign-in holds: a session token that only the admin page takes, bound to its nonce; ""
        begins a sign-in."""
        now = self._clock()
        return self._signer.token(_PAGE, caller, now, nonce or f"{secrets.token_urlsafe(18)}~{now:.0f}")

    def page_session(self, token: str) -> PageSession | None:
        """The sign-in of a cookie; None when it has expired or was ended, here or on another server."""
        signed = self._signer.read(token, _PAGE)
        caller = None if signed is None else self._named(signed)
        if signed is None or caller is None:
            return None
        session = PageSession(caller, signed.nonce, signed.issued)
        return session if self.goes_on(session) else None

    def goes_on(self, session: PageSession) -> bool:
        """Whether a sign-in is (still) good."""
        return (
            self._clock() - session.issued < LIFETIME
            and self._clock() - float(session.nonce.partition("~")[2] or 0) < LONGEST_SIGN_IN
            and self.is_valid(session.caller)
            and not self._users.is_signed_out(_hash(session.nonce))
        )

    def is_ageing(self, session: PageSession) -> bool:
        """Whether half of its life is over, so that a sign-in in use gets a fresh cookie."""
        return self._clock() - session.issued >= LIFETIME / 2

    async def sign_out(self, session: PageSession) -> None:
        """Ends a sign-in on every server within a second; without PostgreSQL on this one only."""
        try:
            await self._users.sign_out(_hash(session.nonce))
        except Unavailable:
            _log.warning("a sign-out is known on this server only", username=session.caller.username)

    def is_valid(self, caller: Caller) -> bool:
        """Whether the caller's user still exists with the same password and roles, or the API token is good."""
        if caller.is_token:
            return self._users.token(caller.user_id, self._now()) is not None
        user = self._users.get(caller.user_id)
        return user is not None and user.auth_version == caller.auth_version and caller.roles == frozenset(user.roles)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _bearer(self, text: str) -> Caller:
        """The caller of an API token. Nobody guesses 256 random bits, so wrong ones need no limit."""
        token_id, _, secret = text.removeprefix(TOKEN_PREFIX).partition("_")
        if not text.startswith(TOKEN_PREFIX) or not secret:
            raise Unauthenticated("invalid authorization header format")
        token = self._users.token_of(token_id, secret, self._now())
        if token is None:
            raise Unauthenticated("invalid credentials")
        return _token_caller(token)

    def _certified(self, names: Iterable[str]) -> User | None:
        """The user that a client certificate stands for: that of the first of its names which is mapped, or the one
        that is called like its common name, the first, where ``*`` allows that."""
        listed = list(names)
        for name in listed:
            if name in self._certificates and name != "*":
                return self._users.named(self._certificates[name])
        return self._users.named(listed[0]) if listed and "*" in self._certificates else None

    async def _verified(self, fingerprint: bytes, authorization: str, peer: str, proof: str) -> Caller | None:
        """Whom the header belongs to; many calls that bring the same new header share one check of the password."""
        check = self._checks.get(fingerprint)
        if check is None:
            username, password = _credentials(authorization)
            place = self.place(proof, username)
            check = asyncio.ensure_future(self._verify(fingerprint, username, password, peer, place))
            self._checks[fingerprint] = check
            check.add_done_callback(lambda done: self._checked(fingerprint, done))
        return await asyncio.shield(check)

    async def _verify(self, fingerprint: bytes, username: str, password: str, peer: str, place: str) -> Caller | None:
        user = await self._logins.verify(username, password, peer, place)
        if user is None:
            return None
        caller = _caller(user)
        _keep(self._basic, fingerprint, caller)
        return caller

    def place(self, proof: str, username: str) -> str:
        """A name for where the user has signed in before, as a token of ours shows, be it of a browser or of an rpc and
        expired; "" where nothing does."""
        for kind in (_DEVICE, _VERSION):
            signed = self._signer.read(proof, kind)
            if signed is not None and self._clock() - signed.issued < DEVICE_LIFETIME:
                user = self._users.get(signed.user_id)
                return _hash(proof) if user is not None and user.username == username else ""
        return ""

    def _checked(self, fingerprint: bytes, check: asyncio.Future[Caller | None]) -> None:
        del self._checks[fingerprint]
        if not check.cancelled():
            check.exception()  # seen, also when every caller has left

    def _token(self, caller: Caller) -> str:
        """A token of the caller; the same one for a while, so that signing costs nothing in the hot path."""
        now = self._clock()
        known = self._issued.get(caller.user_id)
        if known is not None and 0 <= now - known[1] < LIFETIME / 4:
            return known[0]
        token = self._signer.token(_VERSION, caller, now)
        _keep(self._issued, caller.user_id, (token, now))
        return token

    def _check(self, token: str) -> tuple[Caller, float] | None:
        """The caller whom a token names and the time of its issue; None when it is not good (any more)."""
        known = self._tokens.get(token)
        if known is None:
            known = self._read(token)
            if known is None:
                return None
            _keep(self._tokens, token, known)
        return known if self._clock() - known[1] < LIFETIME else None

    def _read(self, token: str) -> tuple[Caller, float] | None:
        signed = self._signer.read(token, _VERSION)
        caller = None if signed is None else self._named(signed)
        return None if signed is None or caller is None else (caller, signed.issued)

    def _named(self, signed: Signed) -> Caller | None:
        user = self._users.get(signed.user_id)
        return _caller(user) if user is not None and user.auth_version == signed.auth_version else None

    def _forget(self) -> None:
        self._tokens.clear()
        self._issued.clear()
        # of those whose user is as before the password is known still: checking them all anew would cost seconds
        for fingerprint in [key for key, caller in self._basic.items() if not self.is_valid(caller)]:
            del self._basic[fingerprint]


def _credentials(authorization: str) -> tuple[str, str]:
    """User name and password of an authorization header (RFC 7617)."""
    scheme, _, encoded = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        raise Unauthenticated("invalid authorization header format")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        raise Unauthenticated("invalid authorization header encoding") from None
    username, colon, password = decoded.partition(":")
    if not colon:
        raise Unauthenticated("invalid authorization header format")
    return username, password


def _caller(user: User) -> Caller:
    return Caller(user.user_id, user.username, frozenset(user.roles), user.auth_version)


def _token_caller(token: ApiToken) -> Caller:
    return Caller(token.token_id, token.name, frozenset(token.roles), 0, via="token")


def _keep(cache: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    cache[key] = value
    if len(cache) > _CACHE_SIZE:
        cache.popitem(last=False)


def _hash(nonce: str) -> str:
    return hashlib.sha256(f"orisun sign-in {nonce}".encode()).hexdigest()
