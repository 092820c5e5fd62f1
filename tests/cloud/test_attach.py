"""A machine with a token and no more sees a run as the one that launched it does."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from composer_engine.cloud_spec import CloudSpec
from composer_engine.protocol import StepCompleted
from composer_tui.cloud.ledger import read_ref
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import (
    follow_to_end,
    lawful_events,
    small_config,
    talking_run,
)
from tests.rehearsal.rehearsal import Rehearsal


def composer_tui(
    plane: Rehearsal, runs: Path, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "composer_tui", *arguments],
        env=plane.environ(COMPOSER_RUNS_DIR=str(runs)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told_run(store: RunStore, plane: Rehearsal, **plan: object) -> RunFolder:
    """A run whose container has written its spec, as the engine's does."""
    spec = CloudSpec(run_id="placeholder", config=small_config(), usd_per_hour="0.3")
    text = msgspec.json.encode(spec).decode()
    return talking_run(store, plane, spec=text.replace("placeholder", "{name}"), **plan)


def steps(folder: RunFolder) -> list[int]:
    return [e.step for e in lawful_events(folder) if isinstance(e, StepCompleted)]


@pytest.mark.parametrize("by", ["app id", "app name"])
def test_a_live_run_is_attached_and_followed_to_its_end(
    store: RunStore, modal_plane: Rehearsal, tmp_path: Path, by: str
) -> None:
    folder = told_run(store, modal_plane, steps=60, pause=0.05)
    which = read_ref(folder).app_id if by == "app id" else read_ref(folder).app_name
    done = composer_tui(modal_plane, tmp_path / "elsewhere", "attach", which, "--json")
    assert done.returncode == 0, done.stderr
    there = RunFolder(tmp_path / "elsewhere" / folder.run_id)
    assert steps(there) == list(range(1, 61))
    assert done.stdout.count("step_completed") == 60
    assert there.read_record().config == small_config()
    assert read_ref(there).ended


def test_an_ended_run_is_attached_whole(
    store: RunStore, modal_plane: Rehearsal, tmp_path: Path
) -> None:
    folder = told_run(store, modal_plane, steps=15)
    follow_to_end(folder, modal_plane)
    there = tmp_path / "elsewhere"
    first = composer_tui(modal_plane, there, "attach", folder.run_id, "--detach")
    assert (first.returncode, first.stdout.strip()) == (0, folder.run_id), first.stderr
    again = composer_tui(modal_plane, there, "attach", folder.run_id)
    assert again.returncode == 0, again.stderr
    assert "is known here already" in again.stderr
    assert steps(RunFolder(there / folder.run_id)) == list(range(1, 16))


def test_what_is_no_run_is_refused_in_one_line(modal_plane: Rehearsal, tmp_path: Path) -> None:
    done = composer_tui(modal_plane, tmp_path / "runs", "attach", "no-such-run")
    assert done.returncode in (1, 2)
    assert "no-such-run" in done.stderr.splitlines()[-1]
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
