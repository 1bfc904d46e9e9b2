"""What a server notices of its own work: counts, slow queries, traces; whatever shows it reads from here."""

from .metrics import BoundaryMetrics, Histogram, Metrics
from .queries import QueryEntry, QueryLog
from .tracing import Tracing
from .watch import Watch

__all__ = ["BoundaryMetrics", "Histogram", "Metrics", "QueryEntry", "QueryLog", "Tracing", "Watch"]
