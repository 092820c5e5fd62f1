"""Runs on a rehearsed Modal: real clients, real containers, nothing imitated on our side."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from composer_engine.cloud_spec import app_name
from composer_engine.config import RunConfig, load
from composer_engine.protocol import Event, Unrecognized, decode, violations
from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.rehearsal import warm
from tests.rehearsal.rehearsal import Rehearsal, rehearsal

HERE = Path(__file__).parent
PATIENCE_SECONDS = 90.0


@pytest.fixture(scope="session")
def modal_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """One rehearsal for all tests that do not harm it."""
    with rehearsal(
        tmp_path_factory.mktemp("modal"), detached_linger_seconds=0.3, stop_grace_seconds=1.0
    ) as plane:
        yield plane


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def small_config(**changes: Any) -> RunConfig:
    """A run that takes seconds and asks for no GPU."""
    settings = ["optimizer.steps=3", "optimizer.warmup_steps=0", "modal.gpu=", "modal.secrets="]
    config = load("smoke", settings=settings)
    return msgspec.structs.replace(config, modal=msgspec.structs.replace(config.modal, **changes))


def refused_config() -> RunConfig:
    """A run whose engine, in its container, refuses it at once: that takes no torch."""
    config = small_config()
    return msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, max_rows=1))


def new_run(store: RunStore, plane: Rehearsal, config: RunConfig | None = None) -> RunFolder:
    """A run's folder as its launcher leaves it, before Modal is asked for anything."""
    folder = store.create(config or small_config(), "rehearsal", time.time())
    name = app_name(folder.run_id)
    write_ref(folder, CloudRef(app_name=name, connection=str(plane.connection_file)))
    return folder


def talking_run(store: RunStore, plane: Rehearsal, **plan: Any) -> RunFolder:
    """A launched run whose container says what ``plan`` tells it to; nobody follows it yet."""
    folder = new_run(store, plane)
    said = plane.script(HERE / "talker.py", folder.run_id, json.dumps({"steps": 20, **plan}))
    ids = json.loads(said)
    write_ref(
        folder,
        CloudRef(
            app_name=app_name(folder.run_id),
            connection=str(plane.connection_file),
            launched_at=time.time(),
            **ids,
        ),
    )
    return folder


def follower(
    folder: RunFolder, plane: Rehearsal, *arguments: str, **extra: str
) -> "subprocess.Popen[bytes]":
    """Somebody who sees the run through."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "tender.py"), str(folder.path), *arguments],
        env=plane.environ(**extra),
        stderr=subprocess.PIPE,
    )


def follow_to_end(folder: RunFolder, plane: Rehearsal, *arguments: str, **extra: str) -> None:
    """Returns when the run is over and nothing is left of it."""
    command = [str(HERE / "tender.py"), str(folder.path), *arguments]
    done = warm.run(command, plane.environ(**extra), Path.cwd(), PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr


def events(folder: RunFolder) -> list[Event]:
    """What stands in its stream; lines that were torn are left out."""
    if not folder.events_path.exists():
        return []
    found = [decode(line) for line in folder.events_path.read_bytes().splitlines()]
    return [event for event in found if not isinstance(event, Unrecognized)]


def lawful_events(folder: RunFolder) -> list[Event]:
    """All of them, of a stream that is over and keeps the laws."""
    found = events(folder)
    assert violations(found) == []
    return found


def on_volume(plane: Rehearsal, folder: RunFolder) -> list[Event]:
    """What the container's own copy holds."""
    text = (plane.root / "volumes" / "composer-runs" / folder.run_id / "events.jsonl").read_bytes()
    found = [decode(line) for line in text.splitlines()]
    return [event for event in found if not isinstance(event, Unrecognized)]
