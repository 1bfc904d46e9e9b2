"""Work on a connection that an application owns: in its transaction, with PostgreSQL's refusals as our errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import asyncpg

from ..errors import (
    BoundaryNotActive,
    Deadlock,
    FailedPrecondition,
    InvalidArgument,
    OrisunError,
    Unavailable,
)
from .database import Database


class Borrowed(Database):
    """The caller's connection in the place of the pools."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        super().__init__({}, "the application's connection", pooled=False, cached=False)
        self.write = self.read = self.admin = connection


@contextlib.asynccontextmanager
async def savepoint(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Inside a transaction a savepoint, so that what fails here does not take the caller's work with it."""
    if connection.is_closed():
        raise Unavailable("the connection to PostgreSQL is closed")
    if not connection.is_in_transaction():
        yield
        return
    # as SQL, because the caller may have begun the transaction by SQL
    try:
        await connection.execute("SAVEPOINT orisun_in_process")
    except asyncpg.InFailedSQLTransactionError:
        raise FailedPrecondition("the transaction has failed already: roll it back, then begin another") from None
    try:
        yield
    except BaseException:
        # a lost connection has nothing to roll back, and its own error says more
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.execute("ROLLBACK TO SAVEPOINT orisun_in_process")
        raise
    await connection.execute("RELEASE SAVEPOINT orisun_in_process")


@contextlib.asynccontextmanager
async def explained(boundary: str) -> AsyncIterator[None]:
    """PostgreSQL's refusals as this package's errors; neither statement nor data is quoted."""
    try:
        yield
    except asyncpg.InvalidTransactionStateError as error:
        raise FailedPrecondition(
            f"{error}: begin the transaction with isolation='read_committed'; under another level its snapshot may be"
            " older than the lock, and the check of the context would miss events"
        ) from None
    except asyncpg.DeadlockDetectedError:
        raise Deadlock(
            f'boundary "{boundary}": another transaction holds it and waits for what this one holds: roll back and run'
            " the transaction again; to avoid it, take the boundaries first, by lock(connection, ...)"
        ) from None
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError):
        raise Unavailable(
            f'boundary "{boundary}" is held by another open transaction for longer than lock_timeout or'
            " statement_timeout allows; roll back and try again"
        ) from None
    except asyncpg.ObjectNotInPrerequisiteStateError:
        # it is being removed (managed.CLOSED)
        raise BoundaryNotActive(boundary) from None
    except asyncpg.UndefinedFunctionError:
        raise FailedPrecondition(
            f'boundary "{boundary}" is not migrated: run `orisun migrate apply`, or the files of'
            " `orisun migrations generate`"
        ) from None
    except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
        raise InvalidArgument(
            f"invalid event JSON: PostgreSQL cannot store an event of this append (SQLSTATE {error.sqlstate})"
        ) from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise FailedPrecondition(f'boundary "{boundary}": PostgreSQL\'s user lacks a privilege ({error})') from None
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError) as error:
        raise Unavailable(f"the connection to PostgreSQL broke: {type(error).__name__}") from error
    except asyncpg.InterfaceError as error:
        if "clos" not in str(error):
            raise
        raise Unavailable("the connection to PostgreSQL is closed") from error
    except asyncpg.PostgresError as error:
        raise OrisunError(f'boundary "{boundary}": PostgreSQL refused the append (SQLSTATE {error.sqlstate})') from None
