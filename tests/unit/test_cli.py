"""The command ``orisun``: what it teaches, what it says about mistakes, and how it does without the server."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from orisun import cli
from orisun_server.banner import banner
from orisun_server.settings import Settings


def orisun(*arguments: str, environ: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.main, list(arguments), env=environ, prog_name="orisun")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("ORISUN_", "GO")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "command",
    [[], ["serve"], ["config"], ["migrate"], ["migrate", "plan"], ["migrate", "apply"], ["migrate", "status"]],
)
def test_help_teaches(command: list[str]) -> None:
    result = orisun(*command, "--help")
    assert result.exit_code == 0
    assert len(command) > 1 or "Examples:\n" in result.output


def test_help_lists_the_commands_of_the_server() -> None:
    output = orisun("--help").output
    for command in ("serve", "config", "migrate"):
        assert f"\n  {command} " in output


def test_version() -> None:
    assert orisun("--version").output == f"orisun, version {importlib.metadata.version('orisun')}\n"


def test_python_dash_m_is_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orisun", "--version"], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.startswith("orisun, version ")


def test_without_the_server_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: importlib.metadata.EntryPoint) -> object:
        raise ModuleNotFoundError("No module named 'structlog'", name="structlog")

    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", missing)
    result = orisun("serve")
    assert result.exit_code == 1
    assert "pip install 'orisun[server,embedded]'" in result.output
    assert "structlog" in result.output
    assert "pip install" in orisun("--help").output


def test_the_client_loads_nothing_of_the_server() -> None:
    code = "import sys, orisun.cli; print([name for name in sys.modules if name.startswith('orisun_server')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n"


def test_config_shows_values_and_origins() -> None:
    result = orisun("config", environ={"ORISUN_PG_HOST": "db", "ORISUN_PG_PASSWORD": "hush"})
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["ORISUN_PG_HOST"] == ["environment", "db"]
    assert rows["ORISUN_PG_PASSWORD"] == ["environment", "********"]
    assert rows["ORISUN_GRPC_HOST"] == ["derived", "0.0.0.0"]
    assert rows["ORISUN_GRPC_PORT"] == ["default", "5005"]
    assert "hush" not in result.output


def test_config_for_programs() -> None:
    environ = {"ORISUN_GRPC_PORT": "6005"}
    rows = json.loads(orisun("config", "--output", "json", environ=environ).stdout)
    assert rows["ORISUN_GRPC_PORT"] == {"value": "6005", "origin": "environment"}
    assert yaml.safe_load(orisun("config", "-o", "yaml", environ=environ).stdout) == rows
    assert json.loads(orisun("config", environ=environ | {"ORISUN_CLIENT_OUTPUT": "json"}).stdout)


def test_the_clients_own_variables_are_no_mistakes() -> None:
    environ = {"ORISUN_SERVER": "db:5005", "ORISUN_CLIENT_PASSWORD": "hush", "ORISUN_ADMIN_URL": "http://db:8991"}
    assert orisun("config", environ=environ).stderr == ""


def test_config_warns_of_unknown_variables_apart_from_its_output() -> None:
    result = orisun("config", "--output", "json", environ={"ORISUN_GRPC_PROT": "6005", "GOGC": "1"})
    assert "did you mean ORISUN_GRPC_PORT?" in result.stderr
    assert "GOGC" in result.stderr
    json.loads(result.stdout)


@pytest.mark.parametrize("command", [["config"], ["serve"], ["migrate", "status"]])
def test_mistakes_are_listed_without_a_traceback(command: list[str]) -> None:
    result = orisun(*command, environ={"ORISUN_GRPC_PORT": "x", "ORISUN_NODE_TTL": "y", "ORISUN_PG_PASSWORD": "hush"})
    assert result.exit_code == 1
    assert "2 mistakes in the settings:" in result.output
    assert 'ORISUN_GRPC_PORT: "x"' in result.output
    assert 'ORISUN_NODE_TTL: "y"' in result.output
    assert "Traceback" not in result.output
    assert "hush" not in result.output


def test_the_banner_says_what_runs_and_what_to_try() -> None:
    asked = Settings()
    effective = asked.model_copy(update={"pg_host": "/somewhere", "nats_port": 4999})
    text = banner(asked, effective, "127.0.0.1:5005")
    for part in (
        "localhost:5005",
        "embedded",
        "/somewhere",
        "4999",
        "orisun_test_1",
        "grpcurl -plaintext",
        "import grpc",
    ):
        assert part in text
    code = text.split(" -c '\n")[1].split("'\n")[0]
    compile(code, "banner", "exec")
    request = json.loads(text.split("-d '")[1].split("' \\")[0])
    assert request["boundary"] == "orisun_test_1"
    assert json.loads(request["events"][0]["data"]) == {"username": "alice"}


def test_the_banner_shows_no_password_that_was_set() -> None:
    asked = Settings(admin_password="hush-hush", pg_host="db", pg_password="hush", nats_url="nats://hush@nats")
    text = banner(asked, asked, "0.0.0.0:5005", "http://0.0.0.0:8991")
    assert "hush" not in text
    assert "YWRtaW4" not in text
    assert "db:5432/orisun" in text
    assert "localhost:5005" in text
    assert "http://localhost:8991" in text


def test_commands_are_click_commands() -> None:
    context = click.Context(cli.main)
    for name in cli.main.list_commands(context):
        assert isinstance(cli.main.get_command(context, name), click.Command)
    assert cli.main.get_command(context, "nonsense") is None
