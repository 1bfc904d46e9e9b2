"""How this process gets to the API server: its pod's service account, or a kubeconfig. For our requests and Kopf's."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

#: Where the kubelet puts what a pod signs in with (Kubernetes' documentation, "Accessing the API from a Pod").
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class LoginError(Exception):
    """There is neither a service account nor a kubeconfig that can be used."""


@dataclass(frozen=True)
class Login:
    """The API server, and what it is shown; paths are of PEM files, ``authorization`` is the header's value."""

    server: str
    authorization: str = ""
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    insecure: bool = False
    proxy: str | None = None

    def ssl_context(self) -> ssl.SSLContext:
        """Raises OSError or ValueError: a file is not there, or not what it should be."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def headers(self) -> dict[str, str]:
        return {"Authorization": self.authorization} if self.authorization else {}


def login(kubeconfig: Path | str | None = None) -> Login:
    """In a pod its service account; else ``kubeconfig``, KUBECONFIG or ~/.kube/config. Raises LoginError.

    Tokens of service accounts are replaced about every hour, those of kubeconfigs may be: ask again now and then.
    """
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
    if kubeconfig is None and host and port:
        return _of_service_account(host, port)
    where = str(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG") or "~/.kube/config"
    return _of_kubeconfig(where)


def _of_service_account(host: str, port: str) -> Login:
    try:
        token = (_SERVICE_ACCOUNT / "token").read_text().strip()
    except OSError as error:
        raise LoginError(f"this pod has no token of a service account: {error}") from None
    # by its address, as Kubernetes' own clients do it: that works while DNS does not
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Login(server, f"Bearer {token}", str(_SERVICE_ACCOUNT / "ca.crt"))


def _of_kubeconfig(where: str) -> Login:
    """By Kubernetes' own client, which knows all ways to sign in, programs that fetch a token among them.

    It is large and of no use in a pod, so images do without it.
    """
    try:
        from kubernetes.client import Configuration
        from kubernetes.config import load_kube_config
    except ImportError:
        raise LoginError("kubeconfigs need Kubernetes' own client: pip install 'orisun[kubeconfig]'") from None
    found = Configuration()
    found.host = ""
    try:
        load_kube_config(config_file=where, client_configuration=found)
    except Exception as error:  # a file may hold anything, and the client checks little of it
        raise LoginError(f"the kubeconfig {where} cannot be used: {error}") from None
    if not found.host:
        raise LoginError(f"the kubeconfig {where} cannot be used: its cluster has no server")
    authorization = found.get_api_key_with_prefix("BearerToken") or found.get_api_key_with_prefix("authorization")
    if not authorization and found.username:
        authorization = found.get_basic_auth_token()
    return Login(
        server=found.host,
        authorization=authorization or "",
        ca_file=found.ssl_ca_cert,
        certificate=found.cert_file,
        key=found.key_file,
        insecure=not found.verify_ssl,
        proxy=found.proxy,
    )
