"""Wiring: Kopf notices the resources, watches notice their children, a queue has them reconciled. No logic of kinds.

Kopf's low-level event handlers alone are used: they write nothing of their own (no annotations, no finalizers) into
resources that others keep in git. It runs standalone inside the holder of a Lease; its own peering elects nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import kopf
import structlog

from .api import GROUP, VERSION
from .endpoints import HealthServer, Liveness, serve_metrics
from .kube import KindMissing, Kube, KubeError
from .leader import Leader
from .login import login
from .metrics import Metrics
from .noticing import KINDS, Noticed
from .reconcile import Context, boundary, cluster, index
from .reconcile.postgres import Postgres
from .settings import OperatorSettings
from .work import Key, WorkQueue

log = structlog.get_logger(__name__)

_CLUSTER, _BOUNDARY, _INDEX = "orisunclusters", "boundaries", "eventindexes"
_RECONCILERS = {_CLUSTER: cluster.reconcile, _BOUNDARY: boundary.reconcile, _INDEX: index.reconcile}
_OWNERS = {kind: plural for plural, kind in KINDS.items()}
#: Everything of ours bears this label.
_OURS = "app.kubernetes.io/managed-by=orisun-operator"
_CHILDREN = (
    ("apps/v1", "StatefulSet"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("batch/v1", "Job"),
)
_WATCH_AGAIN = 5.0
#: Seconds between looks at a namespace that may not be read.
_LOOK_AGAIN = 15.0
#: Kopf notices a dead connection after 70 s; it may be behind for so many intervals of the timer, and these seconds.
_BEHIND, _BEHIND_AT_LEAST = 3, 10.0


async def run(settings: OperatorSettings) -> None:
    """Stand by, lead, work, until SIGTERM or SIGINT. Raises LeaseLost; the process must end then."""
    kube = await Kube.connect()
    asyncio.get_running_loop().set_exception_handler(heed)
    liveness = Liveness()
    metrics = Metrics(lambda: dict(kube.requests))
    stop = asyncio.Event()
    _stop_on_signals(stop)
    async with contextlib.AsyncExitStack() as parts:
        parts.push_async_callback(kube.close)
        if settings.health_port:
            parts.callback(HealthServer(liveness, settings.health_port).stop)
        if settings.metrics_port:
            parts.callback(serve_metrics(metrics, settings.metrics_port))
        beat = asyncio.create_task(liveness.beat())
        parts.callback(beat.cancel)
        leader = Leader(kube, settings.namespace, settings.lease_name, settings.lease_duration)
        if not await _unless_stopped(stop, leader.acquire()):
            return
        metrics.leads(True)
        # one that was stopped for a while goes on where it was, before it finds out that another one leads
        kube.fence(leader.holds)
        hold = asyncio.create_task(leader.hold(), name="lease")

        async def hand_over() -> None:
            hold.cancel()
            await leader.release()

        work = asyncio.create_task(
            _work(kube, settings, liveness, metrics, stop=stop, hand_over=hand_over), name="work"
        )
        done, _ = await asyncio.wait((hold, work), return_when=asyncio.FIRST_COMPLETED)
        if hold in done and not hold.cancelled():
            # another replica may work already: nothing may be written any more, not even by what is under way
            log.error("the Lease is lost; this process ends", reason=str(hold.exception()))
            os._exit(1)
        # handed over already, unless it failed; Kopf takes some seconds more to end
        try:
            await work
        finally:
            await hand_over()
        log.info("stopped")


def heed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the loop does with failures that nobody awaits, but for one of Kopf's that means nothing.

    When Kopf is told to stop while the API server has not answered a watch yet, its callback asks for the current task,
    which a callback has none of (``kopf._cogs.clients.api.stream``). The watch ends with the others.
    """
    if isinstance(context.get("exception"), AssertionError) and "request_cancel_callback" in str(context["message"]):
        return
    loop.default_exception_handler(context)


async def _unless_stopped(stop: asyncio.Event, waiting: Any) -> bool:
    """Whether the wait ended before the process was asked to stop."""
    task, asked = asyncio.ensure_future(waiting), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
    for one in (task, asked):
        if not one.done():
            one.cancel()
    if task.done() and not task.cancelled():
        task.result()
        return True
    return False


async def _work(
    kube: Kube,
    settings: OperatorSettings,
    liveness: Liveness,
    metrics: Metrics,
    *,
    stop: asyncio.Event,
    hand_over: Callable[[], Awaitable[None]],
) -> None:
    """Work until ``stop``; ``hand_over`` is called when nothing is written any more."""
    context = Context(kube, Postgres(kube), settings)
    queue = WorkQueue(
        {kind: functools.partial(reconcile, context) for kind, reconcile in _RECONCILERS.items()},
        workers=settings.workers,
        timer=settings.timer,
        metrics=metrics,
    )
    noticed = Noticed(queue, max(_BEHIND * settings.timer, _BEHIND_AT_LEAST))
    liveness.parts += [queue.problem, noticed.problem]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(queue.run(), name="queue")]
            for api_version, kind in _CHILDREN:
                for namespace in settings.namespaces or (None,):
                    tasks.append(group.create_task(_watch_children(kube, queue, api_version, kind, namespace)))
            namespaces = settings.namespaces or (None,)
            tasks += [group.create_task(_compare(kube, noticed, settings.timer, one)) for one in namespaces]
            noticing = asyncio.gather(*(_notice_resources(kube, noticed, settings, stop, one) for one in namespaces))
            asked = asyncio.create_task(stop.wait())
            await asyncio.wait((noticing, asked), return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await hand_over()
            await noticing
    finally:
        await context.postgres.close()
        await context.jetstream.close()


async def _take_signals_back(ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Kopf takes SIGTERM and SIGINT for itself when it starts; the queue has to end first."""
    await ready.wait()
    _stop_on_signals(stop)


async def _notice_resources(
    kube: Kube, noticed: Noticed, settings: OperatorSettings, stop: asyncio.Event, namespace: str | None
) -> None:
    """Kopf on one namespace, or on all of them (None), until ``stop``.

    One for each: where one may not be read any more, because it was deleted and our Role with it, Kopf ends. That
    namespace is looked at again now and then; the others do not notice. So it is with all of them and our ClusterRole.
    """
    where, told = namespace or "all", ""
    while not stop.is_set():
        problem = await _unreadable(kube, namespace)
        if problem and problem != told:
            log.error("resources are not looked after", namespace=where, error=problem)
        told = problem
        if not problem:
            ready = asyncio.Event()
            again = asyncio.create_task(_take_signals_back(ready, stop))
            noticed.begin(namespace)
            try:
                await kopf.operator(
                    registry=_registry(noticed),
                    settings=_kopf_settings(settings),
                    standalone=True,
                    clusterwide=namespace is None,
                    namespaces=() if namespace is None else (namespace,),
                    stop_flag=stop,
                    ready_flag=ready,
                )
                stop.set()
            except Exception as error:
                log.warning("resources are not looked after any more", namespace=where, error=str(error))
                _stop_on_signals(stop)
            finally:
                again.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN):
                await stop.wait()


async def _unreadable(kube: Kube, namespace: str | None) -> str:
    """Why the resources of a namespace, or (None) of all, cannot be read; "" when they can."""
    try:
        for kind in KINDS.values():
            await kube.list(f"{GROUP}/{VERSION}", kind, namespace)
    except KindMissing as missing:
        # looking at all namespaces, Kopf waits for a CRD by itself
        return "" if namespace is None else str(missing)
    except KubeError as error:
        return f"{error}: give the operator the roles of its chart" if error.status == 403 else str(error)
    return ""


async def _compare(kube: Kube, noticed: Noticed, interval: float, namespace: str | None) -> None:
    """Hold what Kopf told against what there is, now and then."""
    while True:
        await asyncio.sleep(interval)
        # where the API server does not answer nothing is known about Kopf
        with contextlib.suppress(KubeError):
            await noticed.compare(kube, namespace)


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


def _registry(noticed: Noticed) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    for plural in _RECONCILERS:
        kopf.on.event(GROUP, VERSION, plural, registry=registry)(functools.partial(_tell, noticed, plural))
    return registry


def _login(**_: object) -> kopf.ConnectionInfo:
    found = login()
    scheme, _blank, token = found.authorization.partition(" ")
    return kopf.ConnectionInfo(
        server=found.server,
        scheme=scheme or None,
        token=token or None,
        ca_path=found.ca_file,
        certificate_path=found.certificate,
        private_key_path=found.key,
        insecure=found.insecure,
        proxy_url=found.proxy,
        trust_env=True,
    )


def _kopf_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.watching.server_timeout = 300
    # with roles for single namespaces nobody may list namespaces or CRDs
    made.scanning.disabled = bool(settings.namespaces)
    return made


async def _tell(noticed: Noticed, plural: str, *, event: Mapping[str, Any], **_: object) -> None:
    noticed.tell(plural, event)


async def _watch_children(kube: Kube, queue: WorkQueue, api_version: str, kind: str, namespace: str | None) -> None:
    """Whatever happens to something of ours has its owner reconciled."""
    told = ""
    while True:
        try:
            async for obj in kube.watch(api_version, kind, namespace, _OURS):
                told = ""
                for key in _owners_of(obj):
                    queue.ask(key)
        except (KubeError, KindMissing) as error:
            if str(error) != told:
                told = str(error)
                log.warning("children are not watched; the timer finds what happens to them", kind=kind, error=told)
        await asyncio.sleep(_WATCH_AGAIN)


def _owners_of(obj: Mapping[str, Any]) -> list[Key]:
    metadata = obj["metadata"]
    namespace = metadata.get("namespace", "")
    owners = [
        Key(_OWNERS[owner["kind"]], namespace, owner["name"])
        for owner in metadata.get("ownerReferences") or ()
        if owner["kind"] in _OWNERS
    ]
    labels = metadata.get("labels") or {}
    if not owners and (instance := labels.get("app.kubernetes.io/instance")):
        # pods belong to their StatefulSet
        owners.append(Key(_CLUSTER, namespace, instance))
    return owners
