"""Recipes run when they are asked for: ``-m recipe``."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "recipe" in config.option.markexpr:
        return
    recipes = [item for item in items if item.get_closest_marker("recipe")]
    config.hook.pytest_deselected(items=recipes)
    items[:] = [item for item in items if not item.get_closest_marker("recipe")]
