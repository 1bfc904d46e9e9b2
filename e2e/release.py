"""The operator, installed with Helm as a user installs it."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from e2e.access import Access
from e2e.kubernetes import CommandError, Kubernetes, Object, until

ROOT = Path(__file__).parent.parent
CHART = ROOT / "helm" / "orisun-operator"
CLUSTER_CHART = ROOT / "helm" / "orisun-cluster"


class Release:
    """One release of the chart. ``ensure`` installs it where it is not, which every test may ask for."""

    def __init__(
        self,
        kubernetes: Kubernetes,
        images: tuple[str, str],
        *,
        namespace: str = "orisun-system",
        watch: Sequence[str] = (),
        values: Sequence[str] = (),
    ) -> None:
        self.name, self.namespace, self.kubernetes = "orisun-operator", namespace, kubernetes
        self.watched, self._images, self._values = tuple(watch), images, values

    async def values(self) -> list[str]:
        """Arguments of helm: images, namespaces (those that are still there), and short pauses for tests."""
        server, nats = ([*image.rpartition(":")[::2]] for image in self._images)
        values = [f"image.repository={server[0]}", f"image.tag={server[1]}"]
        values += [f"natsImage.repository={nats[0]}", f"natsImage.tag={nats[1]}"]
        if self.watched:
            found = await self.kubernetes.list("ns", None)
            there = {one["metadata"]["name"] for one in found if not one["metadata"].get("deletionTimestamp")}
            values.append("watchNamespaces={" + ",".join(name for name in self.watched if name in there) + "}")
        return [part for value in [*values, *self._values] for part in ("--set", value)]

    async def helm(self, *arguments: str, timeout: float = 300) -> str:
        return await self.kubernetes.helm(*arguments, "--namespace", self.namespace, timeout=timeout)

    async def status(self) -> str:
        """deployed, failed, uninstalling ... or "" where there is none."""
        found = json.loads(await self.helm("list", "--all", "--filter", f"^{self.name}$", "--output", "json"))
        return str(found[0]["status"]) if found else ""

    async def install(self, *more: str, chart: Path = CHART) -> None:
        """helm upgrade --install --wait."""
        arguments = ("upgrade", "--install", self.name, str(chart), "--create-namespace", "--wait", "--timeout", "180s")
        try:
            await self.helm(*arguments, *(await self.values()), *more)
        except CommandError as error:
            raise CommandError(f"{error}\n{await self.logs()}") from None

    async def uninstall(self) -> None:
        await self.helm("uninstall", self.name, "--wait", "--timeout", "180s")

    async def ensure(self) -> None:
        """It is there, with its own values, and its pods are ready."""
        status = await self.status()
        if status not in ("", "deployed"):  # left over by a run that was interrupted
            await self.helm("uninstall", self.name, "--no-hooks", "--wait", "--timeout", "60s")
        if status != "deployed":
            await self._namespace_is_free()
            await self.install()
        await self.scale(2)

    async def _namespace_is_free(self) -> None:
        """An earlier run's may still be ending."""
        found = await self.kubernetes.get("ns", self.namespace)
        if found is not None and found["metadata"].get("deletionTimestamp"):
            await self.kubernetes.gone("ns", self.namespace)

    async def scale(self, replicas: int) -> None:
        """More or fewer operators, and waits for it."""
        deployment = await self.kubernetes.must("deploy", self.name, self.namespace)
        if deployment["spec"]["replicas"] != replicas:
            arguments = ("scale", f"deployment/{self.name}", f"--replicas={replicas}", "-n", self.namespace)
            await self.kubernetes.kubectl(*arguments)

        async def is_so() -> bool:
            found = await self.kubernetes.must("deploy", self.name, self.namespace)
            status = found.get("status") or {}
            return (
                status.get("observedGeneration") == found["metadata"]["generation"]
                and status.get("readyReplicas", 0) == replicas == status.get("updatedReplicas", 0)
                and len(await self.pods()) == replicas
            )

        await until(is_so, 120, f"{replicas} operators")

    async def pods(self) -> list[Object]:
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=operator"
        return await self.kubernetes.list("pod", self.namespace, labels)

    async def leader(self) -> str:
        """Name of the pod that holds the Lease and runs."""

        async def holder() -> str:
            lease = await self.kubernetes.must("lease", self.name, self.namespace)
            identity = str(lease["spec"].get("holderIdentity") or "")
            return next((n for n in [pod["metadata"]["name"] for pod in await self.pods()] if n in identity), "")

        return await until(holder, 60, "a leader")

    async def holder(self) -> str:
        """Who leads: a pod's name, and what tells its process from the pod's earlier ones."""
        await self.leader()
        lease = await self.kubernetes.must("lease", self.name, self.namespace)
        return str(lease["spec"]["holderIdentity"])

    async def another(self, holder: str) -> str:
        """Waits until another process than this one leads, and tells its pod's name."""

        async def succeeded() -> bool:
            return await self.holder() != holder

        await until(succeeded, 90, "another leader")
        return await self.leader()

    async def figures(self, access: Access) -> dict[str, float]:
        """The leader's metrics: ``name`` or ``name{value of its label}``, and the figure."""
        leader = await self.leader()
        async with access.pod(self.namespace, leader, 8080) as address:

            def read() -> str:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                    return str(answer.read().decode())

            try:
                text = await asyncio.to_thread(read)
            except OSError as error:
                raise AssertionError(f"{leader} tells no metrics: {error}") from None
        return {
            sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def looks(self, access: Access, times: int, timeout: float) -> None:
        """Waits until the operator has looked so many times at each resource of ours that there is."""
        kinds = {"orisun": "orisunclusters", "bnd": "boundaries", "evidx": "eventindexes"}
        there = {name: len(await self.kubernetes.list(kind, None)) for kind, name in kinds.items()}
        before = await self.figures(access)

        async def looked() -> bool:
            now = await self.figures(access)
            done = {
                name: now.get(key, 0) - before.get(key, 0)
                for name in kinds.values()
                for key in [f"orisun_operator_reconciles_total{{{name}}}"]
            }
            assert all(done[name] >= times * count for name, count in there.items()), f"{done} of {there}"
            return True

        await until(looked, timeout, f"{times} looks at each resource")

    async def logs(self, lines: int = 60) -> str:
        """What the operators said last (-1: all), and what their pods suffer."""
        label = f"app.kubernetes.io/instance={self.name}"
        texts = await asyncio.gather(
            self.kubernetes.kubectl("get", "pods", "-n", self.namespace, "-o", "wide"),
            self.kubernetes.kubectl("logs", "-n", self.namespace, "-l", label, f"--tail={lines}", "--prefix"),
            return_exceptions=True,
        )
        return "\n".join(str(text) for text in texts)
