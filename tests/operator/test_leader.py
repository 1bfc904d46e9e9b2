"""Who of several replicas works, on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from orisun_operator.kube import Kube, KubeError, Ref
from orisun_operator.leader import Leader, LeaseLost
from tests.harness import is_quick
from tests.operator.kubernetes import ApiServer

_DURATION = 1.2


@contextlib.asynccontextmanager
async def _running(leader: Leader) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(leader.hold())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Relay:
    """A network between the operator and the API server that can be cut, with an answer or without."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._mode = "pass"
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, api_server: ApiServer) -> AsyncIterator[tuple[_Relay, Path]]:
        config = yaml.safe_load(api_server.kubeconfig.read_text())
        target = config["clusters"][0]["cluster"]
        relay = cls(int(target["server"].rpartition(":")[2]))
        server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
        target["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        kubeconfig = api_server.kubeconfig.with_name("relayed")
        kubeconfig.write_text(yaml.safe_dump(config))
        try:
            yield relay, kubeconfig
        finally:
            server.close()
            relay._close()

    def refuse(self) -> None:
        self._mode = "refuse"
        self._close()

    def hang(self) -> None:
        self._mode = "hang"

    def _close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self._mode == "refuse":
            writer.transport.abort()
        if self._mode != "pass":
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.append(far_writer)
        await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _leader(kube: Kube, namespace: str, name: str, duration: float = _DURATION) -> Leader:
    return Leader(kube, namespace, "orisun-operator", duration, name)


async def test_one_leads_and_hands_over_at_once(kube: Kube, namespace: str) -> None:
    one, two = _leader(kube, namespace, "one"), _leader(kube, namespace, "two")
    await one.acquire()
    async with _running(one):
        waiting = asyncio.create_task(two.acquire())
        # longer than the Lease lasts unless it is renewed
        done, _ = await asyncio.wait([waiting], timeout=2 * _DURATION)
        assert not done
    await one.release()
    await asyncio.wait_for(waiting, 60)
    lease = await kube.get(Ref("coordination.k8s.io/v1", "Lease", namespace, "orisun-operator"))
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "two"
    assert lease["spec"]["leaseTransitions"] == 1

    async def hands_over() -> float:
        nonlocal one, two
        one, two = two, one
        waiting = asyncio.create_task(two.acquire())
        done, _ = await asyncio.wait([waiting], timeout=_DURATION / 3)
        assert not done
        began = time.monotonic()
        await one.release()
        await asyncio.wait_for(waiting, 60)
        return time.monotonic() - began

    await is_quick(hands_over, _DURATION)


async def test_a_dead_holder_is_succeeded_after_the_duration(kube: Kube, namespace: str) -> None:
    one, two = _leader(kube, namespace, "one"), _leader(kube, namespace, "two")
    await one.acquire()  # and never renewed
    started = asyncio.get_running_loop().time()
    await asyncio.wait_for(two.acquire(), 60)
    assert asyncio.get_running_loop().time() - started >= _DURATION
    # whoever comes back late finds that out
    async with _running(one) as hold:
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(hold, 60)


async def test_a_holder_that_cannot_renew_gives_up_before_others_take_over(kube: Kube, namespace: str) -> None:
    async def gives_up() -> float:
        one = _leader(kube, namespace, "one")
        await one.acquire()
        one._ref = one._ref._replace(namespace="no-such-namespace")  # as if the API server were away
        started = time.monotonic()
        async with _running(one) as hold:
            with pytest.raises(LeaseLost):
                await asyncio.wait_for(hold, 60)
        return time.monotonic() - started

    await is_quick(gives_up, _DURATION * 1.2)


async def test_who_was_stopped_for_a_while_writes_nothing_before_it_finds_out(
    kube: Kube, namespace: str, api_server: ApiServer
) -> None:
    mine = await Kube.connect(api_server.kubeconfig)
    try:
        # long enough to write something before it is over
        one = _leader(mine, namespace, "one", 4)
        assert not one.holds()
        await one.acquire()
        mine.fence(one.holds)
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "written", "namespace": namespace}}
        await mine.apply(obj)
        time.sleep(4)  # as SIGSTOP does  # noqa: ASYNC251
        assert not one.holds()
        with pytest.raises(KubeError, match="does not lead any more"):
            await mine.delete(Ref.of(obj))
        assert await mine.get(Ref.of(obj)) is not None
    finally:
        await mine.close()


async def test_a_try_that_hangs_ends_in_time_however_late_it_began(
    kube: Kube, namespace: str, api_server: ApiServer
) -> None:
    async def ends() -> float:
        async with _Relay.before(api_server) as (relay, kubeconfig):
            through = await Kube.connect(kubeconfig)
            try:
                one = _leader(through, namespace, "one")
                await one.acquire()
                started = time.monotonic()
                async with _running(one) as hold:
                    # what is asked early fails at once; what is asked just before the end is never answered
                    relay.refuse()
                    asyncio.get_running_loop().call_later(_DURATION * 0.55, relay.hang)
                    with pytest.raises(LeaseLost):
                        await asyncio.wait_for(hold, 60)
                return time.monotonic() - started
            finally:
                await through.close()

    await is_quick(ends, _DURATION)


async def test_of_two_at_once_one_gets_it(kube: Kube, namespace: str) -> None:
    leaders = [_leader(kube, namespace, f"number-{n}", 60) for n in range(5)]
    tasks = [asyncio.create_task(leader.acquire()) for leader in leaders]
    await asyncio.wait(tasks, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    done, pending = await asyncio.wait(tasks, timeout=1)
    for task in pending:
        task.cancel()
    assert len(done) == 1
