"""How the operator gets to the API server: kubeconfigs good and bad, and a token that is replaced meanwhile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from orisun_operator import api_server as under_test
from orisun_operator import login as login_module
from orisun_operator.kube import Kube, KubeError, Ref
from orisun_operator.login import login
from tests.operator.kubernetes import ApiServer

_DEFAULT = Ref("v1", "Namespace", "", "default")


def _with_token(api_server: ApiServer, token: str) -> str:
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = token
    text: str = yaml.safe_dump(config)
    return text


async def test_a_token_that_is_replaced_is_read_again(
    api_server: ApiServer, kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(_with_token(api_server, "outdated"))
    mine = await Kube.connect(kubeconfig)
    try:
        with pytest.raises(KubeError) as refused:
            await mine.get(_DEFAULT)
        assert refused.value.status == 401
        kubeconfig.write_text(api_server.kubeconfig.read_text())
        monkeypatch.setattr(under_test, "_TOKEN_HOLDS", 0.0)
        assert await mine.get(_DEFAULT)
        # while it cannot be read, the last one serves
        kubeconfig.unlink()
        assert await mine.get(_DEFAULT)
    finally:
        await mine.close()


def test_the_variable_says_where_unless_a_file_is_named(
    api_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "named"
    named.write_text(_with_token(api_server, "mine"))
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    assert login(named).authorization == "Bearer mine"
    found = login()
    assert found.authorization.startswith("Bearer ")
    assert found.authorization != "Bearer mine"
    assert found.server.startswith("https://127.0.0.1:")


async def test_a_program_of_the_kubeconfig_fetches_the_token(api_server: ApiServer, tmp_path: Path) -> None:
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    user = config["users"][0]["user"]
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": user.pop("token")},
    }
    user["exec"] = {
        "apiVersion": answer["apiVersion"],
        "command": "echo",
        "args": [json.dumps(answer)],
        "interactiveMode": "Never",
    }
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    mine = await Kube.connect(kubeconfig)
    try:
        assert await mine.get(_DEFAULT)
    finally:
        await mine.close()


async def test_a_pod_shows_the_token_of_its_service_account(
    api_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    host, port = cluster["server"].removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(login_module, "_SERVICE_ACCOUNT", tmp_path)
    with pytest.raises(KubeError, match="no token of a service account"):
        await Kube.connect()
    (tmp_path / "token").write_text(user["token"] + "\n")
    shutil.copy(api_server.certificate, tmp_path / "ca.crt")
    mine = await Kube.connect()
    try:
        assert await mine.get(_DEFAULT)
    finally:
        await mine.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No configuration found"),
        ("{", "cannot be used"),
        ("just text", "cannot be used"),
        ("current-context: gone", "cannot be used"),
        ("kind: Config", "Expected key current-context"),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],"
            " clusters: [{name: a, cluster: {}}], users: [{name: a, user: {}}]}",
            "its cluster has no server",
        ),
    ],
)
async def test_a_kubeconfig_of_no_use_is_told(text: str | None, message: str, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    if text is not None:
        kubeconfig.write_text(text)
    with pytest.raises(KubeError, match=message) as refused:
        await Kube.connect(kubeconfig)
    assert str(kubeconfig) in str(refused.value)


async def test_a_certificate_of_no_use_is_told(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    (tmp_path / "ca.crt").write_text("no certificate")
    cluster = {"server": "https://127.0.0.1:1", "certificate-authority": str(tmp_path / "ca.crt")}
    config = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": cluster}],
        "users": [{"name": "a", "user": {}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    with pytest.raises(KubeError, match="a certificate for the API server cannot be used"):
        await Kube.connect(kubeconfig)
