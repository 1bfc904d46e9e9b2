"""What tests put into a namespace: a PostgreSQL, clusters, boundaries, indexes; and clients of them."""

from __future__ import annotations

import asyncio
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


class Database:
    """PostgreSQL as a user's: a StatefulSet with a volume, a Service ``db``, a Secret ``db-credentials``."""

    NAME, PASSWORD = "db", "only-in-tests"

    def __init__(self, namespace: Namespace, image: str) -> None:
        self._namespace, self._image = namespace, image

    async def start(self) -> None:
        await self._namespace.apply(*self._objects())

        async def ready() -> bool:
            return bool(await self.execute("SELECT 1"))

        await until(ready, 120, "PostgreSQL")

    async def execute(self, sql: str) -> str:
        """What psql prints, unaligned."""
        command = '"$(cat /data/bin)"/psql -h 127.0.0.1 -U postgres -d orisun -qAtX -v ON_ERROR_STOP=1 -c "$0"'
        return (
            await self._namespace.kubernetes.kubectl(
                "exec", "-n", self._namespace.name, f"{self.NAME}-0", "--", "sh", "-c", command, sql
            )
        ).strip()

    @contextlib.asynccontextmanager
    async def held(self, sql: str) -> AsyncIterator[None]:
        """A transaction that has executed the statement stays open, and is rolled back at the end."""
        kubernetes = self._namespace.kubernetes
        psql = '"$(cat /data/bin)"/psql -h 127.0.0.1 -U postgres -d orisun -qAtX -v ON_ERROR_STOP=1'
        process = await asyncio.create_subprocess_exec(
            "kubectl", "--kubeconfig", str(kubernetes.kubeconfig), "exec", "-i", "-n", self._namespace.name,
            f"{self.NAME}-0", "--", "sh", "-c", psql,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"BEGIN;\n{sql};\nSELECT 'held';\n".encode())
            async with asyncio.timeout(30):
                told = (await process.stdout.readline()).decode().strip()
            assert told == "held", told
            yield
            process.stdin.write(b"ROLLBACK;\n")
            process.stdin.close()
            async with asyncio.timeout(30):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def admin_schema(self) -> str:
        """Where the servers keep their catalog."""
        return await self.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'orisun_lease'")

    async def publisher(self, boundary: str) -> str:
        """The server that publishes a boundary at this moment (a status tells it up to a minute later): its pod's name,
        and what tells it from the pod's other servers; see ``pod_of``."""
        return await until(lambda: self.holder("publisher", boundary), 60, f"a publisher of {boundary}")

    async def holder(self, kind: str, boundary: str) -> str:
        """The server or operator that holds a lease in PostgreSQL, "" when nobody does."""
        schema = await self.admin_schema()
        return await self.execute(
            f"SELECT node_id FROM {schema}.orisun_lease WHERE kind = '{kind}' AND boundary = '{boundary}'"
        )

    @property
    def spec(self) -> Object:
        """``spec.postgres`` of a cluster on it."""
        credentials = {"name": f"{self.NAME}-credentials"}
        return {"external": {"host": self.NAME, "database": "orisun", "credentialsSecretRef": credentials}}

    def _objects(self) -> list[Object]:
        # trust for the local connections of tests, a password for all that comes over the network
        script = textwrap.dedent("""\
            cd /data
            bin=$(python -c 'from orisun_server.embedded import place; print(place.binaries(None))')
            echo "$bin" >bin
            if [ ! -d pg ]; then
              echo "$PASSWORD" >password
              "$bin"/initdb -D new -U postgres --pwfile password --auth-local trust --auth-host trust -E UTF8 >/dev/null
              echo "host all all all scram-sha-256" >>new/pg_hba.conf
              echo "CREATE DATABASE orisun" | "$bin"/postgres --single -D new postgres >/dev/null
              mv new pg
            fi
            rm -f pg/postmaster.pid
            exec "$bin"/postgres -D pg -c listen_addresses='*' -c unix_socket_directories=/tmp -c max_connections=500
            """)
        container = {
            "name": "postgres",
            "image": self._image,
            "command": ["sh", "-ec", script],
            "env": [{"name": "PASSWORD", "value": self.PASSWORD}],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        }
        labels = {"app": self.NAME}
        return [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": f"{self.NAME}-credentials"},
                "stringData": {"username": "postgres", "password": self.PASSWORD},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": self.NAME},
                "spec": {"selector": labels, "ports": [{"port": 5432}]},
            },
            {
                "apiVersion": "apps/v1",
                "kind": "StatefulSet",
                "metadata": {"name": self.NAME},
                "spec": {
                    "serviceName": self.NAME,
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {
                            "securityContext": {
                                "runAsNonRoot": True,
                                "runAsUser": 10001,
                                "fsGroup": 10001,
                                "seccompProfile": {"type": "RuntimeDefault"},
                            },
                            "containers": [container],
                        },
                    },
                    "volumeClaimTemplates": [
                        {
                            "metadata": {"name": "data"},
                            "spec": {
                                "accessModes": ["ReadWriteOnce"],
                                "resources": {"requests": {"storage": "1Gi"}},
                            },
                        }
                    ],
                },
            },
        ]


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

    @contextlib.asynccontextmanager
    async def client(self, boundary: str) -> AsyncIterator[Client]:
        """A client by the Service, as an application beside it has it: one name, whichever pod answers."""
        password = await self.kubernetes.password(self.namespace.name, self.name)
        async with contextlib.AsyncExitStack() as stack:
            # two channels: a name of which one connection broke still has another
            addresses = [
                await stack.enter_async_context(self.access.service(self.namespace.name, self.name)) for _ in range(2)
            ]
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
