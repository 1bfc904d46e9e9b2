"""What goes wrong with a PostgreSQL, as ``Blocked`` whose message says what to do."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator

import asyncpg
from pydantic import ValidationError

from orisun_server.errors import FailedPrecondition, OrisunError, SchemaMismatch, Unavailable
from orisun_server.storage.managed import BoundaryInUse

from . import Blocked


@contextlib.contextmanager
def explained(target: str) -> Iterator[None]:
    """Failures of PostgreSQL as Blocked, by what caused them."""
    try:
        yield
    except Unavailable as error:
        raise _unavailable(target, error) from error
    except SchemaMismatch as error:
        raise Blocked("SchemaMismatch", f"{error}") from error
    except FailedPrecondition as error:
        raise Blocked("UnsuitablePostgres", f"PostgreSQL at {target}: {error}") from error
    except OrisunError as error:
        raise Blocked("StorageFailed", str(error), stalled=False) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise Blocked(
            "MissingPrivilege", f"PostgreSQL at {target}: its user lacks a privilege ({error}): GRANT it"
        ) from error
    except asyncpg.PostgresError as error:
        # not its message: that could quote an event
        what = f"{type(error).__name__}, SQLSTATE {error.sqlstate}"
        raise Blocked(
            "PostgresFailed", f"PostgreSQL at {target} refused a statement ({what}): its log says more", stalled=False
        ) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Blocked("InvalidSpec", f"spec.postgres or its Secret: {problems}") from None


def _unavailable(target: str, error: Unavailable) -> Blocked:
    if isinstance(error, BoundaryInUse):
        return Blocked("BoundaryInUse", str(error), stalled=False, retry=2.0)
    cause = error.__cause__
    if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError):
        return Blocked(
            "BadCredentials",
            f"PostgreSQL at {target} refuses the user or the password of the Secret: correct the Secret, or the role",
            retry=15.0,
        )
    if isinstance(cause, asyncpg.InvalidCatalogNameError):
        return Blocked(
            "UnknownDatabase", f"PostgreSQL at {target} has no such database: create it, or name another", retry=15.0
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Blocked(
            "UntrustedCertificate",
            f"PostgreSQL at {target} shows a certificate that is not taken ({cause.verify_message.rstrip('.')}):"
            " correct caSecretRef, host or sslMode of spec.postgres.external, or the certificate",
            retry=15.0,
        )
    return Blocked(
        "UnreachablePostgres",
        f"{error}: it is asked again; see that it runs, and that host, port, sslMode and network policies are right",
        stalled=False,
        retry=5.0,
    )
