"""Runs the Python blocks of Markdown pages, and compares what they print with what the page says they print."""

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

_FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Lines that tell the output of the block.
_OUTPUT = "#> "


class Block(NamedTuple):
    """A block of a page."""

    #: Line of the page that its code begins in.
    line: int
    code: str
    #: The lines that it is to print.
    output: list[str]
    #: ``no-run`` in the fence: it is only to be Python.
    runs: bool


def blocks(page: Path) -> list[Block]:
    """The ```python blocks of a page."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        lines = match[2].splitlines()
        output = [line.removeprefix(_OUTPUT) for line in lines if line.startswith(_OUTPUT)]
        found.append(Block(line, match[2], output, match[1].strip() != "no-run"))
    return found


async def run(page: Path, replace: Mapping[str, str]) -> None:
    """Run a page's blocks one after the other in one namespace; ``await`` may stand at the top level.

    ``replace`` puts real addresses in place of the page's. Raises AssertionError where a block prints something else
    than its ``#>`` lines.
    """
    # dataclasses look their module up
    module = types.ModuleType(f"{__name__}.{re.sub('[^a-z]', '_', page.stem)}")
    sys.modules[module.__name__] = module
    try:
        for block in blocks(page):
            await _run(page, block, module.__dict__, replace)
    finally:
        del sys.modules[module.__name__]


async def _run(page: Path, block: Block, namespace: dict[str, Any], replace: Mapping[str, str]) -> None:
    code = block.code
    for old, new in replace.items():
        code = code.replace(old, new)
    # the page's own line numbers in tracebacks
    source = "\n" * (block.line - 1) + code
    compiled = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if not block.runs:
        return
    printed = io.StringIO()
    # not sys.stdout: a server of this process may log meanwhile
    namespace["print"] = functools.partial(print, file=printed)
    result = eval(compiled, namespace)
    if inspect.iscoroutine(result):
        await result
    lines = printed.getvalue().splitlines()
    assert lines == block.output, f"{page}, line {block.line}: printed {lines}, the page says {block.output}"
