"""Every object that examples and documents show is one that the API server takes as it stands, strictly read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orisun_operator.api import API_VERSION
from orisun_operator.api.cluster import ClusterSpec
from orisun_operator.kube import Kube, KubeError, Object, Ref
from orisun_operator.resources.cluster import Cluster
from orisun_operator.resources.pods import statefulset

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([_ROOT / "README.md", *(_ROOT / "docs").rglob("*.md"), *(_ROOT / "examples").rglob("*.md")])
_FILES = sorted([*(_ROOT / "examples").rglob("*.yaml"), *(_ROOT / "docs").rglob("*.yaml")])
_BLOCK = re.compile(r"^( *)```ya?ml\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_HERE = re.compile(r"<<'?(\w+)'?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
#: Objects for others than an API server of ours.
_OTHERS = ("argoproj.io/", "kustomize.config.k8s.io/")


class _Loader(yaml.SafeLoader):
    """As Kubernetes reads YAML: a bare ``=`` is a text, not YAML 1.1's default key."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


def _objects(text: str) -> Iterator[Object]:
    for found in yaml.load_all(text, _Loader):
        if isinstance(found, dict) and "apiVersion" in found and "kind" in found:
            if not found["apiVersion"].startswith(_OTHERS):
                yield found
        elif isinstance(found, dict) and "spec" in found:
            yield from _of_values(found)


def _of_values(values: dict[str, Any]) -> Iterator[Object]:
    """What helm/orisun-cluster makes from its values, without its templates: the specs are handed through."""

    def made(kind: str, name: str, spec: Object) -> Object:
        return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}

    yield made("OrisunCluster", "store", values["spec"])
    for name, boundary in (values.get("boundaries") or {}).items():
        of = {key: value for key, value in boundary.items() if key != "indexes"}
        yield made("Boundary", name, {"clusterRef": {"name": "store"}, **of})
        for index, shape in (boundary.get("indexes") or {}).items():
            yield made("EventIndex", f"{name}-{index}", {"boundaryRef": {"name": name}, **shape})


def _shown() -> Iterator[Any]:
    for file in _FILES:
        for obj in _objects(file.read_text()):
            yield pytest.param(obj, id=f"{file.relative_to(_ROOT)}:{obj['kind']}/{obj['metadata']['name']}")
    for page in _PAGES:
        text = page.read_text()
        blocks = [block for _, block in _BLOCK.findall(text)]
        blocks += [block for _, block in _HERE.findall(text) if "apiVersion:" in block or "\nspec:" in f"\n{block}"]
        for block in blocks:
            for obj in _objects(block):
                yield pytest.param(obj, id=f"{page.relative_to(_ROOT)}:{obj['kind']}/{obj['metadata']['name']}")


async def offer(kube: Kube, namespace: str, obj: Object) -> None:
    """As ``kubectl apply --server-side --dry-run=server --validate=strict``."""
    shown = {**obj, "metadata": {**obj["metadata"]}}
    path = await kube._server.path(Ref.of(shown)._replace(namespace=namespace))
    if f"/namespaces/{namespace}/" in path:
        shown["metadata"]["namespace"] = namespace
    query = {"dryRun": "All", "fieldValidation": "Strict", "fieldManager": "documents", "force": "true"}
    await kube._server.request("PATCH", path, body=shown, content="application/apply-patch+yaml", query=query)


def test_there_are_such_objects() -> None:
    shown = {str(one.id) for one in _shown()}
    for expected in (
        "examples/kubernetes/cluster.yaml:OrisunCluster/store",
        "docs/boundaries.md:EventIndex/orders-open",
    ):
        assert expected in shown
    assert any(one.startswith("docs/kubernetes.md:OrisunCluster") for one in shown)


@pytest.mark.parametrize("obj", [*_shown()])
async def test_the_api_server_takes_what_is_shown(kube: Kube, namespace: str, obj: Object) -> None:
    await offer(kube, namespace, obj)


async def test_a_field_that_does_not_exist_would_be_found(kube: Kube, namespace: str) -> None:
    (obj, *_) = _objects((_ROOT / "examples" / "kubernetes" / "cluster.yaml").read_text())
    obj["spec"]["nats"] = {"jetstream": {"storage": {"size": "2Gi"}}}
    with pytest.raises(KubeError, match="storage"):
        await offer(kube, namespace, obj)


#: Functions of the operator that take a reason.
_TELLING = frozenset({"Blocked", "Paused", "Step", "set_condition", "event", "stalled", "waiting", "resting", "ready"})
_TELLING |= {"_scale", "_replace", "_patient", "_schema", "_drifted"}
_REASON = re.compile(r"[A-Z][a-z]+([A-Z][a-zA-Z]*)?")


def _reasons() -> Iterator[str]:
    for file in (_ROOT / "operator").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            for given in node.args if name in _TELLING else ():
                for one in ast.walk(given):
                    if isinstance(one, ast.Constant) and _REASON.fullmatch(str(one.value)):
                        yield str(one.value)


def test_every_reason_is_documented() -> None:
    reasons = {*_reasons()} - {"Normal", "Warning", "None", "True", "False", "Failed"}
    assert reasons > {"Announcing", "DefaultPassword", "DriftRepaired", "BuildFailed", "AwaitingJetStream"}
    pages = "".join((_ROOT / "docs" / page).read_text() for page in ("operator.md", "boundaries.md"))
    assert sorted(reason for reason in reasons if f"`{reason}`" not in pages) == []


def _schemas(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all below it, with their paths."""
    yield path, schema
    for name, below in (schema.get("properties") or {}).items():
        yield from _schemas(below, f"{path}.{name}")
    for within in ("items", "additionalProperties"):
        if isinstance(below := schema.get(within), dict):
            yield from _schemas(below, f"{path}[]")


@pytest.mark.parametrize("file", sorted((_ROOT / "crds").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_field_is_documented_and_every_rule_says_what_it_wants(file: Path) -> None:
    (version,) = yaml.safe_load(file.read_text())["spec"]["versions"]
    schemas = dict(_schemas(version["schema"]["openAPIV3Schema"], "self"))
    assert len(schemas) > 40
    fields = {path: schema for path, schema in schemas.items() if not path.endswith("[]") and path != "self.metadata"}
    assert [path for path, schema in fields.items() if len(schema.get("description", "")) < 8] == []
    rules = [rule for schema in schemas.values() for rule in schema.get("x-kubernetes-validations", ())]
    assert [rule["rule"] for rule in rules if len(rule.get("message", "")) < 20] == []


def test_every_container_that_the_autoscaler_measures_has_a_request() -> None:
    """Without one an autoscaler has no share to compute, and does nothing at all."""
    place = _ROOT / "examples" / "kubernetes"
    (scaler,) = yaml.safe_load_all((place / "hpa.yaml").read_text())
    spec = next(yaml.safe_load_all((place / "cluster.yaml").read_text()))["spec"]
    cluster = Cluster("shop", "store", "uid", ClusterSpec.model_validate(spec), "orisun:1", "nats:1")
    containers = {one["name"]: one for one in statefulset(cluster)["spec"]["template"]["spec"]["containers"]}
    assert scaler["spec"]["metrics"]
    for metric in scaler["spec"]["metrics"]:
        named = metric.get("containerResource") or metric["resource"]
        for container in [containers[named["container"]]] if "container" in named else containers.values():
            assert named["name"] in container.get("resources", {}).get("requests", {}), container["name"]
