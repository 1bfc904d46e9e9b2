"""What is written twice because something else reads it: charts, locks, compose files, versions."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from orisun_server.environment import variables
from tests.manifests import documents

ROOT = Path(__file__).parents[2]
CHARTS = sorted(path.parent for path in ROOT.glob("helm/*/Chart.yaml"))


def _pins(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ]+)", text, re.M))


def test_the_chart_carries_the_crds() -> None:
    source, carried = ROOT / "crds", ROOT / "helm" / "orisun-operator" / "files" / "crds"
    assert {p.name: p.read_text() for p in carried.iterdir()} == {
        p.name: p.read_text() for p in source.glob("*.yaml")
    }, "run: make chart"


def test_install_yaml_carries_the_crds() -> None:
    installed = ROOT / "examples" / "kubernetes" / "kustomize" / "base" / "install.yaml"
    objects = documents(installed.read_text())
    specs = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "CustomResourceDefinition"}
    wanted = [one for path in (ROOT / "crds").glob("*.yaml") for one in documents(path.read_text())]
    assert specs == {one["metadata"]["name"]: one["spec"] for one in wanted}, "run: make chart"


@pytest.mark.parametrize("chart", CHARTS, ids=lambda path: path.name)
def test_versions_agree(chart: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    described = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert described["appVersion"] == version
    assert re.sub(r"-(a|b|rc)\.", r"\1", described["version"]) == version


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that is given twice JSON's readers take the last one without a word."""
    assert len(dict(pairs)) == len(pairs), [key for key, _ in pairs]
    return dict(pairs)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda path: path.name)
def test_the_schema_knows_every_value(chart: Path) -> None:
    values = yaml.safe_load((chart / "values.yaml").read_text())
    schema = json.loads((chart / "values.schema.json").read_text(), object_pairs_hook=_once)

    def check(value: Any, of: dict[str, Any], path: str) -> None:
        if "$ref" in of:
            of = schema["definitions"][of["$ref"].rpartition("/")[2]]
        if isinstance(value, dict) and of.get("additionalProperties") is False:
            assert value.keys() <= of["properties"].keys(), path
            for key, one in value.items():
                check(one, of["properties"][key], f"{path}.{key}")

    assert schema["additionalProperties"] is False
    check(values, schema, chart.name)


def test_the_image_holds_what_is_tested() -> None:
    image, all_of_it = _pins("requirements-image.lock"), _pins("requirements.lock")
    assert image.items() <= all_of_it.items(), "run: make lock"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in ("server", "operator", "embedded") for one in extras[extra])]
    names = {re.match(r"[A-Za-z0-9._-]+", one)[0].lower().replace("_", "-") for one in wanted}  # type: ignore[index]
    assert names <= image.keys(), "run: make lock"


@pytest.mark.parametrize("file", ["compose.yaml", "compose.tls.yaml"])
def test_compose_sets_variables_that_exist(file: str) -> None:
    environment = yaml.safe_load((ROOT / file).read_text())["services"]["orisun"]["environment"]
    assert environment.keys() <= variables().keys()
