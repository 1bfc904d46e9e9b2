"""How the catalog of an Orisun store names the resource that manages a boundary or an index."""

from __future__ import annotations

from typing import NamedTuple


class Manager(NamedTuple):
    """``KIND/NAMESPACE/NAME@KUBERNETES``.

    Resources of two Kubernetes clusters may have the same names and look after one PostgreSQL: the last part tells them
    apart. It is missing ("") where the operator may not know it, and then fits any.
    """

    kind: str
    namespace: str
    name: str
    #: Of ``Kube.identity``.
    kubernetes: str = ""

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}" + (f"@{self.kubernetes}" if self.kubernetes else "")

    def is_called(self, text: str) -> bool:
        """Whether the catalog means this resource."""
        other = parse(text)
        return other is not None and other[:3] == self[:3] and not self.is_foreign(other)

    def is_foreign(self, other: Manager) -> bool:
        """Whether the other is a resource of another Kubernetes cluster."""
        return bool(self.kubernetes and other.kubernetes and self.kubernetes != other.kubernetes)


def parse(text: str) -> Manager | None:
    """The resource that a catalog names; None for what is no name of ours."""
    names, _, kubernetes = text.partition("@")
    parts = names.split("/")
    return Manager(parts[0], parts[1], parts[2], kubernetes) if len(parts) == 3 and all(parts) else None
