"""The operator as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.harness import free_port

_LEASE_SECONDS = 5


class Operator:
    """``orisun-operator run``; its Lease is in ``namespace``, which it looks after alone unless told otherwise.

    ``first`` is Python that its process executes before.
    """

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, *, first: str = "", **settings: str) -> None:
        self._kubeconfig, self._namespace, self._log, self._settings = kubeconfig, namespace, log, settings
        self._first = first
        self.metrics, self.health = free_port(), free_port()
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        told = {
            "NAMESPACE": self._namespace,
            "NAMESPACES": self._namespace,
            "LEASE_DURATION": str(_LEASE_SECONDS),
            "TIMER": "30",
            "METRICS_PORT": str(self.metrics),
            "HEALTH_PORT": str(self.health),
            **self._settings,
        }
        environment = {**os.environ, "KUBECONFIG": str(self._kubeconfig)}
        environment |= {f"ORISUN_OPERATOR_{name}": value for name, value in told.items()}
        with self._log.open("wb") as log:
            program = f"{self._first}\nfrom orisun_operator.cli import main\nmain()\n"
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, "run"), env=environment, stdout=log, stderr=log
            )

    def leads(self) -> bool:
        return "orisun_operator_leader 1.0" in self.scrape()

    def reconciles(self) -> int:
        """Of OrisunClusters."""
        found = re.search(r'reconciles_total\{kind="orisunclusters"\} (\d+)', self.scrape())
        return int(found.group(1)) if found else 0

    def scrape(self) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=2) as response:
                text: str = response.read().decode()
                return text
        except OSError:
            return ""

    def healthz(self) -> str:
        """What it answers; "" for nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/healthz", timeout=2) as response:
                text: str = response.read().decode().strip()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode().strip()
        except OSError:
            text = ""
        return text

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def end(self, number: int) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)
