"""Specs that ask for trouble are refused with words that say what to do instead."""

from __future__ import annotations

import pytest

from e2e.kubernetes import CommandError, Kubernetes, Object
from e2e.release import Release
from e2e.stores import EMBEDDED, Namespace, boundary, cluster, index, show

EXTERNAL: Object = {"external": {"host": "db", "credentialsSecretRef": {"name": "db"}}}


def _without(obj: Object, *keys: str) -> Object:
    return {**obj, "spec": {key: value for key, value in obj["spec"].items() if key not in keys}}


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (cluster(EMBEDDED, replicas=3), "embedded"),
        (cluster(EXTERNAL, replicas=2), "3"),
        (cluster(EXTERNAL, replicas=10), "9"),
        (cluster(EXTERNAL, replicas=-1), "replicas"),
        (cluster({**EXTERNAL, **EMBEDDED}, replicas=1), "one of"),
        (cluster({}, replicas=1), "one of"),
        (_without(cluster(EXTERNAL), "postgres"), "postgres"),
        (cluster(EXTERNAL, tls={"mode": "secret"}), "secretName"),
        (cluster(EXTERNAL, tls={"mode": "certManager"}), "issuerRef"),
        (cluster(EXTERNAL, name="x" * 64), "name"),
        (boundary("a-b"), "spec.name"),
        (boundary("a", name="1a"), "digit"),
        (boundary("a", name='x"; DROP TABLE y; --'), "letters"),
        (boundary("a", name="x" * 64), "63"),
        (boundary("a", schema="pg_catalog"), "PostgreSQL"),
        (boundary("a", deletionPolicy="Shred"), "Retain"),
        (index("i", "b"), "fields"),
        (index("i", "b", "k", "k"), "once"),
        (index("i'", "b", "k"), "letters"),
        (index("i", "b", "k", conditions=[{"key": "a", "operator": "LIKE", "value": "%"}]), "operator"),
        (index("i", "b", *(f"k{number}" for number in range(17))), "16"),
    ],
)
async def test_refused(operator: Release, shared_namespace: Namespace, obj: Object, words: str) -> None:
    with pytest.raises(CommandError) as refused:
        await shared_namespace.apply(obj)
    show("refused", str(refused.value).split(": ", 1)[-1])
    assert words in str(refused.value)


@pytest.mark.smoke
async def test_immutable(kubernetes: Kubernetes, operator: Release, shared_namespace: Namespace) -> None:
    await shared_namespace.apply(boundary("orders", cluster="one"))
    for patch in ({"clusterRef": {"name": "two"}}, {"name": "other"}, {"schema": "other"}):
        with pytest.raises(CommandError, match="immutable"):
            await kubernetes.patch("bnd", "orders", {"spec": patch}, shared_namespace.name)


@pytest.mark.smoke
async def test_unknown_fields_are_told(operator: Release, shared_namespace: Namespace) -> None:
    obj = cluster(EXTERNAL)
    obj["spec"]["replicsa"] = 5
    with pytest.raises(CommandError, match="replicsa"):
        await shared_namespace.apply(obj)
