"""PostgreSQL and NATS as child processes, for a laptop, for tests, for a single server.

Each is started only where the settings name no other one (``Settings.embeds_postgres``, ``Settings.embeds_nats``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import SecretStr

from orisun_server.settings import Settings

if TYPE_CHECKING:  # what they need may not be installed where both are external
    from orisun_server.embedded.nats import EmbeddedNats
    from orisun_server.embedded.postgres import EmbeddedPostgres, PostgresAddress

__all__ = ["Embedded", "with_postgres"]


def with_postgres(settings: Settings, address: PostgresAddress) -> Settings:
    """The settings with ``pg_*`` naming that PostgreSQL."""
    return settings.model_copy(
        update={
            "pg_host": address.host,
            "pg_port": address.port,
            "pg_user": address.user,
            "pg_password": SecretStr(""),
            "pg_name": address.database,
            "pg_sslmode": "disable",
        }
    )


class Embedded:
    """Starts what the settings leave to us and says where it is.

    ``start`` returns the settings with ``pg_*`` and ``nats_url`` filled in; both children are restarted when they die.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.postgres: EmbeddedPostgres | None = None
        self.nats: EmbeddedNats | None = None

    async def start(self) -> Settings:
        """Raises EmbeddedError; then nothing is left running."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_postgres())
                group.create_task(self._start_nats())
        except BaseExceptionGroup as errors:
            await self.stop()
            raise errors.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise
        settings = self._settings
        if self.postgres is not None:
            settings = with_postgres(settings, self.postgres.address)
        if self.nats is not None:
            update = {"nats_url": SecretStr(self.nats.url), "nats_port": self.nats.port}
            settings = settings.model_copy(update=update)
        return settings

    async def stop(self) -> None:
        """Ends both, at the same time."""
        parts = [part for part in (self.postgres, self.nats) if part is not None]
        await asyncio.gather(*(part.stop() for part in parts))

    async def _start_postgres(self) -> None:
        if self._settings.embeds_postgres:
            from orisun_server.embedded.postgres import EmbeddedPostgres

            self.postgres = EmbeddedPostgres(self._settings.data_dir / "postgres")
            await self.postgres.start()

    async def _start_nats(self) -> None:
        if self._settings.embeds_nats:
            from orisun_server.embedded.nats import EmbeddedNats

            self.nats = EmbeddedNats(self._settings)
            await self.nats.start()
