"""Password hashes: argon2id as OWASP's Password Storage Cheat Sheet recommends it (19 MiB, t=2, p=1).

Hashing runs in a few threads of its own behind a bounded queue, so that a flood of wrong passwords costs a bounded
share of the processor and of memory, and no call that brings a token or a known password waits for it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from ..errors import ResourceExhausted

_THREADS = max(1, (os.cpu_count() or 1) // 2)
#: Checks that may wait; at some 20 ms each, whoever is let in waits for seconds at most.
_MAX_WAITING = 128
#: Checks of one user name that may wait, so that a flood against one name leaves room for the others.
_MAX_WAITING_PER_NAME = 16
#: What whoever finds no room is told.
BUSY = "too many passwords are being checked; try again, or send the x-auth-token"

_T = TypeVar("_T")


class Passwords:
    """Hashes and verifies passwords; one for each server."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="passwords")
        # the hash of a password that nobody knows, to spend the same time on user names that do not exist
        self._nobody = self._hasher.hash(secrets.token_urlsafe())
        self._waiting: Counter[str] = Counter()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The hash to store. Raises ResourceExhausted when too many wait."""
        return await self._run("", lambda: self._hasher.hash(_encodable(password)))

    async def verify(self, username: str, password_hash: str | None, password: str) -> bool:
        """Whether the password is the one of the hash; None (no such user) takes the same time and is False.

        Raises ResourceExhausted when too many wait.
        """
        return await self._run(username, lambda: self._matches(password_hash, password))

    def _matches(self, password_hash: str | None, password: str) -> bool:
        try:
            return (
                self._hasher.verify(password_hash or self._nobody, _encodable(password)) and password_hash is not None
            )
        except (Argon2Error, InvalidHashError):
            return False

    async def _run(self, name: str, work: Callable[[], _T]) -> _T:
        if self._waiting.total() >= _MAX_WAITING or self._waiting[name] >= _MAX_WAITING_PER_NAME:
            raise ResourceExhausted(BUSY)
        self._waiting[name] += 1
        # a caller that leaves does not take its place in the threads' queue along
        job = asyncio.get_running_loop().run_in_executor(self._threads, work)
        job.add_done_callback(lambda _: self._done(name))
        return await asyncio.shield(job)

    def _done(self, name: str) -> None:
        self._waiting[name] -= 1
        if not self._waiting[name]:
            del self._waiting[name]


def _encodable(password: str) -> bytes:
    return password.encode(errors="surrogatepass")
