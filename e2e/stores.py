"""What tests put into a namespace: clusters, boundaries, indexes; and clients of them."""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import grpc

from e2e.access import Access
from e2e.kubernetes import API, CommandError, Kubernetes, Object, until
from tests.faults.clients import Client
from tests.harness import basic


class Namespace:
    """A namespace of one test."""

    LABELS = '{orisun-e2e: "true", pod-security.kubernetes.io/enforce: restricted}'

    def __init__(self, kubernetes: Kubernetes, name: str) -> None:
        self.kubernetes, self.name = kubernetes, name

    async def create(self) -> None:
        text = f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {self.name}, labels: {self.LABELS}}}}}"
        await self.kubernetes.kubectl("apply", "-f", "-", stdin=text)

        async def usable() -> bool:
            return await self.kubernetes.get("sa", "default", self.name) is not None

        await until(usable, 30, f"namespace {self.name}")

    async def delete(self, *, wait: bool = False, timeout: float = 120) -> None:
        arguments = ("delete", "namespace", self.name, "--ignore-not-found", f"--wait={str(wait).lower()}")
        await self.kubernetes.kubectl(*arguments, timeout=timeout)

    async def apply(self, *objects: Any) -> str:
        return await self.kubernetes.apply(*objects, namespace=self.name)

    async def describe(self) -> str:
        """What a person would look at after a failure."""
        texts = []
        for arguments in (
            ("get", "orisunclusters,boundaries,eventindexes,pods,services,pdb,pvc", "-o", "wide"),
            ("get", "orisunclusters,boundaries,eventindexes", "-o", "yaml", "--show-managed-fields=false"),
            ("get", "events", "--sort-by=.metadata.creationTimestamp"),
        ):
            with contextlib.suppress(CommandError):
                texts.append(await self.kubernetes.kubectl("-n", self.name, *arguments))
        for pod in await self.kubernetes.list("pod", self.name):
            name = pod["metadata"]["name"]
            with contextlib.suppress(CommandError):
                logs = await self.kubernetes.kubectl("logs", "-n", self.name, name, "--all-containers", "--tail=25")
                texts.append(f"-- logs of {name}\n{logs}")
        return "\n".join(texts)


def cluster(postgres: Object, *, name: str = "store", replicas: int = 3, **spec: Any) -> Object:
    """An OrisunCluster."""
    return {
        "apiVersion": API,
        "kind": "OrisunCluster",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "postgres": postgres, **spec},
    }


EMBEDDED: Object = {"embedded": {"storage": {"size": "1Gi"}}}


def boundary(name: str, /, *, cluster: str = "store", **spec: Any) -> Object:
    """A Boundary."""
    return {
        "apiVersion": API,
        "kind": "Boundary",
        "metadata": {"name": name},
        "spec": {"clusterRef": {"name": cluster}, **spec},
    }


def index(name: str, boundary: str, /, *keys: str, **spec: Any) -> Object:
    """An EventIndex on text keys; ``name`` is the index's, the resource's has the boundary's before it."""
    return {
        "apiVersion": API,
        "kind": "EventIndex",
        "metadata": {"name": f"{boundary}-{name}".replace("_", "-")},
        "spec": {
            "boundaryRef": {"name": boundary},
            "name": name,
            "fields": [{"jsonKey": key, "valueType": "TEXT"} for key in keys],
            **spec,
        },
    }


def pod_of(server: str) -> str:
    """The pod of a server, by the name that the server has in leases."""
    return server.rsplit("-", 2)[0]


class Servers:
    """The servers of an OrisunCluster."""

    def __init__(self, namespace: Namespace, access: Access, name: str) -> None:
        self.namespace, self.access, self.name = namespace, access, name
        self.kubernetes = namespace.kubernetes

    async def pods(self) -> list[Object]:
        return await self.kubernetes.pods(self.namespace.name, self.name)

    async def cluster(self) -> Object:
        return await self.kubernetes.must("orisun", self.name, self.namespace.name)

    async def none(self) -> None:
        """Waits until no pod is left."""

        async def gone() -> bool:
            return not await self.pods()

        await until(gone, 120, "no pods")

    async def ready(self, timeout: float = 240) -> Object:
        return await self.kubernetes.wait_for("orisun", self.name, self.namespace.name, timeout=timeout)

    async def patch(self, **spec: Any) -> None:
        await self.kubernetes.patch("orisun", self.name, {"spec": spec}, self.namespace.name)

    async def execute(self, sql: str) -> None:
        """In the embedded PostgreSQL, as somebody with its password."""
        script = textwrap.dedent("""\
            import asyncio, asyncpg, os, sys
            async def main():
                login = {key: os.environ[f"ORISUN_PG_{key.upper()}"] for key in ("user", "password", "port")}
                connection = await asyncpg.connect(host="127.0.0.1", database=os.environ["ORISUN_PG_NAME"], **login)
                await connection.execute(sys.argv[1])
            asyncio.run(main())
            """)
        pod = ("exec", "-n", self.namespace.name, f"{self.name}-postgres-0", "--")
        await self.kubernetes.kubectl(*pod, "python", "-c", script, sql)

    @contextlib.asynccontextmanager
    async def client(self, boundary: str, *pods: str) -> AsyncIterator[Client]:
        """A client by the Service, as an application beside it has it: one name, whichever pod answers.

        With ``pods`` by a connection to each of them.
        """
        password = await self.kubernetes.password(self.namespace.name, self.name)
        async with contextlib.AsyncExitStack() as stack:
            # two channels: a name of which one connection broke still has another
            ways = [self.access.pod(self.namespace.name, pod) for pod in pods] or [
                self.access.service(self.namespace.name, self.name) for _ in range(2)
            ]
            addresses = [await stack.enter_async_context(way) for way in ways]
            client = await stack.enter_async_context(Client(boundary, *addresses, metadata=basic("admin", password)))

            async def known() -> bool:
                """A server takes up what a resource made within a second."""
                try:
                    for number in range(len(addresses)):
                        await client.page(1, first=number)
                except grpc.aio.AioRpcError as error:
                    raise AssertionError(f"{error.code().name}: {error.details()}") from None
                return True

            await until(known, 10, f"the servers know {boundary}", interval=0.1)
            yield client


def show(what: str, value: Any) -> None:
    """A line of the report that a run is remembered by."""
    print(f"\n[e2e] {what}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
