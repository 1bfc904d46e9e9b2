"""What the pages show and change: the parts of a running server, and the state in which it may lack them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...delivery.publishers import Publishers
from ...delivery.roll_call import RollCall
from ...delivery.subscription import Subscriptions
from ...observation import Watch
from ...storage.catalog import Catalog
from ...storage.database import Database
from ...storage.group_commit import Appender
from ...storage.indexes import Indexes
from ...storage.insight import Insight
from ...storage.reads import Reader
from ...telemetry.sampler import Sampler
from ...telemetry.telemetry import Telemetry
from ..administration import Administration
from ..audit import Audit
from ..sessions import Sessions

if TYPE_CHECKING:
    from ...settings import Settings


class Health(Protocol):
    """Of transport/health.py's state, what pages and probes tell."""

    storage_ok: bool
    delivery_ok: bool

    @property
    def serving(self) -> bool: ...
    @property
    def degraded(self) -> bool: ...


@dataclass(frozen=True)
class Parts:
    """The parts of a server that has started."""

    settings: Settings
    node_id: str
    administration: Administration
    catalog: Catalog
    database: Database
    reader: Reader
    indexes: Indexes
    appender: Appender
    subscriptions: Subscriptions
    publishers: Publishers
    roll_call: RollCall
    telemetry: Telemetry
    watch: Watch

    @property
    def sessions(self) -> Sessions:
        return self.administration.sessions

    @property
    def audit(self) -> Audit:
        return self.administration.audit

    @property
    def insight(self) -> Insight:
        return self.telemetry.insight

    @property
    def sampler(self) -> Sampler:
        return self.telemetry.sampler


class State:
    """What the HTTP server knows of the server: ``parts`` are None while it starts and when it stops."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self.parts: Parts | None = None
