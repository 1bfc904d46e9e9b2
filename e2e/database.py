"""A PostgreSQL beside the clusters of a namespace, as a user has one."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from collections.abc import AsyncIterator

from e2e.kubernetes import Object, until
from e2e.stores import Namespace


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
