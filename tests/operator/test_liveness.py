"""The operator's process when it hangs: /healthz tells the kubelet, and the other replica works meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orisun_operator.kube import Kube, Ref
from orisun_server.settings import Settings
from tests.harness import eventually
from tests.operator.clusters import NAME, Stage
from tests.operator.kubernetes import ApiServer
from tests.operator.processes import Operator

#: What the loop does at SIGUSR1, for longer than the Lease lasts; and patience that tests can wait for.
_HANGS = """
import signal, time
from orisun_operator import endpoints
endpoints._SILENT = 1.5
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(10))
"""
_IMPATIENT = """
from orisun_operator import work
work._STUCK = 1.0
"""

MakeOperator = Callable[[str], Operator]


@pytest.fixture
async def make_operator(api_server: ApiServer, namespace: str, tmp_path: Path) -> AsyncIterator[MakeOperator]:
    made: list[Operator] = []

    def make(first: str) -> Operator:
        made.append(Operator(api_server.kubeconfig, namespace, tmp_path / f"operator-{len(made)}.log", first=first))
        return made[-1]

    yield make
    for operator in made:
        if operator.process is not None:
            await operator.end(signal.SIGKILL)


async def test_a_loop_that_hangs_is_told_and_succeeded_and_writes_nothing_any_more(
    kube: Kube, namespace: str, settings: Settings, make_operator: MakeOperator
) -> None:
    stage = Stage(kube, namespace, settings)
    first, second = make_operator(_HANGS), make_operator("")
    await first.start()
    await eventually(first.leads, 30, 0.1, message="it does not lead")
    await second.start()
    await stage.create()
    service = Ref("v1", "Service", namespace, NAME)

    async def there() -> bool:
        return await kube.get(service) is not None

    await eventually(there, 30, 0.1)
    assert (first.healthz(), first.process is not None) == ("ok", True)
    assert first.process is not None
    first.process.send_signal(signal.SIGUSR1)
    await eventually(lambda: "the event loop has been stuck for" in first.healthz(), 10, 0.1)
    await kube.delete(service)
    await eventually(second.leads, 20, 0.1)
    await eventually(there, 20, 0.1)
    assert second.healthz() == "ok"
    # nobody killed it, and it goes on: it does not lead any more, and ends
    assert await asyncio.wait_for(first.process.wait(), 30) == 1
    assert "the Lease is lost" in first.log()
    assert second.leads()
    await stage.close()


async def test_a_reconcile_that_hangs_is_told(
    kube: Kube, namespace: str, settings: Settings, make_operator: MakeOperator
) -> None:
    """In a PostgreSQL that takes connections and says nothing."""
    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    silent = settings.model_copy(update={"pg_host": "127.0.0.1", "pg_port": server.sockets[0].getsockname()[1]})
    stage = Stage(kube, namespace, silent)
    operator = make_operator(_IMPATIENT)
    try:
        await operator.start()
        await stage.create()
        found = re.compile(rf"a reconcile has taken \d+ s: orisunclusters {namespace}/{NAME}")
        await eventually(lambda: found.fullmatch(operator.healthz()), 30, 0.1)
        assert operator.leads()

        # once it has its answer all is well again
        server.close()
        for one in connections:
            one.transport.abort()

        async def told() -> bool:
            with contextlib.suppress(KeyError):
                return (await stage.condition("Ready"))[1] == "UnreachablePostgres"
            return False

        await eventually(told, 60, 0.1)
        await eventually(lambda: operator.healthz() == "ok", 60, 0.1)
    finally:
        server.close()
        for one in connections:
            one.transport.abort()
        await stage.close()
