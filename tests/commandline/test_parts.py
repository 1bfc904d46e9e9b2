"""What commands are made of: tables, JSON and YAML, criteria, JSON lines, help."""

from __future__ import annotations

import importlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import orisun
from orisun.cli import _OWN, main
from orisun.commands.criteria import POSITION, criteria
from orisun.commands.output import Raw, cut, json_text, printable, width, yaml_item, yaml_text
from orisun.commands.raw import event_of_json, members
from orisun.commands.reference import connection, reference

ROOT = Path(__file__).parents[2]

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=4)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")


OURS = [
    pytest.param(command, id=path)
    for name in _OWN
    if (own := main.get_command(click.Context(main), name)) is not None
    for path, command in commands(own, f"orisun {name}")
]


@pytest.mark.parametrize("command", OURS)
def test_every_command_explains_itself_with_examples(command: click.Command) -> None:
    assert (command.epilog or "").startswith("\b\nExamples:\n")
    assert (command.help or "").endswith(".")
    names = [parameter.name for parameter in command.params]
    assert len(names) == len(set(names))


def _shown() -> Iterator[str]:
    """The calls of ``orisun`` that documents and examples of ``--help`` show."""
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"^ *```(?:bash)?\n(.*?)^ *```$", document.read_text(), re.MULTILINE | re.DOTALL):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if re.search(r"(^|[ (\"])orisun [a-z]", line):
                    # what it is for stands behind some spaces
                    yield re.split(r" {2,}", line.strip())[0]


def _calls(line: str) -> Iterator[list[str]]:
    """The arguments of each ``orisun`` in a line of a shell."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # prose with an apostrophe
        return
    for at, word in enumerate(words):
        if word == "orisun" and (at == 0 or re.fullmatch(r"[|&;()]+|[A-Z_]+=.*", words[at - 1])):
            yield list(takewhile(lambda one: not set(one) <= set("|&;<>()#"), words[at + 1 :]))


def _type(command: click.Command, name: str, arguments: list[str], parent: click.Context | None = None) -> None:
    """Reads the arguments as the command would, without running it."""
    context = command.make_context(name, arguments, parent=parent)
    if isinstance(command, click.Group):
        named, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert named is not None
        assert chosen is not None
        _type(chosen, named, rest, context)


def test_what_documents_show_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    typed = 0
    for line in dict.fromkeys(_shown()):
        for arguments in _calls(line):
            try:
                _type(main, "orisun", arguments)
            except (click.exceptions.Exit, click.Abort):
                pass  # --help, or a question
            except click.UsageError as error:
                # who asks in a terminal, and files of the example's own
                if not re.search("there is no terminal|does not exist|cannot be read", error.message):
                    raise AssertionError(f"{line}: {error.message}") from error
            typed += 1
    assert typed > 80


def test_the_document_is_up_to_date() -> None:
    document = (ROOT / "docs" / "command-line.md").read_text()
    assert f"{connection()}\n{reference()}" in document, "run: make docs/command-line.md"


@given(objects)
def test_raw_json_stays_as_it_is(value: dict[str, object]) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert json.loads(json_text({"data": Raw(text), "list": [Raw(text)], "empty": {}})) == {
        "data": value, "list": [value], "empty": {},
    }  # fmt: skip
    assert text in json_text({"data": Raw(text)})


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), texts | st.integers() | st.booleans() | st.none())
)
def test_yaml_is_read_as_what_was_written(record: dict[str, object]) -> None:
    keys = {f"k_{key}": value for key, value in record.items()}
    if keys:
        assert yaml.safe_load(yaml_text({"nested": keys, "list": [keys]})) == {"nested": keys, "list": [keys]}
        deep = {"all": {"records": [keys, {"inner": [keys, keys]}], "after": 1}}
        assert yaml.safe_load(yaml_text(deep)) == deep
        assert yaml.safe_load(yaml_item(deep)) == [deep]
        assert yaml.safe_load(yaml_item(keys) + yaml_item({"a": {}})) == [keys, {"a": {}}]


@pytest.mark.parametrize("text", ["yes", "No", "null", "1", "1.5", "2026-01-01", "a: b", "- a", "", "~", "0x1", "y"])
def test_yaml_texts_stay_texts(text: str) -> None:
    assert yaml.safe_load(yaml_text({"key": text})) == {"key": text}


def test_nothing_in_a_table_steers_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x9bc\nd") == r"a\x1b[2Jb\x9bc\nd"
    assert printable("Zoë 中文") == "Zoë 中文"
    assert [printable(value) for value in (None, True, 12345, ["a", "b"], [])] == ["-", "yes", "12,345", "a, b", "-"]


def test_widths_are_those_of_terminals() -> None:
    assert [width(text) for text in ("abc", "中文", "e\u0301")] == [3, 4, 1]
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cut("中文中文", 6) == "中文…"


@given(objects, st.sampled_from([None, 2]))
def test_members_are_the_texts_that_were_written(value: dict[str, object], indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    found = members(text)
    assert {key: json.loads(raw) for key, (_, raw) in found.items()} == value
    assert all(raw in text for _, raw in found.values())


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a"}', '{"a":1', '{"a":1}}', '{"a":1} x', "{a:1}", '{"a":01}', "null", "{" * 5000]
)
def test_broken_lines_are_refused_without_quoting_them(text: str) -> None:
    with pytest.raises(orisun.InvalidArgument) as refused:
        event_of_json(text)
    assert '"a"' not in str(refused.value)


def test_data_within_a_text_is_taken_as_the_wire_has_it() -> None:
    event = event_of_json('{"event_id": "1", "event_type": "T", "data": "{\\"a\\": 1.0}", "metadata": null}')
    assert (event.data, event.metadata) == ('{"a": 1.0}', "null")


@click.command()
@criteria
@click.option("--after", type=POSITION)
def probe(query: orisun.Query, after: orisun.Position | None) -> None:
    click.echo(f"{query} {after}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "everything None"),
        ("--where a=1 --where b=x=y", "a = 1 and b = x=y None"),
        ("--where a=1 --or --where a=2 --where eventType=T --after 12,11", "a = 1 or a = 2 and eventType = T (12, 11)"),
        ("--where event_type=T --after none", "eventType = T (-1, -1)"),
        ("--where a=", "a =  None"),
    ],
)
def test_criteria(arguments: str, told: str) -> None:
    result = CliRunner().invoke(probe, arguments.split())
    assert result.output == told + "\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--where a", "KEY=VALUE"),
        ("--or --where a=1", "--or stands between"),
        ("--where a=1 --or", "--or stands between"),
        ("--where a=1 --where a=2", "put --or between"),
        ("--after 12", "write it like 12,11"),
    ],
)
def test_criteria_that_make_no_sense(arguments: str, told: str) -> None:
    result = CliRunner().invoke(probe, arguments.split())
    assert (result.exit_code, told in result.output) == (2, True)


def test_the_client_commands_need_nothing_of_the_server() -> None:
    for module in (ROOT / "client" / "orisun" / "commands").glob("*.py"):
        importlib.import_module(f"orisun.commands.{module.stem}")
        assert "orisun_server" not in module.read_text()
