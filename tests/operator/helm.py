"""The program helm, for tests of the charts; those skip where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.operator.kubernetes import cache

_CHARTS = Path(__file__).parents[2] / "helm"
OPERATOR, CLUSTER = _CHARTS / "orisun-operator", _CHARTS / "orisun-cluster"


class HelmError(Exception):
    """What helm said."""


async def helm(*arguments: str | Path) -> str:
    """What ``helm`` with these arguments prints. Raises HelmError. No cluster is asked."""
    program = shutil.which("helm", path=os.pathsep.join([str(cache()), os.environ.get("PATH", "")]))
    if program is None:
        pytest.skip("no helm: the charts are NOT TESTED")
    process = await asyncio.create_subprocess_exec(
        *(program, *map(str, arguments)),
        env={**os.environ, "KUBECONFIG": os.devnull},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise HelmError(f"{output.decode()}\n{errors.decode()}")
    return output.decode()


def values(*given: str) -> list[str]:
    """As arguments of helm."""
    return [part for one in given for part in ("--set", one)]
