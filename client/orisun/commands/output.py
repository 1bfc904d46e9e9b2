"""How commands print: tables for people, JSON and YAML for programs. Data goes to stdout, all else to stderr."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import click

Format = Literal["table", "json", "yaml"]
Record = Mapping[str, Any]

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
#: Words that YAML takes for something else than text, in any case.
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null"))
#: What YAML does not allow raw; JSON does, inside texts.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_MOST_BUFFERED = 200


#: The option of every command that prints what programs may read.
output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True,
    envvar="ORISUN_CLIENT_OUTPUT", show_envvar=True, help="table is for people, the others for programs.",
)  # fmt: skip


class Raw(str):
    """JSON text that is printed as it is, so that numbers keep all their digits."""

    __slots__ = ()


class Column(NamedTuple):
    """A column of a table: its title, and the key of the record or what makes its text."""

    title: str
    of: str | Callable[[Record], object]
    #: Cut to what is left of a terminal's width.
    is_flexible: bool = False

    def text(self, record: Record) -> str:
        value = record.get(self.of) if isinstance(self.of, str) else self.of(record)
        return printable(value)


def printable(value: object) -> str:
    """A value in a table; nothing in it can move the cursor or change the terminal."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(printable(item) for item in value) or "-"
    text = value if isinstance(value, str) else str(value)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def width(text: str) -> int:
    """Cells that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF") for one in text)


def cut(text: str, most: int) -> str:
    """The text, ended by an ellipsis where it is wider than ``most`` cells."""
    if width(text) <= most:
        return text
    kept, used = "", 1
    for one in text:
        used += width(one)
        if used > most:
            break
        kept += one
    return kept + "…"


def json_text(value: object, indent: int | None = 2, level: int = 0) -> str:
    """JSON as ``json.dumps`` writes it, with ``Raw`` texts as they are."""
    if isinstance(value, Raw):
        return str(value)
    separator, end = (", ", "") if indent is None else (",\n" + " " * indent * (level + 1), "\n" + " " * indent * level)
    begin = "" if indent is None else separator[1:]
    if isinstance(value, Mapping) and value:
        items = (f"{json.dumps(str(k))}: {json_text(v, indent, level + 1)}" for k, v in value.items())
        return "{" + begin + separator.join(items) + end + "}"
    if isinstance(value, list | tuple) and value:
        return "[" + begin + separator.join(json_text(item, indent, level + 1) for item in value) + end + "]"
    return json.dumps(value, ensure_ascii=False)


def yaml_text(value: object, level: int = 0) -> str:
    """YAML 1.1 and 1.2: blocks of mappings and of lists of them, other lists in JSON's form, which is YAML too."""
    pad = "  " * level
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            if isinstance(item, Mapping) and item:
                lines.append(f"{pad}{key}:\n{yaml_text(item, level + 1)}")
            elif isinstance(item, list | tuple) and item and all(isinstance(one, Mapping) and one for one in item):
                lines.append(f"{pad}{key}:\n" + textwrap.indent("".join(map(yaml_item, item)), pad))
            else:
                lines.append(f"{pad}{key}: {yaml_text(item)}\n")
        return "".join(lines)
    if isinstance(value, str) and not isinstance(value, Raw) and _PLAIN.fullmatch(value):
        return value if value.lower() not in _WORDS else f'"{value}"'
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text(value, None))


def yaml_item(record: Record) -> str:
    """A record as an item of a YAML list."""
    return "- " + "\n  ".join(yaml_text(record).splitlines()) + "\n"


class Show:
    """Prints in the format that was asked for."""

    def __init__(self, output: Format) -> None:
        self.output: Format = output

    @property
    def for_people(self) -> bool:
        return self.output == "table"

    def records(self, records: Sequence[Record], columns: Sequence[Column], *, empty: str = "") -> None:
        """A list; ``empty`` is said where it is empty and people read it."""
        if self.for_people and not records:
            self.say(empty)
            return
        with self.stream(columns) as stream:
            for record in records:
                stream.add(record)

    def record(self, record: Record, columns: Sequence[Column] = ()) -> None:
        """One thing; in a table each key, or each column, is a line."""
        if self.output == "json":
            write(json_text(record) + "\n")
        elif self.output == "yaml":
            write(yaml_text(record))
        else:
            shown = columns or [Column(key.replace("_", " ").upper(), key) for key in record]
            widest = max(width(column.title) for column in shown)
            for column in shown:
                write(f"{column.title.ljust(widest)}  {column.text(record)}\n")

    def stream(self, columns: Sequence[Column], *, live: bool = False) -> Stream:
        """For records that come one by one; ``live`` prints each at once, and JSON as one document a line."""
        return Stream(self.output, columns, live=live)

    def say(self, message: str) -> None:
        """Tells people something that is no data."""
        if message:
            click.echo(message, err=True)


class Stream:
    """Prints records as they come, with a bounded number of them in memory."""

    def __init__(self, output: Format, columns: Sequence[Column], *, live: bool) -> None:
        self._output, self._columns, self._live = output, columns, live
        self._widths = [width(column.title) for column in columns]
        self._rows: list[list[str]] = []
        self._has_head = False
        self.count = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None or kind is KeyboardInterrupt:
            self.close()

    def add(self, record: Record) -> None:
        self.count += 1
        if self._output == "table":
            self._rows.append([column.text(record) for column in self._columns])
            if self._live or len(self._rows) >= _MOST_BUFFERED:
                self._flush()
        elif self._output == "yaml":
            write(f"---\n{yaml_text(record)}" if self._live else yaml_item(record))
        elif self._live:
            write(json_text(record, None) + "\n")
        else:
            body = json_text(record, 2, 1)
            write(("[\n  " if self.count == 1 else ",\n  ") + body)
        if self._live:
            sys.stdout.flush()

    def close(self) -> None:
        if self._output == "table":
            self._flush()
        elif not self._live and self._output == "json":
            write("\n]\n" if self.count else "[]\n")
        elif not self._live and not self.count:
            write("[]\n")

    def _flush(self) -> None:
        for row in self._rows:
            self._widths = [max(known, width(cell)) for known, cell in zip(self._widths, row, strict=True)]
        widths = self._fitting()
        if not self._has_head and self._rows:
            self._has_head = True
            head = _line([column.title for column in self._columns], widths)
            write((click.style(head, bold=True) if _is_terminal() else head) + "\n")
        for row in self._rows:
            write(_line(row, widths) + "\n")
        self._rows.clear()

    def _fitting(self) -> list[int]:
        """The columns' widths; on a terminal the flexible one takes what the others leave."""
        flexible = [number for number, column in enumerate(self._columns) if column.is_flexible]
        if not flexible or not _is_terminal():
            return self._widths
        room = shutil.get_terminal_size().columns - sum(self._widths) - 2 * (len(self._widths) - 1)
        widths = list(self._widths)
        widths[flexible[0]] = max(10, min(widths[flexible[0]], room + widths[flexible[0]]))
        return widths


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (most - width(cell)) for cell, most in ((cut(c, w), w) for c, w in zip(cells, widths)))  # noqa: B905
    return "  ".join(padded).rstrip()


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def write(text: str) -> None:
    """To stdout, buffered."""
    sys.stdout.write(text)
