"""The command line with one account, in a process of its own that takes one command after another.

Modal's client is bound to a process and its environment, so what uses it runs in a child.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.rehearsal.rehearsal import Rehearsal, rehearsal

ROOT = Path(__file__).parents[2]

_SHELL = """
import io, json, os, sys

os.environ["COLUMNS"] = "250"
from composer_tui.cli import run_command_line

words, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
for line in words:
    order = json.loads(line)
    sys.stdin = io.TextIOWrapper(io.BytesIO(order["stdin"].encode()))
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    os.environ.update(order["environ"])
    try:
        status = run_command_line(order["arguments"])
    except BaseException as error:
        status = 99
        print(repr(error), file=sys.stderr)
    for name in order["environ"]:
        del os.environ[name]
    said = []
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        said.append(stream.buffer.getvalue().decode())
    answers.write(json.dumps([status, *said]).encode() + b"\\n")
    answers.flush()
"""


class Said(NamedTuple):
    """How one command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status in (0, 1), self.err
        return json.loads(self.out)


class Shell:
    """``shell("volumes", "ls", ...)`` as a person types it."""

    def __init__(self, plane: Rehearsal) -> None:
        self.plane = plane
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SHELL],
            cwd=ROOT,
            env=plane.environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, *arguments: str | Path, stdin: str = "", **environ: str) -> Said:
        order = {"arguments": list(map(str, arguments)), "stdin": stdin, "environ": environ}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Said(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """An account for all tests that only use what they put there."""
    root = tmp_path_factory.mktemp("stored")
    with rehearsal(root, detached_linger_seconds=0.3, stop_grace_seconds=0.5) as plane:
        yield plane


@pytest.fixture(scope="session")
def shell(stored: Rehearsal) -> Iterator[Shell]:
    shell = Shell(stored)
    yield shell
    shell.close()


def files_under(folder: Path) -> dict[str, bytes]:
    """Everything in a folder that is a file, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def written_under(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of some folders, with what is in it."""
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root, name)
                if path.is_file() and not path.is_symlink():
                    yield path, path.read_bytes()
