"""Specs that ask for trouble are refused with words that say what to do instead, or their status says so."""

from __future__ import annotations

import pytest

from e2e.database import Database
from e2e.kubernetes import CommandError, Kubernetes, Object, until
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


async def test_status_tells_what_is_wrong_and_heals(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, database: Database
) -> None:
    external = {"external": {"host": "nowhere", "database": "orisun", "credentialsSecretRef": {"name": "missing"}}}
    await namespace.apply(cluster(external, replicas=1), boundary("orders"), index("x", "ordres", "x"))
    space = namespace.name

    async def says(kind: str, name: str, word: str) -> bool:
        condition = await kubernetes.condition(kind, name, space)
        assert condition.get("status") == "False", condition
        assert word in condition["message"], condition
        return True

    async def secret(password: str) -> None:
        data = {"username": "postgres", "password": password}
        await namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "missing"}, "stringData": data}
        )

    await until(lambda: says("orisun", "store", "missing"), 60, "the missing Secret is named")
    await until(lambda: says("bnd", "orders", "missing"), 60, "by the Boundary too")
    await until(lambda: says("evidx", "ordres-x", "ordres"), 60, "the missing Boundary is named")
    show("status of mistakes", "\n" + await kubernetes.kubectl("get", "orisun,bnd,evidx", "-o", "wide", "-n", space))
    await secret("wrong")
    await until(lambda: says("orisun", "store", "nowhere"), 90, "the host that is not there is named")
    await kubernetes.patch("orisun", "store", {"spec": {"postgres": {"external": {"host": "db"}}}}, space)
    await until(lambda: says("orisun", "store", "password"), 90, "the wrong password is told")
    assert "wrong" not in (await kubernetes.condition("orisun", "store", space))["message"].replace(
        "wrong password", ""
    )
    await secret(database.PASSWORD)
    await kubernetes.ready(space, "orisun/store", "bnd/orders", timeout=240)
