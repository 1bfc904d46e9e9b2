"""What a changed spec does not want any more is taken away; cert-manager's part is in test_neighbours.py."""

from __future__ import annotations

from orisun_operator.kube import Kube
from orisun_server.settings import Settings
from tests.operator.clusters import NAME, Stage


async def test_passwords_and_keys_that_nobody_reads_any_more_go(kube: Kube, namespace: str, settings: Settings) -> None:
    stage = Stage(kube, namespace, settings)
    await stage.create(tls={"mode": "operator"})
    await stage.settle()
    await stage.secret(f"{NAME}-mine", username="somebody", password="my secret")
    await stage.secret("mine", username="somebody", password="my secret")
    await stage.patch(tls={"mode": "none"}, admin={"secretRef": {"name": "mine"}})
    await stage.settle(waiting=f"{NAME}-2")
    # the others still read them
    for name in (f"{NAME}-admin", f"{NAME}-tls", f"{NAME}-ca"):
        assert await stage.get("v1", "Secret", name) is not None, name
    await stage.settle()
    for name in (f"{NAME}-admin", f"{NAME}-tls", f"{NAME}-ca"):
        assert await stage.get("v1", "Secret", name) is None, name
    assert await stage.get("v1", "ConfigMap", f"{NAME}-ca") is None
    for name in ("mine", f"{NAME}-mine", f"{NAME}-nats-auth"):
        assert await stage.get("v1", "Secret", name) is not None, name
    writes = stage.kube.writes
    assert (await stage.reconcile()).requeue is None
    assert stage.kube.writes == writes
    # and come back with the spec
    await stage.patch(tls={"mode": "operator", "secretName": "keys"}, admin={"secretRef": None})
    await stage.settle()
    assert await stage.get("v1", "Secret", f"{NAME}-admin") is not None
    await stage.patch(tls={"secretName": "others"})
    await stage.settle()
    assert await stage.get("v1", "Secret", "keys") is None
    assert await stage.get("v1", "Secret", "others") is not None
    await stage.close()
