"""An OrisunCluster on a real API server, and a hand in place of the controllers and the kubelet.

There is no StatefulSet controller here: ``follow`` makes and removes the pods that it would, as it would; ``ready``
says about a pod what its kubelet would. The PostgreSQL is the test run's own.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orisun_operator.api import API_VERSION
from orisun_operator.api.conditions import timestamp
from orisun_operator.jetstream import Health, JetStream
from orisun_operator.kube import Kube, Object, Ref
from orisun_operator.reconcile import Context, Outcome, boundary, cluster
from orisun_operator.reconcile.postgres import Postgres
from orisun_operator.settings import OperatorSettings
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.stores import later_release

NAME = "store"


class StillJetStream(JetStream):
    """The NATS servers of pods that are rows in etcd alone: nothing can be asked; what they would say is set here."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = Health()
        self.removed: list[str] = []

    async def health(self, pods: Mapping[str, str], *, clustered: bool) -> Health:
        return self.answer

    async def remove(self, addresses: Any, user: str, password: str, peer: str) -> None:
        self.removed.append(peer)


class Stage:
    """One OrisunCluster and its surroundings."""

    def __init__(self, kube: Kube, namespace: str, settings: Settings) -> None:
        self.kube, self.namespace, self.settings = kube, namespace, settings
        self.late = 0.0
        self.jetstream = StillJetStream()
        self.context = self.operator()

    def operator(self, **settings: Any) -> Context:
        """An operator with its own connections."""
        made = OperatorSettings(server_image="orisun:1", nats_image="orisun-nats:1", **settings)
        return Context(self.kube, Postgres(self.kube), made, self._now, self.jetstream)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.late)

    async def secret(self, name: str, **data: str) -> None:
        """Create a Secret, or change it."""
        obj = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": self.namespace},
            "stringData": data,
        }
        if await self.kube.create(obj) is None:
            await self.kube.patch(Ref.of(obj), {"stringData": data})

    async def create(self, **spec: Any) -> Object:
        """Create the OrisunCluster, on the test run's PostgreSQL unless the spec says otherwise."""
        await self.secret("credentials", username=self.settings.pg_user, password="anything")
        external = {
            "host": self.settings.pg_host,
            "port": self.settings.pg_port,
            "database": self.settings.pg_name,
            "sslMode": "disable",
            "credentialsSecretRef": {"name": "credentials"},
        }
        wanted = {
            "replicas": 3,
            "postgres": {"external": external},
            "admin": {"boundary": self.settings.admin_boundary},
            **spec,
        }
        made = await self.kube.create(
            {
                "apiVersion": API_VERSION,
                "kind": "OrisunCluster",
                "metadata": {"name": NAME, "namespace": self.namespace},
                "spec": wanted,
            }
        )
        assert made is not None
        return made

    @property
    def ref(self) -> Ref:
        return Ref(API_VERSION, "OrisunCluster", self.namespace, NAME)

    async def get(self, api_version: str, kind: str, name: str) -> Object | None:
        return await self.kube.get(Ref(api_version, kind, self.namespace, name))

    async def statefulset(self) -> Object:
        found = await self.get("apps/v1", "StatefulSet", NAME)
        assert found is not None
        return found

    async def status(self) -> dict[str, Any]:
        found = await self.kube.get(self.ref)
        assert found is not None
        status: dict[str, Any] = found["status"]
        return status

    async def condition(self, type: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        found = {c["type"]: c for c in (await self.status())["conditions"]}[type]
        return found["status"], found["reason"], found["message"]

    async def patch(self, **spec: Any) -> None:
        await self.kube.patch(self.ref, {"spec": spec})

    async def reconcile(self) -> Outcome:
        return await cluster.reconcile(self.context, self.namespace, NAME)

    async def events(self, reason: str) -> list[str]:
        found = await self.kube.list("events.k8s.io/v1", "Event", self.namespace)
        return [event["note"] for event in found if event["reason"] == reason]

    # -- what the controllers and the kubelet would do -------------------------------------------------------------

    async def pods(self) -> dict[str, Object]:
        return {p["metadata"]["name"]: p for p in await self.kube.list("v1", "Pod", self.namespace)}

    async def follow(self) -> list[str]:
        """Make the pods that the StatefulSet asks for, from its template, and remove those beyond; names of the new."""
        statefulset = await self.statefulset()
        there, made = await self.pods(), []
        for ordinal in range(statefulset["spec"]["replicas"]):
            name = f"{NAME}-{ordinal}"
            if name in there:
                continue
            template = statefulset["spec"]["template"]
            obj = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**template["metadata"], "name": name, "namespace": self.namespace},
                "spec": {
                    **template["spec"],
                    "volumes": [
                        *template["spec"]["volumes"],
                        {"name": "jetstream", "persistentVolumeClaim": {"claimName": f"jetstream-{name}"}},
                    ],
                },
            }
            obj["metadata"].pop("creationTimestamp", None)
            assert await self.kube.create(obj) is not None
            made.append(name)
        for name in there:
            if int(name.rpartition("-")[2]) >= statefulset["spec"]["replicas"]:
                await self.end(name)
        return made

    async def end(self, name: str) -> None:
        """What the kubelet does at the end of a pod that is being deleted."""
        ref = Ref("v1", "Pod", self.namespace, name)
        await self.kube._server.request("DELETE", await self.kube._server.path(ref), body={"gracePeriodSeconds": 0})

    async def embedded_pod(self) -> str:
        """Pod of the embedded PostgreSQL, made from its StatefulSet unless it is there; its uid."""
        statefulset = await self.get("apps/v1", "StatefulSet", f"{NAME}-postgres")
        assert statefulset is not None
        template, name = statefulset["spec"]["template"], f"{NAME}-postgres-0"
        metadata = {
            "name": name,
            "namespace": self.namespace,
            **{k: template["metadata"][k] for k in ("labels", "annotations")},
        }
        volumes = [*template["spec"]["volumes"], {"name": "data", "emptyDir": {}}]
        spec = {**template["spec"], "volumes": volumes}
        await self.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        found = await self.get("v1", "Pod", name)
        assert found is not None
        return str(found["metadata"]["uid"])

    async def ready(self, name: str, *, ip: str = "127.9.9.9") -> None:
        await self._tell(name, "True", ip, [])

    async def failing(self, name: str, reason: str = "ImagePullBackOff", message: str = "no such image") -> None:
        waiting = {"waiting": {"reason": reason, "message": message}}
        container = {"name": "server", "ready": False, "restartCount": 0, "image": "x", "imageID": "", "state": waiting}
        await self._tell(name, "False", "127.9.9.9", [container])

    async def _tell(self, name: str, ready: str, ip: str, containers: list[Object]) -> None:
        status = {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": timestamp(self._now())}],
            "containerStatuses": containers,
        }
        await self.kube.patch(Ref("v1", "Pod", self.namespace, name), {"status": status}, subresource="status")

    async def settle(
        self,
        *,
        ready: bool = True,
        waiting: str = "",
        degraded: bool = False,
        stalled: bool = False,
        patience: float = 20,
    ) -> None:
        """Reconcile and play the controllers until nothing moves, or until pod ``waiting`` is new and not ready.

        New pods become ready at once unless ``ready`` is false; ``degraded`` settles with JetStream ill, ``stalled``
        where a person has to act.
        """

        async def calm() -> bool:
            outcome = await self.reconcile()
            await self._collect()
            if await self.get("apps/v1", "StatefulSet", NAME) is None:
                return False
            for pod in (await self.pods()).values():
                if "deletionTimestamp" in pod["metadata"]:
                    await self.end(pod["metadata"]["name"])
            made = await self.follow()
            if ready:
                for name in made:
                    await self.ready(name)
            if waiting:
                return waiting in made
            wanted = {"Degraded"} if degraded else {"Stalled"} if stalled else set()
            return outcome.requeue is None or (await self.status()).get("phase") in wanted

        try:
            await eventually(calm, patience, 0.01)
        except AssertionError:
            raise AssertionError(f"not settled: {await self.status()}") from None

    async def _collect(self) -> None:
        """What the garbage collector does when a StatefulSet is deleted and its pods are to stay."""
        for statefulset in await self.kube.list("apps/v1", "StatefulSet", self.namespace):
            if "deletionTimestamp" in statefulset["metadata"]:
                await self.kube.remove_finalizer(statefulset, "orphan")

    async def claim(self, ordinal: int) -> None:
        """What the StatefulSet controller makes from the claim template."""
        template = (await self.statefulset())["spec"]["volumeClaimTemplates"][0]
        labels = (await self.statefulset())["spec"]["selector"]["matchLabels"]
        name = f"{template['metadata']['name']}-{NAME}-{ordinal}"
        spec = {key: value for key, value in template["spec"].items() if key != "status"}
        metadata = {"name": name, "namespace": self.namespace, "labels": labels}
        await self.kube.create(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        )

    async def claims(self) -> list[str]:
        """Of the claims that nobody has deleted."""
        found = await self.kube.list("v1", "PersistentVolumeClaim", self.namespace)
        return sorted(c["metadata"]["name"] for c in found if "deletionTimestamp" not in c["metadata"])

    async def close(self) -> None:
        await self.context.postgres.close()


class Plan:
    """A Boundary in mode Plan, whose plan waits for its approval since the operator became newer."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._obj: Object = {
            "apiVersion": API_VERSION,
            "kind": "Boundary",
            "metadata": {"name": "orders", "namespace": stage.namespace},
            "spec": {
                "clusterRef": {"name": NAME},
                "schema": stage.settings.boundaries[0].schema,
                "migration": {"mode": "Plan"},
            },
        }

    async def make(self) -> None:
        await self._stage.kube.create(self._obj)
        await self.approve()
        await self._stage.context.postgres.close()
        self._stage.context = replace(self._stage.context, postgres=Postgres(self._stage.kube, later_release()))
        assert await self._pending()

    async def approve(self) -> None:
        plan = await self._pending()
        await self._stage.kube.patch(Ref.of(self._obj), {"spec": {"migration": {"approvedPlan": plan}}})
        assert not await self._pending()

    async def _pending(self) -> str:
        await boundary.reconcile(self._stage.context, self._stage.namespace, "orders")
        found = await self._stage.kube.get(Ref.of(self._obj))
        assert found is not None
        return str(found["status"].get("pendingPlan", {}).get("hash", ""))
