"""What can go wrong with projections; all are ``OrisunError``. No message quotes an event's data."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from ..errors import OrisunError
from ..position import Position

_DRIVERS = frozenset({"asyncpg", "psycopg", "psycopg2", "psycopg_pool"})
#: SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html): connection, transaction rolled back,
#: resources; a server that stops or starts, an idle session ended, read-only, a lock not free.
_PASSING_CLASSES = frozenset({"08", "40", "53"})
_PASSING_STATES = frozenset({"57P01", "57P02", "57P03", "57P05", "25006", "55P03"})
#: ``configuration_limit_exceeded``, such as temp_file_limit; ``query_canceled``, such as by statement_timeout.
_LIMIT, _CANCELED = "53400", "57014"


class ProjectionError(OrisunError):
    """Root of the errors of projections."""


class PartitionMismatch(ProjectionError):
    """The projection is laid out for another number of partitions, or another strategy, than the worker has."""


class VersionMismatch(ProjectionError):
    """The read model was made by another version of the projection."""


class ProjectionStopped(ProjectionError):
    """An event cannot be handled, and the policy is to stop. ``__cause__`` is what the handler raised."""

    def __init__(self, projection: str, event_id: str, position: Position, attempts: int, reason: str) -> None:
        self.projection, self.event_id, self.position = projection, event_id, position
        super().__init__(
            f'projection "{projection}" stopped at event {event_id} at {position} after {attempts} attempts: {reason};'
            " nothing of it was written, and the next start begins with it. Mend the handler, or park such events:"
            ' PoisonPolicy(then="park")'
        )


class NotParked(ProjectionError):
    """There is no such parked event."""


class Fenced(ProjectionError):
    """The checkpoint was reset, moved or laid out anew by somebody else; the worker has to look again."""


def moved(projection: str) -> Fenced:
    """What a worker is told whose checkpoint is not where it believed."""
    return Fenced(f'the checkpoint of projection "{projection}" was moved by somebody else')


def check_version(projection: str, found: int, own: int) -> None:
    """Raises VersionMismatch."""
    if found != own:
        raise VersionMismatch(
            f'projection "{projection}": the read model is of version {found}, and this worker of version {own}:'
            " rebuild the read model (without PostgreSQL: empty it and begin again, `reset`), or run the other version"
        )


def reason_of(error: BaseException) -> str:
    """An exception's type and where it was raised; its text may quote an event's data and stays out."""
    state = getattr(error, "sqlstate", None)
    frames = traceback.extract_tb(error.__traceback__)
    # the innermost frame that is not a library's
    own = [frame for frame in frames if "site-packages" not in frame.filename] or list(frames)
    place = f" at {own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno} in {own[-1].name}" if own else ""
    return f"{type(error).__name__}{f' (SQLSTATE {state})' if state else ''}{place}"


def is_passing(error: BaseException, *, in_handler: bool = False) -> bool:
    """Whether a database's failure passes by itself (connection lost, restart, deadlock, no connection free), so that
    it says nothing about the event. A statement that was cancelled, as by ``statement_timeout``, says something about
    the event ``in_handler`` only; elsewhere it waited for somebody's lock."""
    links = list(_chain(error))
    if any(map(_is_closed_pool, links)):
        return False  # by the application itself, and for good
    if isinstance(error, OSError) and not isinstance(error, PermissionError):
        return True  # outside a handler: a connection that cannot be made
    return any(_is_passing(link, in_handler) for link in links)


def _is_passing(error: BaseException, in_handler: bool) -> bool:
    """The same of asyncpg, and of psycopg and psycopg2 also where SQLAlchemy or Django has wrapped it."""
    driver = type(error).__module__.partition(".")[0]
    if driver not in _DRIVERS:
        return False
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is not None:
        if state == _CANCELED:
            return not in_handler
        return (state[:2] in _PASSING_CLASSES or state in _PASSING_STATES) and state != _LIMIT
    # without a state it was not PostgreSQL that said it: a lost connection, or none that is free
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if driver == "asyncpg":
        is_lost = "clos" in str(error) or "released" in str(error)
        return "InternalClientError" in kinds or ("InterfaceError" in kinds and is_lost)
    return bool(kinds & {"OperationalError", "InterfaceError"})


def _is_closed_pool(error: BaseException) -> bool:
    kind = type(error)
    return kind.__name__ == "PoolClosed" or (kind.__module__.startswith("asyncpg") and str(error) == "pool is closed")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
