"""Runs the Python blocks of Markdown pages, and compares what they print with what the page says they print.

A block with a title (```python title="shop.py") is a file of that name, for other blocks and for commands of the page.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_FENCE = re.compile(r"^```(python|bash)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r' title="([^"]+)"')
#: Lines that tell the output of the block.
_OUTPUT = "#> "


class Block(NamedTuple):
    """A block of a page."""

    #: Line of the page that its code begins in.
    line: int
    code: str
    #: The lines that it is to print.
    output: list[str]
    #: The file that it is; "" for one that is run in its turn.
    file: str


def blocks(page: Path, language: str = "python") -> list[Block]:
    """The blocks of a page that are of a language. Raises AssertionError for a fence that says what nobody knows."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        if match[1] != language:
            continue
        line = text.count("\n", 0, match.start(3)) + 1
        title = _TITLE.fullmatch(match[2])
        assert title or not match[2], f"{page}, line {line - 1}: a block is run, or is a file with a title"
        lines = match[3].splitlines()
        output = [line.removeprefix(_OUTPUT) for line in lines if line.startswith(_OUTPUT)]
        found.append(Block(line, match[3], output, title[1] if title else ""))
    return found


def commands(page: Path) -> list[str]:
    """The lines of the page's ```bash blocks, without comments."""
    lines = (line for block in blocks(page, "bash") for line in block.code.splitlines())
    return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


def write(page: Path, directory: Path, replace: Mapping[str, str]) -> None:
    """Write the files of a page into a directory."""
    for block in blocks(page):
        if block.file:
            path = directory / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_replaced(block.code, replace))


def _replaced(code: str, replace: Mapping[str, str]) -> str:
    for old, new in replace.items():
        code = code.replace(old, new)
    return code


async def run(page: Path, replace: Mapping[str, str], directory: Path | None = None) -> None:
    """Run a page's blocks one after the other in one namespace; ``await`` may stand at the top level.

    ``replace`` puts real addresses in place of the page's; ``directory`` is where the page's files are written, and
    imported from. Raises AssertionError where a block prints something else than its ``#>`` lines.
    """
    if directory is not None:
        write(page, directory, replace)
        sys.path.insert(0, str(directory))
    modules = set(sys.modules)
    try:
        await _run_blocks(page, replace)
    finally:
        if directory is not None:
            sys.path.remove(str(directory))
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(directory)):
                    del sys.modules[name]


async def _run_blocks(page: Path, replace: Mapping[str, str]) -> None:
    # dataclasses look their module up
    module = types.ModuleType(f"{__name__}.{re.sub('[^a-z]', '_', page.stem)}")
    sys.modules[module.__name__] = module
    try:
        for block in blocks(page):
            if not block.file:
                await _run(page, block, module.__dict__, replace)
    finally:
        del sys.modules[module.__name__]


async def _run(page: Path, block: Block, namespace: dict[str, Any], replace: Mapping[str, str]) -> None:
    # the page's own line numbers in tracebacks
    source = "\n" * (block.line - 1) + _replaced(block.code, replace)
    compiled = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    # not sys.stdout: a server of this process may log meanwhile
    namespace["print"] = functools.partial(print, file=printed)
    result = eval(compiled, namespace)
    if inspect.iscoroutine(result):
        await result
    lines = printed.getvalue().splitlines()
    assert lines == block.output, f"{page}, line {block.line}: printed {lines}, the page says {block.output}"
