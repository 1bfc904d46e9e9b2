"""From the test into the cluster: straight to an address where that is routed, else by port-forward."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator

from e2e.kubernetes import Kubernetes, until

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


async def opens(host: str, port: int, timeout: float = 1.0, authority: str | None = None) -> bool:
    """Whether a TCP connection comes about; with ``authority`` (PEM), to a server whose certificate is of it."""
    context = ssl.create_default_context(cadata=authority) if authority else None
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


class Access:
    """Decides once whether the cluster's addresses are routed from here."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self._kubernetes = kubernetes
        self._routed: bool | None = None

    async def _is_routed(self) -> bool:
        if self._routed is None:
            service = await self._kubernetes.must("svc", "kubernetes", "default")
            authority = (await self._kubernetes.must("cm", "kube-root-ca.crt", "default"))["data"]["ca.crt"]
            # the certificate tells it from a gateway that answers for every address
            self._routed = await opens(service["spec"]["clusterIP"], 443, authority=authority)
        return self._routed

    @contextlib.asynccontextmanager
    async def service(self, namespace: str, name: str, port: int = 5005) -> AsyncIterator[str]:
        """An address that leads to the Service. A port-forward is renewed when its pod goes."""
        if await self._is_routed():
            service = await self._kubernetes.must("svc", name, namespace)
            host = service["spec"]["clusterIP"]
            # kube-proxy is a moment behind
            await until(lambda: opens(host, port), 30, f"service {name} answers", interval=0.1)
            yield f"{host}:{port}"
            return
        async with Forward(self._kubernetes, namespace, f"svc/{name}", port) as forward:
            yield forward.address

    @contextlib.asynccontextmanager
    async def pod(self, namespace: str, name: str, port: int = 5005) -> AsyncIterator[str]:
        """An address that leads to the pod, as long as it is not replaced."""
        if await self._is_routed():
            pod = await self._kubernetes.must("pod", name, namespace)
            yield f"{pod['status']['podIP']}:{port}"
            return
        async with Forward(self._kubernetes, namespace, f"pod/{name}", port) as forward:
            yield forward.address


class Forward:
    """``kubectl port-forward``, started again whenever it ends, on the same local port."""

    def __init__(self, kubernetes: Kubernetes, namespace: str, target: str, port: int) -> None:
        self._kubernetes, self._namespace, self._target, self._port = kubernetes, namespace, target, port
        self._local = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._local}"

    async def __aenter__(self) -> Forward:
        self._task = asyncio.create_task(self._keep())

        async def listens() -> bool:
            if self._task.done():
                self._task.result()
            return bool(self._local) and await opens("127.0.0.1", self._local)

        await until(listens, 30, f"port-forward to {self._target}", interval=0.05)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _keep(self) -> None:
        while True:
            process = await asyncio.create_subprocess_exec(
                "kubectl", "--kubeconfig", str(self._kubernetes.kubeconfig), "port-forward", "-n", self._namespace,
                self._target, f"{self._local or ''}:{self._port}",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            assert process.stdout is not None
            try:
                async for line in process.stdout:
                    if found := _FORWARDING.search(line.decode()):
                        self._local = int(found[1])
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await asyncio.sleep(0.2)
