"""The system user that PostgreSQL runs as when the server is root, which PostgreSQL refuses to be."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

NAME = "orisun"


@dataclass(frozen=True)
class Account:
    """A system user."""

    name: str
    uid: int
    gid: int

    def can_reach(self, path: Path) -> bool:
        """Whether every directory above ``path`` lets this user pass, by its mode."""
        return all(self._may(parent, stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH) for parent in path.absolute().parents)

    def can_read(self, path: Path) -> bool:
        """Whether this user may open ``path``, an existing file."""
        return self.can_reach(path) and self._may(path, stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH)

    def _may(self, path: Path, user: int, group: int, other: int) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return True  # to be made by us
        if status.st_uid == self.uid:
            return bool(status.st_mode & user)
        if status.st_gid == self.gid:
            return bool(status.st_mode & group)
        return bool(status.st_mode & other)


def for_child(owned: Path) -> Account | None:
    """The user for PostgreSQL: None (ourselves) unless we are root; then the owner of ``owned``, or ``orisun``.

    The user ``orisun`` is created where it is missing and ``useradd`` can; ``nobody`` stands in where it cannot.
    """
    if os.geteuid() != 0:
        return None
    if owned.exists() and owned.stat().st_uid != 0:
        try:
            return _account(pwd.getpwuid(owned.stat().st_uid))
        except KeyError:  # the user was deleted, or comes from another machine; PostgreSQL needs one with a name
            pass
    try:
        return _account(pwd.getpwnam(NAME))
    except KeyError:
        pass
    useradd = shutil.which("useradd")
    if useradd is not None:
        command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", NAME]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - constant arguments
        try:
            account = _account(pwd.getpwnam(NAME))  # also when another process was faster
        except KeyError:
            log.warning("cannot create a system user for PostgreSQL", user=NAME, error=done.stderr.strip())
        else:
            log.info("PostgreSQL refuses to run as root; it gets a system user", user=NAME)
            return account
    return _account(pwd.getpwnam("nobody"))


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
