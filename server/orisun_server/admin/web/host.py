"""The HTTP ports of a server: there from its first moment, so that probes and people are told why it is not ready."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from ...core.proxies import Proxies
from .app import build
from .http import HttpServer
from .parts import Health, Parts, State
from .profiles import build_profiles

if TYPE_CHECKING:
    from ...settings import Settings

_log = structlog.get_logger(__name__)


class WebHost:
    """The admin page's port, and that of profiles where it is wanted; ``start``, then ``show``."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._state = State(health)
        tls = _tls(settings)
        proxies = Proxies(settings.trusted_proxies)
        self._page: HttpServer | None = None
        self._profiles: HttpServer | None = None
        if settings.admin_enabled:
            self._page = HttpServer(
                build(self._state, secure=tls is not None, proxies=proxies),
                host=settings.grpc_host,
                port=settings.admin_port,
                variable="ORISUN_ADMIN_PORT",
                tls=tls,
                proxies=proxies,
                # a second server on a laptop should just start; who names a port means it
                any_port="admin_port" not in settings.model_fields_set,
            )
        if settings.pprof_enabled:
            self._profiles = HttpServer(
                build_profiles(self._state, proxies=proxies),
                host=settings.grpc_host,
                port=settings.pprof_port,
                variable="ORISUN_PPROF_PORT",
                tls=tls,
                proxies=proxies,
            )
        self._host = settings.grpc_host

    @property
    def address(self) -> str:
        """Where the page is, as a URL; "" while there is none."""
        host = f"[{self._host.strip('[]')}]" if ":" in self._host else self._host
        return f"{self._page.scheme}://{host}:{self._page.port}" if self._page and self._page.port else ""

    @property
    def profiles_port(self) -> int:
        """The port of the profiles, 0 where there is none."""
        return self._profiles.port if self._profiles else 0

    async def start(self) -> None:
        """Raises PortTaken or WebTlsError, which say what to change."""
        if self._page is not None:
            await self._page.start()
            _log.info("admin page started", address=self.address)
        if self._profiles is not None:
            try:
                await self._profiles.start()
            except BaseException:
                await self.stop()
                raise
            _log.info("profiles can be taken", port=self._profiles.port)

    def show(self, parts: Parts) -> None:
        """The server has started: pages show these parts."""
        self._state.parts = parts

    def hide(self) -> None:
        """The server stops: pages say so."""
        self._state.parts = None

    async def stop(self) -> None:
        for server in (self._profiles, self._page):
            if server is not None:
                await server.stop()


def _tls(settings: Settings) -> tuple[Path, Path] | None:
    """As for gRPC, but without asking for client certificates: browsers, probes and scrapers have none."""
    return (settings.grpc_tls_cert_file, settings.grpc_tls_key_file) if settings.grpc_tls_enabled else None
