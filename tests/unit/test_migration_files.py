"""The schema as SQL files: which files, in which order, and that what is there is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orisun.cli import main


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORISUN_BOUNDARIES", "ORISUN_PG_SCHEMAS", "ORISUN_ADMIN_BOUNDARY"):
        monkeypatch.delenv(name, raising=False)


def generate(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["migrations", "generate", "--output", str(directory), *arguments])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_admin_schema_comes_first_and_again_changes_nothing(tmp_path: Path) -> None:
    assert generate(tmp_path / "new", "--boundary", "orders:shop").exit_code == 0
    first = names(tmp_path / "new")
    assert first[0] == "0001_orisun_admin_0001_catalog.sql"
    assert any("orisun_boundary_orders_0001_event_log" in name for name in first)
    again = generate(tmp_path / "new", "--boundary", "orders:shop")
    assert "Nothing new" in again.output
    assert names(tmp_path / "new") == first


def test_another_boundary_comes_after_what_is_there(tmp_path: Path) -> None:
    generate(tmp_path, "--boundary", "orders:shop")
    before = names(tmp_path)
    (tmp_path / "0500_our_own.sql").write_text("SELECT 1;\n")
    assert generate(tmp_path, "--boundary", "orders:shop", "--boundary", "alone").exit_code == 0
    added = [name for name in names(tmp_path) if name not in before and "orisun" in name]
    assert added
    assert all("_boundary_alone_" in name and name > before[-1] for name in added)
    text = (tmp_path / added[0]).read_text()
    assert 'CREATE SCHEMA IF NOT EXISTS "alone";' in text
    assert "{" + "q_events}" not in text


def test_an_edited_file_is_told(tmp_path: Path) -> None:
    generate(tmp_path)
    edited = next(path for path in tmp_path.iterdir() if "event_log" in path.name)
    edited.write_text(edited.read_text().replace("data              jsonb", "data              json"))
    result = generate(tmp_path)
    assert result.exit_code == 1
    assert edited.name in result.output
    assert "Traceback" not in result.output


def test_check_writes_nothing(tmp_path: Path) -> None:
    result = generate(tmp_path / "new", "--check")
    assert result.exit_code == 1
    assert "missing" in result.output
    assert not (tmp_path / "new").exists()
    generate(tmp_path / "new")
    assert generate(tmp_path / "new", "--check").exit_code == 0


def test_a_name_that_cannot_be_is_told(tmp_path: Path) -> None:
    result = generate(tmp_path, "--boundary", "not-a-name:shop")
    assert result.exit_code == 1
    assert "not-a-name" in result.output
