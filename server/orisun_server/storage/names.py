"""Names of PostgreSQL objects, within its 63 bytes.

A name that would be longer is cut and given a hash of the full name (contract.md, Boundaries): PostgreSQL would cut it
silently, and two tables would become one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)
_MAX_BYTES = 63


def is_identifier(name: str) -> bool:
    """Whether a boundary or schema may be called that: 1-63 letters, digits, underscores, no digit first."""
    return _IDENTIFIER.fullmatch(name) is not None


def quote(identifier: str) -> str:
    """An identifier, quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text, quoted as an SQL literal (standard_conforming_strings on or off)."""
    escaped = text.replace("'", "''")
    return f" E'{escaped.replace(chr(92), chr(92) * 2)}'" if "\\" in escaped else f"'{escaped}'"


def digest(*parts: str) -> str:
    """Eight hex digits that tell names apart."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def shortened(name: str) -> str:
    """The name itself where it fits into 63 bytes, else its beginning and a hash of the whole."""
    if len(name.encode()) <= _MAX_BYTES:
        return name
    return name.encode()[: _MAX_BYTES - 9].decode(errors="ignore") + "_" + digest(name)


@dataclass(frozen=True)
class BoundaryNames:
    """The real names of a boundary's objects, unquoted; properties that begin with ``q_`` are quoted and qualified."""

    schema: str
    boundary: str

    def _name(self, suffix: str) -> str:
        return shortened(f"{self.boundary}_{suffix}")

    def qualified(self, name: str) -> str:
        return f"{quote(self.schema)}.{quote(name)}"

    @cached_property
    def events(self) -> str:
        return self._name("orisun_es_event")

    @cached_property
    def sequence(self) -> str:
        return self._name("orisun_es_event_global_id_seq")

    @cached_property
    def published(self) -> str:
        return self._name("orisun_last_published_event_position")

    @cached_property
    def checkpoints(self) -> str:
        return self._name("projector_checkpoint")

    @cached_property
    def commands(self) -> str:
        return self._name("orisun_command")

    @cached_property
    def append(self) -> str:
        return self._name("orisun_append")

    @cached_property
    def closed(self) -> str:
        """The trigger, and its function, that refuse events while the boundary is being removed."""
        return self._name("orisun_closed")

    @cached_property
    def event_id_index(self) -> str:
        return self._name("orisun_es_event_event_id_key")

    @cached_property
    def q_events(self) -> str:
        return self.qualified(self.events)

    @cached_property
    def q_published(self) -> str:
        return self.qualified(self.published)

    @cached_property
    def q_sequence(self) -> str:
        return self.qualified(self.sequence)

    @cached_property
    def q_checkpoints(self) -> str:
        return self.qualified(self.checkpoints)

    @cached_property
    def q_commands(self) -> str:
        return self.qualified(self.commands)

    @cached_property
    def q_append(self) -> str:
        return self.qualified(self.append)

    @cached_property
    def lock_key(self) -> int:
        """Key of the boundary's advisory lock: 64 bits, hashed from 'orisun', schema and table (design.md, 1)."""
        raw = hashlib.sha256("\0".join(("orisun", self.schema, self.events)).encode()).digest()[:8]
        return int.from_bytes(raw, "big", signed=True)

    def index(self, name: str, shape: str) -> str:
        """Name of an index; the hash keeps boundary a_b, index c apart from boundary a, index b_c."""
        return self._cut_with_hash(f"{self.boundary}_{name}", self.boundary, name, shape)

    @staticmethod
    def _cut_with_hash(prefix: str, *parts: str) -> str:
        return prefix.encode()[: _MAX_BYTES - 9].decode(errors="ignore") + "_" + digest(*parts)
