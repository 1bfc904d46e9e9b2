"""A real kube-apiserver on a real etcd, for tests: no kubelet, no controllers, on free ports.

Their programs come from KUBEBUILDER_ASSETS or PATH (as for others' controller tests), from $ORISUN_E2E_CACHE/bin
(~/.cache/orisun-e2e/bin), or are unpacked there from beside this checkout.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from orisun_server.embedded import launch

_ROOT = Path(__file__).parents[2]
#: Of an administrator, and of a user who has the rights that a test gives it.
_TOKEN, _LIMITED = "the-tests", "the-limited"
LIMITED_USER = "limited"
_PATIENCE = 60.0


class ProgramsMissing(Exception):
    """There is no kube-apiserver or no etcd to start."""


def cache() -> Path:
    """Where programs of Kubernetes are unpacked to."""
    return Path(os.environ.get("ORISUN_E2E_CACHE") or Path.home() / ".cache" / "orisun-e2e") / "bin"


def programs() -> tuple[Path, Path]:
    """etcd and kube-apiserver. Raises ProgramsMissing saying where it looked."""
    places = [os.environ.get("KUBEBUILDER_ASSETS", ""), str(cache()), os.environ.get("PATH", "")]
    beside = _ROOT.parent / "shared" / "k8s" / "build.sh"
    for attempt in range(2):
        found = [shutil.which(name, path=os.pathsep.join(places)) for name in ("etcd", "kube-apiserver")]
        if all(found):
            etcd, apiserver = (Path(str(path)) for path in found)
            return etcd, apiserver
        if attempt == 0 and beside.exists():
            cache().mkdir(parents=True, exist_ok=True)
            subprocess.run([str(beside), "kube"], check=False, capture_output=True)
    raise ProgramsMissing(
        f"no etcd and kube-apiserver in KUBEBUILDER_ASSETS, {cache()} or PATH:"
        " the operator is NOT TESTED against a real API server"
    )


class ApiServer:
    """``start`` returns when it answers; ``kubeconfig`` then leads to it. ``stop`` ends both processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self.kubeconfig = directory / "kubeconfig"
        #: Of LIMITED_USER.
        self.limited_kubeconfig = directory / "limited-kubeconfig"
        #: Its own, with that of who signed it.
        self.certificate = directory / "certs" / "apiserver.crt"

    def start(self) -> None:
        etcd, apiserver = programs()
        client, peer, port = _free_ports(3)
        keys, tokens = self._directory / "sa.key", self._directory / "tokens.csv"
        keys.write_bytes(_private_key())
        tokens.write_text(f'{_TOKEN},tests,1,"system:masters"\n{_LIMITED},{LIMITED_USER},2\n')
        self._run(
            etcd,
            {
                "data-dir": self._directory / "etcd",
                "unsafe-no-fsync": "true",
                "log-level": "error",
                "listen-client-urls": f"http://127.0.0.1:{client}",
                "advertise-client-urls": f"http://127.0.0.1:{client}",
                "listen-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-cluster": f"default=http://127.0.0.1:{peer}",
            },
        )
        self._run(
            apiserver,
            {
                "etcd-servers": f"http://127.0.0.1:{client}",
                "bind-address": "127.0.0.1",
                "secure-port": port,
                "cert-dir": self._directory / "certs",
                "token-auth-file": tokens,
                "authorization-mode": "RBAC",
                "service-cluster-ip-range": "10.96.0.0/16",
                "service-account-issuer": "https://kubernetes.default.svc",
                "service-account-key-file": keys,
                "service-account-signing-key-file": keys,
                "disable-admission-plugins": "ServiceAccount",
                "endpoint-reconciler-type": "none",
            },
        )
        self.kubeconfig.write_text(_KUBECONFIG.format(port=port, token=_TOKEN))
        self.limited_kubeconfig.write_text(_KUBECONFIG.format(port=port, token=_LIMITED))
        self._await_ready(port)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _run(self, program: Path, flags: Mapping[str, object]) -> None:
        command = [*dies_with_us(), str(program), *(f"--{name}={value}" for name, value in flags.items())]
        with (self._directory / f"{program.name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            )

    def _await_ready(self, port: int) -> None:
        context = ssl._create_unverified_context()
        request = urllib.request.Request(
            f"https://127.0.0.1:{port}/readyz", headers={"Authorization": f"Bearer {_TOKEN}"}
        )
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5, context=context):
                    return
            except (OSError, urllib.error.URLError) as error:
                ended = [process.returncode for process in self._processes if process.poll() is not None]
                if ended or time.monotonic() > deadline:
                    self.stop()
                    logs = "\n".join(_tail(self._directory / f"{name}.log") for name in ("etcd", "kube-apiserver"))
                    raise AssertionError(f"no API server ({error}); the ends of its logs:\n{logs}") from error
            time.sleep(0.1)


_KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: tests, cluster: {{server: "https://127.0.0.1:{port}", insecure-skip-tls-verify: true}}}}]
users: [{{name: tests, user: {{token: {token}}}}}]
contexts: [{{name: tests, context: {{cluster: tests, user: tests}}}}]
current-context: tests
"""


def dies_with_us(us: str = "") -> list[str]:
    """What to write before a command, so that it ends with its parent (the test run), however that ends."""
    parent = us or str(os.getpid())
    return [sys.executable, "-I", "-S", launch.__file__, parent, str(signal.SIGKILL.value), "-1", "-1"]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _private_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _tail(file: Path) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-10:])
