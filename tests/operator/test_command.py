"""The command ``orisun-operator`` and its variables."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from orisun_operator.cli import main
from orisun_operator.settings import OperatorSettings, load


def test_variables_are_read() -> None:
    settings = load({"ORISUN_OPERATOR_NAMESPACES": "shop, billing,", "ORISUN_OPERATOR_TIMER": "30", "OTHER": "x"})
    assert (settings.namespaces, settings.timer, settings.lease_name) == (("shop", "billing"), 30.0, "orisun-operator")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TIMER", "0", "ORISUN_OPERATOR_TIMER='0': Input should be greater than or equal to 1"),
        ("WORKERS", "many", "ORISUN_OPERATOR_WORKERS='many': Input should be a valid integer"),
        ("LOG_LEVEL", "loud", "ORISUN_OPERATOR_LOG_LEVEL='loud': Input should be 'DEBUG', 'INFO', 'WARN' or 'ERROR'"),
        ("METRICS_PORT", "70000", "ORISUN_OPERATOR_METRICS_PORT='70000'"),
    ],
)
def test_a_variable_of_no_use_is_named(name: str, value: str, words: str) -> None:
    result = CliRunner().invoke(main, ["run"], env={f"ORISUN_OPERATOR_{name}": value})
    assert (result.exit_code, words in result.output) == (1, True)
    assert "Traceback" not in result.output


def test_settings_are_shown_with_what_they_mean() -> None:
    result = CliRunner().invoke(main, ["settings"], env={"ORISUN_OPERATOR_NAMESPACES": "shop,billing"})
    assert result.exit_code == 0
    assert "ORISUN_OPERATOR_NAMESPACES=shop,billing\n    Namespaces to look after" in result.output
    for name, field in OperatorSettings.model_fields.items():
        assert f"ORISUN_OPERATOR_{name.upper()}=" in result.output
        assert field.description
        assert field.description in result.output


def test_without_an_api_server_it_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = tmp_path_factory.mktemp("home") / "kubeconfig"
    for command in (["run"], ["uninstall", "--deployment", "operator"]):
        result = CliRunner().invoke(main, command, env={"KUBECONFIG": str(nowhere), "HOME": str(nowhere.parent)})
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert "Traceback" not in result.output
