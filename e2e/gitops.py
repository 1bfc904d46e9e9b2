"""Argo CD as argocd.sh installs it, and a git repository that it watches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from e2e.kubernetes import Kubernetes, Object, run, until

WAVE = "argocd.argoproj.io/sync-wave"


def in_wave(number: int, obj: Object) -> str:
    """A file of one object, for Argo CD to apply in this wave; the CRDs may come in an earlier one."""
    obj["metadata"].setdefault("annotations", {}).update(
        {WAVE: str(number), "argocd.argoproj.io/sync-options": "SkipDryRunOnMissingResource=true"}
    )
    return json.dumps(obj, indent=2) + "\n"


def texts(directory: Path) -> dict[str, str]:
    """All files, by path."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_text() for path in files}


class Argo:
    """Argo CD in the cluster; ``scripts`` is where argocd.sh lies."""

    def __init__(self, kubernetes: Kubernetes, scripts: Path) -> None:
        self.kubernetes, self._script = kubernetes, str(scripts / "argocd.sh")

    async def up(self) -> None:
        await self._run("up", timeout=600)

    async def down(self) -> None:
        await self._run("down", timeout=300)

    async def health(self, kind: str, file: Path) -> None:
        """Teach it the health of a kind of ours."""
        await self._run("health", "orisun.io", kind, str(file))

    async def refresh(self, application: str) -> None:
        """Have it look at git now."""
        await self._run("refresh", application)

    async def repository(self, name: str, directory: Path) -> Repository:
        push, pull = (await self._run("git", name)).split()
        made = Repository(directory, push, pull)
        await made.start()
        return made

    async def follow(self, name: str, repository: Repository, namespace: str, *, path: str = ".") -> None:
        """An Application that keeps a namespace as a directory of the repository says."""
        application = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name, "namespace": "argocd"},
            "spec": {
                "project": "default",
                "source": {"repoURL": repository.url, "path": path, "targetRevision": "main"},
                "destination": {"server": "https://kubernetes.default.svc", "namespace": namespace},
                "syncPolicy": {
                    "automated": {"prune": True, "selfHeal": True},
                    "syncOptions": ["ServerSideApply=true", "CreateNamespace=true"],
                    "retry": {"limit": 5, "backoff": {"duration": "2s", "maxDuration": "20s"}},
                },
            },
        }
        await self.kubernetes.apply(application, namespace="argocd")

    async def application(self, name: str) -> Object:
        return await self.kubernetes.must("application", name, "argocd")

    async def is_so(self, name: str, sync: str, health: str) -> bool:
        """Raises AssertionError with what is different."""
        found = await self.application(name)
        status: dict[str, Any] = found.get("status") or {}
        state = (status.get("sync") or {}).get("status"), (status.get("health") or {}).get("status")
        assert state == (sync, health), f"{state}: {json.dumps(unsettled(status))}"
        return True

    async def until(self, name: str, sync: str, health: str, timeout: float = 240) -> None:
        await until(lambda: self.is_so(name, sync, health), timeout, f"application {name} {sync} and {health}")

    async def health_of(self, application: str, kind: str, name: str) -> str:
        """Health of a resource of the application: Healthy, Progressing, Degraded ... or ""."""
        resources = ((await self.application(application)).get("status") or {}).get("resources") or ()
        found = [one for one in resources if one["kind"] == kind and one["name"] == name]
        return str((found[0].get("health") or {}).get("status", "")) if found else ""

    async def _run(self, *arguments: str, timeout: float = 120) -> str:
        environ = {"KUBECONFIG": str(self.kubernetes.kubeconfig)}
        return await run(self._script, *arguments, timeout=timeout, environ=environ)


class Repository:
    """A git repository; ``files`` are what the next push makes it hold."""

    def __init__(self, directory: Path, push: str, pull: str) -> None:
        self._directory, self._push, self.url = directory, push, pull
        self.files: dict[str, str] = {}

    async def start(self) -> None:
        self._directory.mkdir(parents=True)
        await self._git("init", "-q", "-b", "main")
        await self._git("remote", "add", "origin", self._push)

    async def push(self, message: str) -> None:
        for entry in self._directory.iterdir():
            if entry.name != ".git":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for name, text in self.files.items():
            file = self._directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        await self._git("add", "-A")
        author = ("-c", "user.name=e2e", "-c", "user.email=e2e@localhost")
        await self._git(*author, "commit", "-q", "-m", message)
        await self._git("push", "-q", "origin", "HEAD:main")

    async def _git(self, *arguments: str) -> None:
        await run("git", "-C", str(self._directory), *arguments)


def unsettled(status: Object) -> list[Object]:
    """What of an Application's status says why it is not Synced and Healthy."""
    told: list[Object] = list(status.get("conditions") or [])
    operation = status.get("operationState") or {}
    if operation.get("phase") not in (None, "Succeeded"):
        told.append({"operation": operation.get("phase"), "message": operation.get("message")})
    for one in status.get("resources") or ():
        health = (one.get("health") or {}).get("status", "Healthy")
        if one.get("status") != "Synced" or health != "Healthy":
            told.append({"resource": f"{one['kind']}/{one['name']}", "sync": one.get("status"), "health": health})
    return told
