"""One connection pool to one Kubernetes API server: paths of kinds by discovery, requests, errors in its own words."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from .api import FIELD_MANAGER
from .login import Login, LoginError, login

Object = dict[str, Any]
#: Seconds that one request may take.
_PATIENCE = 30.0
#: Seconds after which the service account's token is read again: the kubelet replaces it while it still holds.
_TOKEN_HOLDS = 60.0
#: Bytes that may wait to be read; a line of a watch, which is one object, may have twice as many.
_BUFFER = 2**21
#: How server-side apply tells, with status 500, of an object that does not fit its kind: the sender's mistake.
_MISFITS = ("failed to create typed patch object", "failed to convert new object")
#: Seconds until a kind that was not there is looked for again (its CRD may come later).
_ABSENT = 30.0


class Ref(NamedTuple):
    """Which object: ``namespace`` is "" for one of the whole cluster."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Ref:
        """The reference of an object that is at hand."""
        metadata = obj["metadata"]
        return cls(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"])

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class KubeError(Exception):
    """The API server refused, or did not answer (``status`` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        #: HTTP status; 0 when there was no answer.
        self.status = status
        #: One CamelCase word of the API server: AlreadyExists, Conflict, Forbidden, Invalid ...
        self.reason = reason

    @property
    def is_passing(self) -> bool:
        """Whether trying again later is enough."""
        return self.status in (0, 409, 429) or self.status >= 500


class KindMissing(KubeError):
    """The API server does not know this kind: its CRD is not installed."""


class ApiServer:
    """Make it with ``connect``."""

    def __init__(self, log_in: Callable[[], Login]) -> None:
        self._log_in, self._login = log_in, log_in()
        self._logged_in_at = time.monotonic()
        #: Sent with each request.
        self.headers: dict[str, str] = {"Accept": "application/json"}
        # unlimited: watches of many namespaces hold a connection each, and the Lease must never wait for one
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._login.ssl_context()),
            headers={"User-Agent": FIELD_MANAGER},
            proxy=self._login.proxy,
            trust_env=True,
            read_bufsize=_BUFFER,
        )
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}
        self._absent: dict[str, float] = {}
        #: Requests so far, by HTTP method.
        self.requests: Counter[str] = Counter()
        #: Whether anything may be written just now.
        self.may_write: Callable[[], bool] = lambda: True

    @classmethod
    async def connect(cls, kubeconfig: Path | str | None = None) -> ApiServer:
        """In a pod its service account; else ``kubeconfig``, KUBECONFIG or ~/.kube/config. Raises KubeError."""
        try:
            return cls(lambda: login(kubeconfig))
        except LoginError as error:
            raise KubeError(0, "LoginFailed", str(error)) from None
        except (OSError, ValueError) as error:
            raise KubeError(0, "LoginFailed", f"a certificate for the API server cannot be used: {error}") from None

    async def close(self) -> None:
        await self._session.close()

    async def stream(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[Object]:
        """The events of a watch, for about that long. Raises KubeError (410: the version is too old)."""
        self.requests["WATCH"] += 1
        parameters = {**query, "watch": "true", "timeoutSeconds": str(seconds)}
        patience = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE, sock_read=seconds + _PATIENCE)
        try:
            async with self._send("GET", path, params=parameters, timeout=patience) as response:
                if response.status != 200:
                    raise KubeError(response.status, "WatchFailed", f"GET {path} was answered with {response.status}")
                async for line in response.content:
                    event = _parsed(line)
                    if event.get("type") == "ERROR":
                        told = event.get("object") or {}
                        raise KubeError(int(told.get("code") or 500), "WatchFailed", str(told.get("message")))
                    yield event
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KubeError(0, "Unreachable", f"the API server does not answer: {error}") from error

    async def path(self, ref: Ref, subresource: str = "") -> str:
        group = "/api/v1" if ref.api_version == "v1" else f"/apis/{ref.api_version}"
        plural, namespaced = await self._resource(group, ref)
        parts = [group]
        if namespaced and ref.namespace:
            parts += ["namespaces", quote(ref.namespace, safe="")]
        parts += [part for part in (plural, quote(ref.name, safe=""), subresource) if part]
        return "/".join(parts)

    async def _resource(self, group: str, ref: Ref) -> tuple[str, bool]:
        """The plural of a kind and whether it lives in namespaces, by discovery."""
        known = self._resources.get(group, {}).get(ref.kind)
        if known is not None:
            return known
        missing = KindMissing(404, "KindMissing", f"the API server has no {ref.kind} of {ref.api_version}")
        key = f"{group}/{ref.kind}"
        if time.monotonic() < self._absent.get(key, 0.0):
            raise missing
        try:
            resources = (await self.request("GET", group))["resources"]
        except KubeError as error:
            if error.status != 404:
                raise
            resources = []
        self._resources[group] = {r["kind"]: (r["name"], r["namespaced"]) for r in resources if "/" not in r["name"]}
        if ref.kind not in self._resources[group]:
            self._absent[key] = time.monotonic() + _ABSENT
            raise missing
        return self._resources[group][ref.kind]

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Sequence[Any] | None = None,
        content: str = "application/json",
    ) -> Object:
        if method != "GET" and not self.may_write():
            raise KubeError(0, "NotLeading", "this replica does not lead any more: nothing is written")
        self.requests[method] += 1
        data = None if body is None else json.dumps(body).encode()
        patience = aiohttp.ClientTimeout(total=_PATIENCE)
        try:
            async with self._send(
                method, path, params=query, data=data, headers={"Content-Type": content}, timeout=patience
            ) as response:
                text = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            why = str(error) or type(error).__name__
            raise KubeError(0, "Unreachable", f"the API server does not answer: {why}") from error
        answer: Object = _parsed(text)
        if not 200 <= response.status <= 299:
            message = str(answer.get("message") or f"{method} {path} was answered with {response.status}")
            if response.status == 500 and message.startswith(_MISFITS):
                raise KubeError(422, "Invalid", message)
            raise KubeError(response.status, str(answer.get("reason") or ""), message)
        return answer

    def _send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        now = time.monotonic()
        if now - self._logged_in_at > _TOKEN_HOLDS:
            self._logged_in_at = now
            # while it cannot be read the old one serves
            with contextlib.suppress(LoginError, OSError):
                self._login = self._log_in()
        sent = {**self.headers, **self._login.headers(), **(headers or {})}
        return self._session.request(method, self._login.server.rstrip("/") + path, headers=sent, **more)


def _parsed(text: bytes) -> Object:
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
