"""One real run of the smoke preset for everything that only reads one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]
TIMEOUT_SECONDS = 120


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "composer_tui", *arguments]


def call(*arguments: str, runs: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """One command, with its own runs folder and no terminal."""
    return subprocess.run(
        command_line("--runs-dir", str(runs), *arguments),
        capture_output=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


class SmokeRun(NamedTuple):
    """A smoke run that was followed with ``--json``: what it printed, and where it is."""

    runs: Path
    done: "subprocess.CompletedProcess[bytes]"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    runs = tmp_path_factory.mktemp("runs")
    return SmokeRun(runs, call("run", "smoke", "--json", runs=runs))
