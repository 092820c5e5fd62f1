"""`composer-tui` with runs on Modal: launched, left, watched and stopped like any other."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from composer_engine.config import ConfigError, RunConfig
from composer_engine.protocol import RunFailed, RunFinished, StepCompleted
from composer_tui.cloud.accounts import for_commands
from composer_tui.cloud.cloud import Cloud
from composer_tui.cloud.ledger import read_ref
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.rehearsal import process
from composer_tui.runners.attach import attach
from composer_tui.runners.cloud import CloudRun, CloudRunner, connection_file
from composer_tui.runners.local import LaunchFailed, LocalRunner
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import events, lawful_events, small_config, talking_run
from tests.rehearsal.rehearsal import Rehearsal, wait_until

SMALL = [
    "--set=optimizer.warmup_steps=0",
    "--set=modal.gpu=",
    "--set=modal.secrets=",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own folders; the rehearsals that were started in them are ended."""
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("COMPOSER_RUNS_DIR", str(tmp_path / "runs"))
    yield tmp_path
    for path in (tmp_path / "XDG_STATE_HOME").glob("composer-tui/rehearsals/*.json"):
        process.stop(path)


def begin(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "composer_tui", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_folder(home: Path) -> RunFolder:
    (path,) = (home / "runs").iterdir()
    return RunFolder(path)


def test_ctrl_c_saves_and_stops_a_run_that_another_program_watches(home: Path) -> None:
    going = begin("run", "smoke", "--target=rehearsal", "--set=optimizer.steps=20000", *SMALL)
    wait_until(lambda: list((home / "runs").glob("smoke-*")), "its folder", seconds=60)
    folder = run_folder(home)
    wait_until(
        lambda: any(isinstance(e, StepCompleted) for e in events(folder)), "a step", seconds=60
    )
    watching = begin("watch", folder.run_id, "--json")
    going.send_signal(signal.SIGINT)
    _, said = going.communicate(timeout=90)
    assert going.returncode == 0, said
    out, said = watching.communicate(timeout=60)
    assert watching.returncode == 0, said
    assert json.loads(out.splitlines()[-1])["event"] == "run_finished"
    last = lawful_events(folder)[-1]
    assert isinstance(last, RunFinished)
    assert last.stopped_early
    assert read_ref(folder).ended
    run = attach(LocalRunner(RunStore(home / "runs")), folder)
    assert run.settle()
    assert run.stop("now").how == "was already over"


def test_a_rehearsal_is_left_and_seen_through_by_whoever_watches(home: Path) -> None:
    left = begin("run", "smoke", "--target=rehearsal", "--set=data.max_rows=1", *SMALL, "--detach")
    out, said = left.communicate(timeout=60)
    assert left.returncode == 0, said
    folder = run_folder(home)
    assert out.strip() == folder.run_id
    assert read_ref(folder).call_id
    assert connection_file(folder.run_id).stat().st_mode & 0o77 == 0
    token = json.loads(connection_file(folder.run_id).read_bytes())["token_secret"].encode()
    for path in folder.path.rglob("*"):  # a folder that people share
        assert not path.is_file() or token not in path.read_bytes(), path
    watching = begin("watch", folder.run_id)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 2  # it cannot be run as asked: there are too few rows
    assert "prompts_per_step" in out
    assert read_ref(folder).ended


def test_a_rehearsal_whose_control_plane_was_killed_gets_its_last_word(home: Path) -> None:
    store = RunStore(home / "runs")
    accounts = for_commands(store)
    run = CloudRunner(store, "rehearsal", accounts).start(small_config())
    wait_until(lambda: run.is_launched, "the call", seconds=60)
    connection = connection_file(run.folder.run_id)
    os.kill(json.loads(connection.read_bytes())["pid"], signal.SIGKILL)
    accounts.close()
    again = CloudRun(run.folder, for_commands(store))
    wait_until(again.settle, "its last word", seconds=60)
    assert isinstance(lawful_events(run.folder)[-1], RunFailed | RunFinished)


class Nobody:
    """An account that cannot be asked."""

    def __call__(self, connection: str) -> Cloud:
        raise CloudProblem(problem("no_token"))


def test_a_run_that_cannot_be_launched_says_so_and_is_over(store: RunStore) -> None:
    runner = CloudRunner(store, "modal", Nobody())
    with pytest.raises(LaunchFailed, match="no Modal token"):
        runner.start(small_config())
    (folder,) = store.folders()
    run = runner.attach(folder)
    assert not run.alive()
    assert run.settle()
    last = lawful_events(folder)[-1]
    assert isinstance(last, RunFailed)
    assert last.kind == "runner"


def test_a_bad_wish_makes_no_folder(store: RunStore) -> None:
    with pytest.raises(ConfigError):
        CloudRunner(store, "modal", Nobody()).start(small_config(gpu=("H999",)))
    assert store.folders() == []


def test_a_handle_that_only_looks_neither_follows_nor_stops(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=5)
    run = attach(LocalRunner(store), folder)
    assert isinstance(run, CloudRun)
    assert run.alive()
    assert not run.settle()
    assert not run.stop("now").ended
    assert events(folder) == []


def test_a_folder_whose_launcher_died_before_it_named_an_app_is_over(store: RunStore) -> None:
    folder = store.create(RunConfig(), "modal", 1.0)
    run = attach(LocalRunner(store), folder)
    assert run.settle()
    last = lawful_events(folder)[-1]
    assert isinstance(last, RunFailed)
    assert "before Modal was asked" in last.message


def test_what_shows_a_run_on_modal_never_imports_modal() -> None:
    code = "import composer_tui.runners.attach, composer_tui.runners.cloud, sys\n"
    code += "print('modal' in sys.modules, 'textual' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
