"""/healthz and /metrics answer also while the event loop does not."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request

import pytest

from orisun_operator import endpoints
from orisun_operator.endpoints import HealthServer, Liveness
from tests.harness import eventually


def _get(port: int, path: str = "/healthz") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode().strip()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode().strip()


async def test_a_stuck_loop_and_a_stuck_part_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    liveness = Liveness()
    server = HealthServer(liveness, 0, "127.0.0.1")
    beat = asyncio.create_task(liveness.beat())
    try:
        await asyncio.sleep(0)
        assert _get(server.port) == (200, "ok")
        assert _get(server.port, "/other")[0] == 404
        monkeypatch.setattr(endpoints, "_SILENT", 0.3)
        time.sleep(0.4)  # the loop is stuck here  # noqa: ASYNC251
        status, text = _get(server.port)
        assert status == 503
        assert "the event loop has been stuck" in text
        stuck_since = liveness._beaten
        await eventually(lambda: liveness._beaten > stuck_since)
        monkeypatch.undo()
        liveness.parts += [lambda: "", lambda: "a reconcile has taken 10000 s"]
        assert _get(server.port) == (503, "a reconcile has taken 10000 s")
    finally:
        beat.cancel()
        server.stop()
