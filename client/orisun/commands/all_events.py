"""``orisun events`` with all of its commands."""

from . import exporting, importing
from .events import events

__all__ = ["events", "exporting", "importing"]
