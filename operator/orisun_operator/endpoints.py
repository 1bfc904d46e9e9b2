"""/healthz and /metrics, served from threads of their own: they answer also while the event loop is stuck."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections.abc import Callable

from prometheus_client import start_http_server

from .metrics import Metrics

_BEAT = 1.0
#: Seconds after which a silent event loop counts as stuck.
_SILENT = 30.0


class Liveness:
    """Whether the process works: the loop beats, and no part of it says that it hangs."""

    def __init__(self) -> None:
        self._beaten = time.monotonic()
        #: Each says what is wrong with its part, "" for nothing; called from another thread than the loop's.
        self.parts: list[Callable[[], str]] = []

    async def beat(self) -> None:
        """Run it in the loop that is watched."""
        while True:
            self._beaten = time.monotonic()
            await asyncio.sleep(_BEAT)

    def problem(self) -> str:
        """ "" when all is well."""
        silent = time.monotonic() - self._beaten
        if silent > _SILENT:
            return f"the event loop has been stuck for {silent:.0f} s"
        return next(filter(None, (part() for part in self.parts)), "")


class HealthServer:
    """Answers GET /healthz with 200, or 503 and the problem."""

    def __init__(self, liveness: Liveness, port: int, host: str = "") -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                problem = liveness.problem() if self.path == "/healthz" else "not found"
                text = (problem or "ok").encode() + b"\n"
                self.send_response(404 if self.path != "/healthz" else 503 if problem else 200)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                """The kubelet asks all the time."""

        self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="healthz", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve_metrics(metrics: Metrics, port: int) -> Callable[[], None]:
    """Serve /metrics; the answer stops it."""
    server, thread = start_http_server(port, registry=metrics.registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
