"""The users and API tokens as every server knows them: a copy of what the projections have built.

The copy is what calls are authenticated with, so that no call waits for PostgreSQL. It is loaded again when the version
of the topic 'user' has grown, which one statement asks twice a second: what one server changes ends sessions everywhere
within a second (contract.md, Authentication).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from ..core.users import ApiToken, User
from ..storage.database import Database
from ..storage.names import quote
from ..tasks import end
from .passwords import Passwords

_POLL_INTERVAL = 0.5
#: Seconds for which an ended sign-in is remembered: longer than any session lives (sessions.py).
_REMEMBERED = 24 * 3600
#: Ended sign-ins that are remembered, the newest: whoever signs in and out all day fills no memory.
_MOST_SIGN_OUTS = 10_000

_log = structlog.get_logger(__name__)


class Users:
    """The users of a cluster, for reading; ``start`` before use. accounts.py changes them."""

    def __init__(self, database: Database, schema: str, passwords: Passwords) -> None:
        """``schema`` is the admin schema's name, unquoted."""
        self._database = database
        self._passwords = passwords
        self._schema = quote(schema)
        self._rows = (
            "SELECT u.user_id, u.name, u.username, u.roles, u.created_at, u.updated_at, a.auth_version, a.password_hash"
            f" FROM {self._schema}.orisun_user AS u JOIN {self._schema}.orisun_authentication AS a USING (user_id)"
        )
        self._version = -1
        self._users: dict[str, User] = {}
        self._hashes: dict[str, tuple[User, str]] = {}
        self._tokens: dict[str, tuple[ApiToken, str]] = {}
        # sign-ins that were ended: those in PostgreSQL, and those of this server that it has not been seen to hold
        self._signed_out: set[str] = set()
        self._untold: set[str] = set()
        self._looked = datetime.now(UTC)
        self._listeners: list[Callable[[], None]] = []
        self._refreshing = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the users and keeps the copy fresh from then on. Raises Unavailable without PostgreSQL."""
        await self.refresh()
        self._poller = asyncio.create_task(self._poll(), name="users")

    async def stop(self) -> None:
        if self._poller is not None:
            await end([self._poller])
        self._passwords.close()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls ``listener()`` after the copy has changed, and after an API token has expired."""
        self._listeners.append(listener)

    def get(self, user_id: str) -> User | None:
        """A user of the copy."""
        return self._users.get(user_id)

    def named(self, username: str) -> User | None:
        """The user of the copy with that user name."""
        known = self._hashes.get(username)
        return known and known[0]

    def all(self) -> Sequence[User]:
        """The users of the copy, in no order."""
        return tuple(self._users.values())

    def tokens(self) -> Sequence[ApiToken]:
        """The API tokens of the copy, in no order."""
        return tuple(token for token, _ in self._tokens.values())

    def token(self, token_id: str, now: datetime) -> ApiToken | None:
        """An API token of the copy that has not expired."""
        known = self._tokens.get(token_id)
        return known[0] if known and now < known[0].expires_at else None

    def token_of(self, token_id: str, secret: str, now: datetime) -> ApiToken | None:
        """The API token with that secret that has not expired. Costs microseconds: a secret is random, so a plain
        hash of it serves."""
        known = self._tokens.get(token_id)
        if known is None or not hmac.compare_digest(known[1], hash_of_secret(secret)) or now >= known[0].expires_at:
            return None
        return known[0]

    def is_signed_out(self, sign_in: str) -> bool:
        """Whether a sign-in of the admin page was ended, on this server or, half a second ago, on another."""
        return sign_in in self._signed_out or sign_in in self._untold

    async def sign_out(self, sign_in: str) -> None:
        """Ends a sign-in everywhere; on this server also where PostgreSQL is away, and then it raises Unavailable."""
        self._untold.add(sign_in)
        table = f"{self._schema}.orisun_sign_out"
        with self._database.guard():
            await self._database.admin.execute(
                f"DELETE FROM {table} WHERE ended_at < clock_timestamp() - make_interval(secs => $1)"
                f" OR sign_in IN (SELECT sign_in FROM {table} ORDER BY ended_at DESC OFFSET $2)",
                *(_REMEMBERED, _MOST_SIGN_OUTS),
            )
            await self._database.admin.execute(
                f"INSERT INTO {table} (sign_in) VALUES ($1) ON CONFLICT (sign_in) DO NOTHING", sign_in
            )

    async def verify(self, username: str, password: str) -> User | None:
        """The user with that name and password, else None; takes the same time for a name that nobody has.

        Raises ResourceExhausted when too many passwords are being checked. ``Logins`` bounds the attempts.
        """
        known = self._hashes.get(username)
        if not await self._passwords.verify(username, known[1] if known else None, password) or known is None:
            return None
        # not when it was deleted or changed while the password was being checked
        return known[0] if self._hashes.get(username) == known else None

    async def list(self) -> list[User]:
        """All users by user name, from PostgreSQL."""
        with self._database.guard():
            rows = await self._database.admin.fetch(f"{self._rows} ORDER BY u.username")
        return [_user(row) for row in rows]

    async def count(self) -> int:
        """Number of users, from PostgreSQL."""
        with self._database.guard():
            number: int = await self._database.admin.fetchval(f"SELECT count(*) FROM ({self._rows}) AS u")
        return number

    async def refresh(self) -> None:
        """Loads the users and tokens when they have changed since the last look."""
        # one at a time: of two looks at once the later answer could be the older one
        async with self._refreshing:
            with self._database.guard():
                rows = await self._database.admin.fetch(
                    f"SELECT v.version, u.* FROM {self._schema}.orisun_version v"
                    f" LEFT JOIN ({self._rows}) AS u ON v.version <> $1 WHERE v.topic = 'user'",
                    self._version,
                )
                if rows[0]["version"] == self._version:
                    self._notice_expiry()
                    return
                # read after the version: what changes in between is loaded once more
                tokens = await self._database.admin.fetch(
                    f"SELECT token_id, name, roles, created_at, expires_at, created_by, secret_hash"
                    f" FROM {self._schema}.orisun_api_token"
                )
                ended = await self._database.admin.fetch(f"SELECT sign_in FROM {self._schema}.orisun_sign_out")
            self._signed_out = {row["sign_in"] for row in ended}
            self._untold -= self._signed_out
            self._take(rows, tokens)

    def _take(self, rows: Sequence[Any], tokens: Sequence[Any]) -> None:
        self._version = rows[0]["version"]
        known = [(_user(row), row["password_hash"]) for row in rows if row["user_id"] is not None]
        self._users = {user.user_id: user for user, _ in known}
        self._hashes = {user.username: (user, password_hash) for user, password_hash in known}
        self._tokens = {row["token_id"]: (_token(row), row["secret_hash"]) for row in tokens}
        self._tell()

    def _notice_expiry(self) -> None:
        before, self._looked = self._looked, datetime.now(UTC)
        if any(before < token.expires_at <= self._looked for token, _ in self._tokens.values()):
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    async def _poll(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(_POLL_INTERVAL)
            try:
                await self.refresh()
                failing = False
            except Exception as problem:  # the copy serves until PostgreSQL answers again
                self._notice_expiry()
                if not failing:
                    _log.warning("users cannot be read; the last known ones are used", reason=type(problem).__name__)
                failing = True


def hash_of_secret(secret: str) -> str:
    """What is stored of an API token's secret: SHA-256, in hex."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _user(row: Any) -> User:
    return User(
        row["user_id"],
        row["name"],
        row["username"],
        tuple(row["roles"]),
        row["auth_version"],
        row["created_at"],
        row["updated_at"],
    )


def _token(row: Any) -> ApiToken:
    return ApiToken(
        row["token_id"], row["name"], tuple(row["roles"]), row["created_at"], row["expires_at"], row["created_by"]
    )
