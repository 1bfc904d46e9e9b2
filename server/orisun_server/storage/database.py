"""Connections to PostgreSQL: three pools, direct or behind a pooler in transaction mode.

Nothing here or above relies on the state of a session: behind a pooler, two statements of one connection may run in two
sessions. What is set per connection (jit off, the isolation level) is set as a startup parameter and on direct
connections only, because poolers refuse startup parameters that they do not know.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog

from ..errors import FailedPrecondition, OrisunError, StorageSilent, StorageUnavailable
from ..tasks import end
from . import tls
from .connector import Connector, open_connection
from .probe import Probe

if TYPE_CHECKING:
    from ..settings import Settings

log = structlog.get_logger(__name__)

#: The oldest PostgreSQL that the SQL of this package runs on.
MINIMUM_VERSION = 13

_POOLS = ("write", "read", "admin")
_CONNECT_TIMEOUT = 10.0
_UPKEEP_INTERVAL = 15.0

_PASSING = (
    OSError,  # includes TimeoutError and every failure to connect
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, restart, cancelled
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.ReadOnlySQLTransactionError,  # a standby: the primary has moved
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InternalClientError,  # a connection that ends between two messages confuses asyncpg's protocol
)
_POOLER = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


class Database:
    """Pools for appends (``write``), reads (``read``) and all the rest (``admin``); make one with ``connect``."""

    write: asyncpg.Pool
    read: asyncpg.Pool
    admin: asyncpg.Pool

    def __init__(
        self, options: dict[str, Any], target: str, *, pooled: bool, cached: bool, direct: dict[str, Any] | None = None
    ) -> None:
        self._options = options
        self._direct = direct
        self._connect = Connector(target)
        self._upkeep: list[asyncio.Task[None]] = []
        #: ``host:port/database``, for messages.
        self.target = target
        #: Whether a pooler stands between; LISTEN through it hears nothing.
        self.pooled = pooled
        #: Whether connections keep prepared statements.
        self.cached = cached

    @classmethod
    async def connect(cls, settings: Settings) -> Database:
        """Open the pools, with one connection each.

        Raises:
            Unavailable: PostgreSQL cannot be reached, or refuses the user or the database.
            FailedPrecondition: PostgreSQL is too old, or set up in a way that appends cannot work with; or the
                settings about TLS cannot be used.
        """
        for variable, text in tls.mistakes(settings):
            raise FailedPrecondition(f"{variable}: {text}")
        options: dict[str, Any] = {
            "host": settings.pg_host,
            "port": settings.pg_port,
            "user": settings.pg_user,
            "password": settings.pg_password.get_secret_value(),
            "database": settings.pg_name,
            "timeout": _CONNECT_TIMEOUT,
            "ssl": tls.context(settings),
            # every pooler knows this one
            "server_settings": {"application_name": "orisun"},
            "statement_cache_size": 0,
        }
        target = f"{settings.pg_host}:{settings.pg_port}/{settings.pg_name}"
        with _translated(target):
            pooled = await _probe(options)
        if not pooled:
            options["server_settings"] |= {"jit": "off", "default_transaction_isolation": "read committed"}
        cached = settings.pg_statement_cache == "on" or (settings.pg_statement_cache == "auto" and not pooled)
        if cached:
            options |= {"statement_cache_size": 1024, "max_cached_statement_lifetime": 0}
        direct = None
        if pooled and settings.pg_direct_host:
            direct = {**options, "host": settings.pg_direct_host, "port": settings.pg_direct_port}
        database = cls(options, target, pooled=pooled, cached=cached, direct=direct)
        try:
            for name in _POOLS:
                await database._open_pool(name, settings)
        except BaseException:
            await database.close()
            raise
        log.info("connected to PostgreSQL", target=target, pooler=pooled, statement_cache=cached)
        return database

    async def _open_pool(self, name: str, settings: Settings) -> None:
        def setting(suffix: str) -> Any:
            return getattr(settings, f"pg_{name}_{suffix}")

        with self.guard():
            pool = await asyncpg.create_pool(
                **self._options,
                connect=self._connect,
                min_size=1,
                max_size=setting("max_open_conns"),
                max_inactive_connection_lifetime=setting("conn_max_idle_time"),
                # asyncpg would replace a connection, and lose its plans, after 50,000 statements
                max_queries=2**62,
                # the default sends a query at each release, a round trip; asyncpg itself ends an open transaction
                reset=_no_reset,
            )
        setattr(self, name, pool)
        upkeep = _keep_up(pool, setting("max_idle_conns"), setting("conn_max_lifetime"))
        self._upkeep.append(asyncio.create_task(upkeep, name=f"postgres-{name}-upkeep"))

    async def dedicated_connection(self) -> asyncpg.Connection:
        """A connection of its own that no pool hands out; the caller closes it. Raises Unavailable."""
        with self.guard():
            return await self._connect(**self._options)

    @property
    def can_listen(self) -> bool:
        """Whether LISTEN has a way to PostgreSQL that is no pooler's."""
        return self._direct is not None or not self.pooled

    async def listen_connection(self) -> asyncpg.Connection:
        """A dedicated connection for LISTEN; the caller closes it.

        Raises:
            FailedPrecondition: A pooler stands between: it would take LISTEN and deliver nothing.
            Unavailable: PostgreSQL cannot be reached.
        """
        if not self.can_listen:
            raise FailedPrecondition(f"LISTEN hears nothing behind the pooler at {self.target}; poll instead")
        if self._direct is None:
            return await self.dedicated_connection()
        with self.guard():
            connection = await self._connect(**self._direct)
            try:
                if await connection.fetchval("SELECT pg_catalog.pg_backend_pid()") != connection.get_server_pid():
                    raise FailedPrecondition("ORISUN_PG_DIRECT_HOST and _PORT lead to a pooler; name PostgreSQL itself")
            except BaseException:
                connection.terminate()
                raise
            return connection

    def pools(self) -> list[tuple[str, asyncpg.Pool]]:
        """The pools that are open, by name."""
        return [(name, pool) for name in _POOLS if (pool := self.__dict__.get(name)) is not None]

    def probe(self) -> Probe:
        """Finds out whether PostgreSQL answers at all; the caller asks, and closes it."""
        return Probe(self._connect, self._options, pooled=self.pooled)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn failures that pass (connection lost, restart, no resources, no primary) into ``StorageUnavailable``."""
        try:
            with _translated(self.target):
                yield
        except StorageUnavailable as error:
            if self._connect.silent and not isinstance(error, StorageSilent):
                raise self._connect.silence() from error
            raise

    async def close(self) -> None:
        """Close all pools; connections in use get five seconds to finish."""
        await end(self._upkeep)
        self._upkeep.clear()
        pools = [pool for _, pool in self.pools()]
        try:
            async with asyncio.timeout(5):
                await asyncio.gather(*(pool.close() for pool in pools))
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            for pool in pools:
                pool.terminate()


async def _probe(options: dict[str, Any]) -> bool:
    """Check version and set-up, and tell whether a pooler stands between.

    A pooler gives each client a key of its own to cancel with, so the process id in it is not that of the session.
    """
    connection = await open_connection(**options)
    try:
        version = connection.get_server_version()
        if version.major < MINIMUM_VERSION:
            raise FailedPrecondition(f"PostgreSQL {version.major} is too old; {MINIMUM_VERSION} or newer is needed")
        row = await connection.fetchrow(
            "SELECT pg_catalog.pg_backend_pid() AS pid,"
            " pg_catalog.current_setting('default_transaction_isolation') AS isolation, current_user AS role"
        )
        pooled = bool(row["pid"] != connection.get_server_pid())
        if pooled and row["isolation"] != "read committed":
            raise FailedPrecondition(
                f"default_transaction_isolation is {row['isolation']!r} behind the pooler, and appends need"
                f" 'read committed': run ALTER ROLE \"{row['role']}\" SET default_transaction_isolation"
                " = 'read committed' and reconnect the pooler"
            )
        return pooled
    finally:
        connection.terminate()


async def _no_reset(_connection: object) -> None:
    """Leave the session as it is; nothing relies on its state."""


async def _keep_up(pool: asyncpg.Pool, max_idle: int, max_lifetime: float) -> None:
    """Bound the age and the number of a pool's idle connections, which asyncpg itself does not."""
    loop = asyncio.get_running_loop()
    renewed = loop.time()
    while True:
        await asyncio.sleep(min(_UPKEEP_INTERVAL, max_lifetime or _UPKEEP_INTERVAL))
        if max_lifetime and loop.time() - renewed >= max_lifetime:
            renewed = loop.time()
            await pool.expire_connections()
        surplus = pool.get_idle_size() - max_idle
        # the least recently used first: asyncpg's queue is a stack, and its holders have no public list
        for holder in list(getattr(pool._queue, "_queue", ())) if surplus > 0 else ():
            if surplus > 0 and holder.is_connected() and holder.is_idle():
                holder.terminate()
                surplus -= 1


@contextlib.contextmanager
def _translated(target: str) -> Iterator[None]:
    try:
        yield
    except OrisunError:
        raise
    except _PASSING as error:
        raise StorageUnavailable(f"PostgreSQL at {target} is not available: {_reason(error)}") from error
    except _POOLER as error:
        raise StorageUnavailable(
            f"PostgreSQL at {target} stands behind a pooler that keeps no prepared statements;"
            " set ORISUN_PG_STATEMENT_CACHE=off"
        ) from error
    except asyncpg.InterfaceError as error:
        if "clos" not in str(error) and "released" not in str(error):
            raise
        raise StorageUnavailable(f"PostgreSQL at {target} is not available: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
