"""Kubernetes manifests as Go reads them."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Without YAML 1.1's type "value", which PyYAML knows by its tag alone: an enum may hold a plain =."""


_Loader.yaml_implicit_resolvers = {
    key: value for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items() if key != "="
}


def documents(text: str) -> list[dict[str, Any]]:
    """Every object of a file of several."""
    return [one for one in yaml.load_all(text, Loader=_Loader) if one]
