"""One rehearsal for all tests that do not harm it."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest

from tests.rehearsal.rehearsal import Rehearsal, rehearsal


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with rehearsal(
        tmp_path_factory.mktemp("rehearsal"),
        detached_linger_seconds=0.3,
        stop_grace_seconds=1.0,
        container_heartbeat_seconds=2.0,
    ) as found:
        yield found


@pytest.fixture
def script(tmp_path: Path) -> "Script":
    return Script(tmp_path)


class Script:
    """Writes a user's program into a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, text: str, name: str = "work.py") -> Path:
        path = self._folder / name
        path.write_text(text)
        return path

    def spawn(self, plane: Rehearsal, body: str, *options: str) -> tuple[str, str]:
        """A detached app with one function of this body, called once: its id and the call's."""
        text = _SPAWN.format(
            body=indent(body, "    "), options=", ".join(("timeout=600", *options))
        )
        app_id, call_id = plane.script(self(text, "spawn.py")).split()
        return app_id, call_id


_SPAWN = """
import modal
app = modal.App("spawned")

@app.function(serialized=True, {options})
def work():
    import os, signal, subprocess, sys, time
{body}

with app.run(detach=True):
    print(app.app_id, work.spawn().object_id)
"""
