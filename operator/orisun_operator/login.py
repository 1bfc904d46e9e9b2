"""How this process gets to the API server: its pod's service account, or a kubeconfig. For our requests and Kopf's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kopf
import yaml
from kopf import ConnectionInfo

__all__ = ["ConnectionInfo", "LoginError", "login"]


class LoginError(Exception):
    """There is neither a service account nor a kubeconfig that can be used."""


def login(kubeconfig: Path | str | None = None) -> ConnectionInfo:
    """In a pod its service account; else ``kubeconfig``, KUBECONFIG or ~/.kube/config. Raises LoginError.

    The token of a service account is replaced about every hour, so ask again now and then. A kubeconfig may have a
    token, a password or a certificate; programs that fetch one (``exec``) are not run.
    """
    settings = kopf.OperatorSettings()
    if kubeconfig is None and (found := kopf.login_with_service_account(settings=settings)) is not None:
        # by its address, as Kubernetes' own clients do it: that works while DNS does not
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
        return replace(found, server=f"https://{_bracketed(host)}:{port}") if host and port else found
    with _variable("KUBECONFIG", None if kubeconfig is None else str(kubeconfig)):
        where = os.environ.get("KUBECONFIG") or "~/.kube/config"
        try:
            found = kopf.login_with_kubeconfig(settings=settings)
        except (kopf.LoginError, yaml.YAMLError, OSError, LookupError, AttributeError, TypeError, ValueError) as error:
            why = f"there is no {error} in it" if isinstance(error, KeyError) else str(error)
            raise LoginError(f"the kubeconfig {where} cannot be used: {why}") from None
    if found is not None and not found.server:
        raise LoginError(f"the kubeconfig {where} cannot be used: its cluster has no server")
    if found is None:
        raise LoginError("no service account of a pod, no KUBECONFIG and no ~/.kube/config: how to get to Kubernetes?")
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for a moment: Kopf looks nowhere else. None leaves it as it is."""
    if value is None:
        yield
        return
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
