"""`composer-tui` with runs on Modal: launched, left, watched and stopped like any other."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from composer_engine.cloud_spec import app_name
from composer_engine.config import ConfigError, RunConfig
from composer_engine.protocol import RunFailed, RunFinished, StepCompleted
from composer_tui.cloud.accounts import for_commands
from composer_tui.cloud.cloud import Cloud
from composer_tui.cloud.ledger import CloudRef, connection_file, read_ref, write_ref
from composer_tui.cloud.notebook import is_followed, only_follower
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.headless.stop_targets import CloudTarget, Request, find_targets
from composer_tui.headless.stopping import stop_cloud
from composer_tui.rehearsal import process
from composer_tui.runners import cloud as cloud_runner
from composer_tui.runners.attach import attach
from composer_tui.runners.cloud import CloudRun, CloudRunner
from composer_tui.runners.local import LaunchFailed, LocalRunner
from composer_tui.runners.processes import process_ref
from composer_tui.runs.folder import ProcessRef, RunFolder
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
    data = "--set=data.path=/composer/runs/nowhere.jsonl"
    left = begin("run", "smoke", "--target=rehearsal", data, *SMALL, "--detach")
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
    assert watching.returncode == 2  # it cannot be run as asked: there is no such file
    assert "nowhere.jsonl" in out
    assert read_ref(folder).ended


@pytest.mark.parametrize("followed", [True, False])
def test_a_rehearsal_whose_control_plane_was_killed_gets_its_last_word(
    home: Path, followed: bool
) -> None:
    store = RunStore(home / "runs")
    accounts = for_commands(store)
    run = CloudRunner(store, "rehearsal", accounts).start(small_config())
    wait_until(lambda: run.is_launched, "the call", seconds=60)
    connection = connection_file(run.folder.run_id)
    if followed:
        wait_until(lambda: is_followed(run.folder), "its follower")
    else:
        accounts.close()
        wait_until(lambda: not is_followed(run.folder), "its follower has left")
    os.kill(json.loads(connection.read_bytes())["pid"], signal.SIGKILL)
    again = run if followed else CloudRun(run.folder, for_commands(store))
    wait_until(again.settle, "its last word", seconds=60)
    last = lawful_events(run.folder)[-1]
    assert isinstance(last, RunFailed | RunFinished)
    if isinstance(last, RunFailed):
        assert "control plane is gone" in last.message


class Nobody:
    """An account that cannot be asked."""

    def __call__(self, connection: str) -> Cloud:
        raise CloudProblem(problem("no_token"))


def test_a_run_that_cannot_be_launched_says_so_and_is_over(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-nobody")
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


def test_a_bad_wish_makes_no_folder(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-nobody")
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


def unlaunched(store: RunStore, launcher: ProcessRef | None, now: float) -> RunFolder:
    """A run's folder between being made and its launch."""
    folder = store.create(small_config(), "modal", now, launcher)
    write_ref(folder, CloudRef(app_name=app_name(folder.run_id)))
    return folder


def test_a_run_that_is_about_to_be_launched_is_left_to_its_launcher(store: RunStore) -> None:
    """Whoever saw it first would find no app, and write down that its launch was interrupted."""
    folder = unlaunched(store, process_ref(os.getpid()), time.time())
    run = CloudRun(folder, Nobody())
    assert not run.settle()
    assert not asked_for_a_follower(folder)


def test_a_run_whose_launcher_left_it_is_followed_by_whoever_sees_it(store: RunStore) -> None:
    for launcher, now in ((None, time.time()), (process_ref(os.getpid()), time.time() - 3600)):
        folder = unlaunched(store, launcher, now)
        assert not CloudRun(folder, Nobody()).settle()
        wait_until(partial(asked_for_a_follower, folder), "somebody to follow it")


def asked_for_a_follower(folder: RunFolder) -> bool:
    log = folder.log_path
    return log.exists() and "cannot be followed" in log.read_text("utf-8")


@pytest.mark.parametrize("without_record", [False, True])
def test_a_run_whose_app_cannot_be_read_is_not_said_to_be_over(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, without_record: bool
) -> None:
    monkeypatch.setattr(cloud_runner, "LAST_WORD_SECONDS", 0.2)
    folder = unlaunched(store, None, 1.0)
    folder.cloud_path.write_text("{")
    if without_record:
        folder.record_path.write_text("{")
    run = CloudRun(folder, Nobody())
    assert run.alive()
    assert not run.settle()
    assert events(folder) == []
    with pytest.raises(OSError, match="stop by id"):
        run.stop("now")


def test_who_merely_looks_whether_a_run_is_followed_keeps_nobody_from_it(store: RunStore) -> None:
    folder = unlaunched(store, None, 1.0)
    with only_follower(folder):
        pass
    looking = os.open(folder.path / ".follow", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_EX)
    threading.Timer(0.03, os.close, (looking,)).start()
    with only_follower(folder) as ours:
        assert ours


def test_a_run_that_is_being_launched_is_stopped_and_not_called_over(store: RunStore) -> None:
    folder = unlaunched(store, process_ref(os.getpid()), time.time())
    targets = find_targets(store, Request((folder.run_id,), yes=True))
    assert targets.over == []
    (handle,) = targets.local
    assert handle.folder == folder


def test_an_account_that_cannot_be_reached_is_told_of_each_app(store: RunStore) -> None:
    gone = CloudTarget("ap-" + "1" * 22, "gone", str(store.root / "no-connection.json"))
    (result,) = stop_cloud(store, [gone], "now", 0.0, lambda _: None)
    assert not result.zero
    assert [app.stage for app in result.apps] == ["failed"]
