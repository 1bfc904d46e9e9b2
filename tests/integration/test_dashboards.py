"""The dashboard and the alert rules ask for metrics that there are, and every alert has its runbook page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from orisun_server.settings import Settings
from tests.integration.web import browsing, running

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "orisun-operator"
_METRIC = re.compile(r"\b((?:orisun|grpc_server|process)_[a-z_]+)\b")


def expressions() -> dict[str, str]:
    """Every PromQL expression by where it stands."""
    dashboard = json.loads((CHART / "dashboards" / "orisun.json").read_text())
    found = {
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    return found | {f"alert {rule['alert']}": rule["expr"] for rule in rules()}


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((CHART / "rules" / "orisun.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


async def test_they_ask_for_metrics_that_there_are(make_settings: Callable[..., Settings]) -> None:
    async with running(make_settings()) as app, browsing(app, "") as stranger:
        text = (await stranger.get("/metrics")).text
    known = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    known |= {f"{name}_bucket" for name in known}
    # JetStream tells its use only once it is connected
    known |= {"orisun_jetstream_bytes", "orisun_jetstream_streams"}
    unknown = {
        (where, name) for where, text in expressions().items() for name in _METRIC.findall(text) if name not in known
    }
    assert unknown == set()


async def test_names_and_units_follow_the_conventions(make_settings: Callable[..., Settings]) -> None:
    """Prometheus's "Metric and label naming": base units, spelt out and last; ``_total`` for counters, and help."""
    async with running(make_settings()) as app, browsing(app, "") as stranger:
        families = list(text_string_to_metric_families((await stranger.get("/metrics")).text))
    ours = [family for family in families if family.name.startswith(("orisun_", "grpc_server_"))]
    assert len(ours) > 25
    for family in ours:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation.endswith("."), family.name
        # the parser takes _total off the names of counters, and refuses those without
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket")), family.name
        words = family.name.split("_")
        assert not {"ms", "milliseconds", "minutes", "kb", "mb", "mib", "percent"} & set(words), family.name
        assert not {"seconds", "bytes"} & set(words[:-1]), f"{family.name}: the unit comes last"
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{family.name}_total"}, family.name


def test_every_alert_has_its_page() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert {rule["alert"] for rule in rules()} == pages - {"README"}
    for rule in rules():
        annotations = dict(rule["annotations"])
        assert annotations["runbook"] == f"docs/runbooks/{rule['alert']}.md"
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}  # type: ignore[index]


def test_the_documented_metrics_are_those_that_there_are() -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)`", (ROOT / "docs" / "telemetry.md").read_text(), re.MULTILINE))
    written = (ROOT / "server" / "orisun_server" / "telemetry" / "families.py").read_text()
    named = set(re.findall(r'"((?:orisun|grpc_server)_[a-z_]+)"', written))
    counters = {name.removesuffix("_total") for name in documented}
    assert named == counters
