"""NATS servers as pods would run them: the rendered configuration, each on a loopback address of its own."""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from orisun_operator.api.cluster import ClusterSpec
from orisun_operator.resources import nats
from orisun_operator.resources.cluster import Cluster
from orisun_server.embedded.nats import _binary
from tests.operator.kubernetes import dies_with_us

PASSWORDS = {key: f"{key}-of-the-test" for key in nats.PASSWORDS}


def cluster_of(replicas: int) -> Cluster:
    postgres = {"external": {"host": "db", "credentialsSecretRef": {"name": "db"}}}
    spec = ClusterSpec.model_validate({"replicas": replicas, "postgres": postgres})
    return Cluster("shop", "store", "uid", spec, "orisun:1", "orisun-nats:1")


class NatsServers:
    """``start(ordinal)``, ``stop(ordinal)``; each pod has a loopback address, and each test run its own."""

    def __init__(self, directory: Path, cluster: Cluster, shell: Sequence[str] = ("/bin/sh",)) -> None:
        self._directory, self._cluster, self._shell = directory, cluster, shell
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def address(self, ordinal: int) -> str:
        return f"127.{64 + os.getpid() // 250 % 64}.{os.getpid() % 250}.{ordinal + 1}"

    def addresses(self) -> dict[str, str]:
        """Of the running ones, by pod."""
        return {self._cluster.pod(ordinal): self.address(ordinal) for ordinal in sorted(self._running)}

    def start(self, ordinal: int) -> None:
        place = self._directory / str(ordinal)
        for made in ("config", "bin", "data"):
            (place / made).mkdir(parents=True, exist_ok=True)
        files = dict(nats.configuration(self._cluster)["data"])
        secret = nats.auth_secret(self._cluster, PASSWORDS)["data"]
        files |= {name: base64.b64decode(secret[name]).decode() for name in ("auth.conf", "routes.conf")}
        for name, text in files.items():
            mine = text.replace("0.0.0.0", self.address(ordinal))
            for other in range(9):
                mine = mine.replace(self._cluster.host(other), self.address(other))
            (place / "config" / name).write_text(mine)
        container = nats.container(self._cluster)
        script = container["command"][-1]
        for real, ours in (("/etc/nats", "config"), (nats.DATA, "data")):
            script = script.replace(real, str(place / ours))
        # it ends with its shell, as in a container
        program = place / "bin" / "nats-server"
        program.write_text(f'#!/bin/sh\nexec {" ".join(dies_with_us("$PPID"))} {_binary()} "$@"\n')
        program.chmod(0o755)
        environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "POD_NAME": self._cluster.pod(ordinal),
            "STORE": nats.store_directory(self._cluster).replace(nats.DATA, str(place / "data")),
            "ADVERTISE": f"{self.address(ordinal)}:6222",
        }
        with (place / "log").open("ab") as log:
            self._running[ordinal] = subprocess.Popen(
                [*dies_with_us(), *self._shell, "-c", script],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, ordinal: int) -> str:
        return (self._directory / str(ordinal) / "log").read_text(errors="replace")

    def stop(self, ordinal: int, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        process = self._running.pop(ordinal)
        process.send_signal(number)
        return process.wait(60)

    @contextlib.contextmanager
    def another(self, ordinal: int) -> Iterator[None]:
        """One more on the volume of a running one, until the end of the block."""
        first = self._running[ordinal]
        self.start(ordinal)
        second, self._running[ordinal] = self._running[ordinal], first
        try:
            yield
        finally:
            second.kill()
            second.wait()

    def limit_files(self, ordinal: int, size: int | None) -> None:
        """From now on no file of a running one can grow beyond so many bytes; None lifts that."""
        shell = psutil.Process(self._running[ordinal].pid)
        server = next(one for one in [shell, *shell.children(recursive=True)] if one.name() == "nats-server")
        limit = resource.RLIM_INFINITY if size is None else size
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def begin_anew(self) -> None:
        """From now on servers are started for the next incarnation of JetStream's cluster."""
        self._cluster = replace(self._cluster, incarnation=self._cluster.incarnation + 1)

    def lose_volume(self, ordinal: int) -> None:
        """Of a stopped one."""
        shutil.rmtree(self._directory / str(ordinal) / "data")

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()
