"""How the operator gets to the API server: kubeconfigs good and bad, and a token that is replaced meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orisun_operator import api_server as under_test
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
    assert login(named).token == "mine"
    found = login()
    assert found.token not in (None, "mine")
    assert found.server.startswith("https://127.0.0.1:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "cannot be used"),
        ("just text", "cannot be used"),
        ("current-context: gone", "there is no 'gone' in it"),
        ("kind: Config", "Current context is not set"),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],"
            " clusters: [{name: a}], users: [{name: a}]}",
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
    cluster = {"server": "https://127.0.0.1:1", "certificate-authority": str(tmp_path / "none")}
    config = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": cluster}],
        "users": [{"name": "a"}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    with pytest.raises(KubeError, match="a certificate for the API server cannot be used"):
        await Kube.connect(kubeconfig)
