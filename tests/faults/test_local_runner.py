"""Engines of this machine, in every way that they can end. All processes here are real."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from composer_engine.config import ConfigError, LocalConfig, RunConfig
from composer_engine.contract import HEARTBEAT_VARIABLE
from composer_engine.protocol import Event, RunFailed, RunFinished, Unrecognized, decode, violations
from composer_engine.seal import Identity, Seal, write_seal
from composer_tui.runners import last_word, local
from composer_tui.runners.attach import attach
from composer_tui.runners.local import (
    CannotResume,
    EngineMissing,
    LaunchFailed,
    LocalRun,
    LocalRunner,
)
from composer_tui.runners.processes import RUN_ID_VARIABLE, is_alive, process_ref
from composer_tui.runners.resuming import resumable
from composer_tui.runs.folder import ProcessRef, RunFolder
from composer_tui.runs.store import RunStore

HERE = Path(__file__).parent
PATIENCE_SECONDS = 60.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program to be launched as if it were a Python that knows the engine."""
    path = tmp_path_factory.mktemp("bin") / "python"
    script = HERE / "stand_in.py"
    path.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {script} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def runner(tmp_path: Path, stand_in: str) -> Iterator[LocalRunner]:
    """A runner of stand-ins; whatever a test left running is ended after it."""
    runner = LocalRunner(RunStore(tmp_path), python=stand_in)
    yield runner
    for folder in runner.store.folders():
        for process in marked(folder.run_id):
            with contextlib.suppress(psutil.Error):
                process.kill()
    for child in runner._children.values():
        child.process.wait()
    for end in runner._heartbeats:
        os.close(end)


def marked(run_id: str) -> list[psutil.Process]:
    """Every process that has the run's id in its environment, zombies left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(RUN_ID_VARIABLE) == run_id:
                found.append(process)
    return found


def groups(run_id: str) -> set[int]:
    """The process groups of all that have the run's id."""
    found = set()
    for process in marked(run_id):
        with contextlib.suppress(ProcessLookupError):
            found.add(os.getpgid(process.pid))
    return found


def start(runner: LocalRunner, name: str, grace: float = 20.0) -> LocalRun:
    """A run that has made a step."""
    run = runner.start(RunConfig(name=name, local=LocalConfig(stop_grace_seconds=grace)))
    wait_for(lambda: len(events(run.folder)) > 1)
    return run


def events(folder: RunFolder) -> list[Event | Unrecognized]:
    if not folder.events_path.exists():
        return []
    return [decode(line) for line in folder.events_path.read_bytes().splitlines()]


def last_of(folder: RunFolder) -> Event | Unrecognized:
    """The last event of a stream that keeps the laws, but for lines that were torn."""
    stream = events(folder)
    assert violations([event for event in stream if not isinstance(event, Unrecognized)]) == []
    return stream[-1]


def failure_of(run: LocalRun) -> RunFailed:
    wait_for(run.settle)
    last = last_of(run.folder)
    assert isinstance(last, RunFailed)
    return last


def test_a_run_is_launched_and_finishes(runner: LocalRunner) -> None:
    run = start(runner, "finishes")
    wait_for(run.settle)
    assert isinstance(last_of(run.folder), RunFinished)
    assert not run.alive()
    assert run.stop("graceful").how == "was already over"


def test_an_engine_runs_apart_from_the_terminal(runner: LocalRunner) -> None:
    run = start(runner, "well")
    assert run.pid is not None
    process = psutil.Process(run.pid)
    assert os.getsid(run.pid) == os.getpgid(run.pid) != os.getpgid(0)
    assert process.cwd() == str(Path.cwd())
    assert Path(f"/proc/{run.pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{run.pid}/fd/1").readlink() == Path("/dev/null")
    assert Path(f"/proc/{run.pid}/fd/2").readlink() == run.folder.log_path
    assert run.alive()
    assert not run.settle()


def test_a_stop_that_saved_nothing_does_not_say_that_it_saved(runner: LocalRunner) -> None:
    report = start(runner, "forgets").stop("graceful")
    assert (report.ended, report.how) == (True, "exited")


def test_a_run_is_stopped_though_its_folder_cannot_be_written(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(runner, "well")

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "touch", full)
    monkeypatch.setattr(Path, "unlink", full)
    report = run.stop("graceful")
    assert (report.ended, report.left) == (True, ())


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 2**70])
def test_a_process_file_with_an_impossible_pid_is_no_process(tmp_path: Path, pid: int) -> None:
    folder = RunFolder(tmp_path)
    folder.process_path.write_text(f'{{"pid": {pid}, "start_time": 1.0, "pgid": 5}}')
    assert folder.read_process() is None


def test_a_graceful_stop_lets_the_engine_save(runner: LocalRunner) -> None:
    run = start(runner, "slow")
    report = run.stop("graceful")
    assert (report.ended, report.how, report.left) == (True, "saved and exited", ())
    assert 0.4 < report.seconds < PATIENCE_SECONDS
    last = last_of(run.folder)
    assert isinstance(last, RunFinished)
    assert last.stopped_early
    assert run.settle()
    assert not run.folder.stopping_path.exists()


def test_two_graceful_stops_at_once_are_still_graceful(runner: LocalRunner) -> None:
    run = start(runner, "slow")
    other = LocalRunner(runner.store).attach(run.folder)
    reports = []
    threads = [
        threading.Thread(target=lambda handle=handle: reports.append(handle.stop("graceful")))
        for handle in (run, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {report.how for report in reports} == {"saved and exited"}
    assert isinstance(last_of(run.folder), RunFinished)


def test_stopping_now_does_not_wait_for_a_checkpoint(runner: LocalRunner) -> None:
    run = start(runner, "slow")
    report = run.stop("now")
    assert (report.ended, report.how) == (True, "terminated")
    assert report.seconds < 2
    assert failure_of(run).message == "a second signal"


def test_an_engine_that_is_deaf_to_sigint_and_lingers_is_ended(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TERM_SECONDS", 0.3)
    run = start(runner, "lingers", grace=0.2)
    report = run.stop("graceful")
    assert (report.ended, report.how, report.left) == (True, "saved and exited", ())
    assert report.seconds >= 0.5
    assert marked(run.folder.run_id) == []


def test_a_stubborn_engine_and_its_grandchild_are_killed(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TERM_SECONDS", 0.3)
    run = start(runner, "stubborn")
    wait_for(lambda: len(marked(run.folder.run_id)) == 2)
    report = run.stop("graceful", grace_seconds=0.2)
    assert (report.ended, report.how, report.left) == (True, "killed", ())
    assert report.seconds >= 0.5
    assert marked(run.folder.run_id) == []
    assert "stopped with SIGKILL" in failure_of(run).message


def test_children_that_left_the_group_are_found_and_ended(runner: LocalRunner) -> None:
    run = start(runner, "leaver")
    wait_for(lambda: len(groups(run.folder.run_id)) == 3)
    report = run.stop("graceful")
    assert (report.ended, report.how, report.left) == (True, "saved and exited", ())
    assert marked(run.folder.run_id) == []


def test_what_an_engine_leaves_behind_is_ended_though_the_engine_is_gone(
    runner: LocalRunner,
) -> None:
    run = start(runner, "leaver")
    wait_for(lambda: len(groups(run.folder.run_id)) == 3)
    assert run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    wait_for(run.settle)
    assert len(groups(run.folder.run_id)) == 2
    report = run.stop("graceful")
    assert (report.ended, report.left) == (True, ())
    assert marked(run.folder.run_id) == []


def test_an_engine_that_dies_silently_still_ends_its_stream(runner: LocalRunner) -> None:
    failure = failure_of(start(runner, "exits"))
    assert failure.kind == "engine"
    assert "exit status 7" in failure.message
    assert failure.detail == "Traceback (most recent call last):\nBoom: no"


def test_an_engine_that_cannot_even_begin_still_ends_its_stream(runner: LocalRunner) -> None:
    run = runner.start(RunConfig(name="speechless"))
    failure = failure_of(run)
    assert (failure.seq, failure.kind, failure.detail) == (0, "engine", "cannot even begin")


def test_a_killed_engine_still_ends_its_stream(runner: LocalRunner) -> None:
    run = start(runner, "well")
    assert run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    failure = failure_of(run)
    assert (failure.kind, failure.message) == ("killed", "the engine was killed by SIGKILL")
    assert "out-of-memory killer" in failure.hint


def test_a_kill_while_the_kernel_was_out_of_memory_is_told_as_that(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "oom_kills", lambda: 3)
    run = start(runner, "well")
    assert run.pid is not None
    monkeypatch.setattr(local, "oom_kills", lambda: 4)
    os.kill(run.pid, signal.SIGKILL)
    assert failure_of(run).kind == "oom"


def test_a_crash_is_the_engines_own_fault(runner: LocalRunner) -> None:
    failure = failure_of(start(runner, "segfaults"))
    assert (failure.kind, failure.message) == ("engine", "the engine crashed with SIGSEGV")


def test_a_line_torn_by_death_is_closed_before_the_last_word(runner: LocalRunner) -> None:
    run = start(runner, "torn")
    failure = failure_of(run)
    torn = events(run.folder)[-2]
    assert isinstance(torn, Unrecognized)
    assert failure.seq == 3


def test_many_viewers_write_one_last_word(runner: LocalRunner) -> None:
    run = start(runner, "well")
    assert run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    handles = [run, *(LocalRunner(runner.store).attach(run.folder) for _ in range(6))]
    threads = [threading.Thread(target=wait_for, args=(handle.settle,)) for handle in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failure_of(run)


@contextlib.contextmanager
def launched(
    root: Path, python: str, name: str, on_disconnect: str
) -> Iterator[tuple["subprocess.Popen[str]", RunFolder]]:
    """A run that another program has launched, which is still there."""
    argv = [sys.executable, str(HERE / "launcher.py"), str(root), python, name, on_disconnect]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout
        folder = RunFolder(Path(launcher.stdout.readline().strip()))
        try:
            wait_for(lambda: len(events(folder)) > 1)
            yield launcher, folder
        finally:
            launcher.kill()


def test_a_run_outlives_its_launcher_and_is_stopped_by_another_program(
    runner: LocalRunner, stand_in: str
) -> None:
    with launched(runner.store.root, stand_in, "well", "keep") as (launcher, folder):
        run = runner.attach(folder)
        launcher.kill()
        launcher.wait()
        steps = len(events(folder))
        wait_for(lambda: len(events(folder)) > steps)
        assert run.alive()
        report = run.stop("graceful")
    assert (report.ended, report.how) == (True, "saved and exited")
    assert isinstance(last_of(folder), RunFinished)


def test_an_exit_status_that_nobody_saw_is_not_made_up(runner: LocalRunner, stand_in: str) -> None:
    with launched(runner.store.root, stand_in, "well", "keep") as (launcher, folder):
        run = runner.attach(folder)
        launcher.kill()
        launcher.wait()
        assert run.pid is not None
        os.kill(run.pid, signal.SIGKILL)
        failure = failure_of(run)
    assert failure.kind == "killed"
    assert "its exit status is unknown" in failure.message


def test_the_launcher_that_knows_more_may_speak_first(
    runner: LocalRunner, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_LAUNCHER_FIRST_SECONDS", 0.5)
    with launched(runner.store.root, stand_in, "well", "keep") as (_, folder):
        run = runner.attach(folder)
        assert run.pid is not None
        os.kill(run.pid, signal.SIGKILL)
        wait_for(lambda: not run.alive())
        begun = time.monotonic()
        assert not run.settle()
        failure_of(run)  # this launcher never looks, so another program speaks in the end
        assert time.monotonic() - begun >= 0.5


def test_an_engine_is_not_handed_the_token_of_a_modal_account(
    runner: LocalRunner, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-secret")
    with launched(runner.store.root, stand_in, "well", "keep") as (_, folder):
        pid = runner.attach(folder).pid
        assert pid is not None
        assert "MODAL_TOKEN_SECRET" not in psutil.Process(pid).environ()


def test_a_heartbeat_ends_with_the_launcher_and_with_nothing_else(
    runner: LocalRunner, stand_in: str
) -> None:
    with launched(runner.store.root, stand_in, "well", "stop") as (launcher, folder):
        pid = runner.attach(folder).pid
        assert pid is not None
        number = psutil.Process(pid).environ()[HEARTBEAT_VARIABLE]
        pipe = Path(f"/proc/{pid}/fd/{number}").readlink()
        holders = [
            process.pid
            for process in psutil.process_iter()
            if pipe in open_files(process.pid) and process.pid != pid
        ]
        assert holders == [launcher.pid]
        launcher.kill()
        launcher.wait()
        wait_for(lambda: isinstance(events(folder)[-1], RunFinished))


def open_files(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return []


def record_as(folder: RunFolder, **changes: object) -> None:
    folder.write_record(msgspec.structs.replace(folder.read_record(), **changes))


def test_a_run_that_was_never_launched_is_dead_in_twenty_seconds(runner: LocalRunner) -> None:
    gone = ProcessRef(pid=2**22 - 1, start_time=1.0, pgid=1)
    now = time.time()
    fresh = runner.store.create(RunConfig(name="fresh"), "local", now - 10, gone)
    assert runner.attach(fresh).alive()
    stale = runner.store.create(RunConfig(name="stale"), "local", now - 21, gone)
    assert not runner.attach(stale).alive()
    failure_of(runner.attach(stale))
    waits = runner.store.create(RunConfig(name="w"), "local", now - 21, process_ref(os.getpid()))
    assert runner.attach(waits).alive()


def test_a_run_that_is_still_being_launched_is_asked_by_file(runner: LocalRunner) -> None:
    us = process_ref(os.getpid())
    folder = runner.store.create(RunConfig(name="w"), "local", time.time(), us)
    report = runner.attach(folder).stop("graceful", grace_seconds=0.1)
    assert (report.ended, report.how) == (False, "still there")
    assert folder.stop_path.exists()


def test_a_group_that_an_engine_does_not_lead_is_never_touched(runner: LocalRunner) -> None:
    bystander = subprocess.Popen(["sleep", "600"], process_group=0)
    try:
        folder = runner.store.create(RunConfig(name="w"), "local", time.time() - 60)
        gone = ProcessRef(pid=2**22 - 3, start_time=1.0, pgid=bystander.pid)
        folder.process_path.write_bytes(msgspec.json.encode(gone))
        assert runner.attach(folder).stop("now").how == "was already over"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_pid_that_is_used_again_is_nobody(runner: LocalRunner) -> None:
    folder = runner.store.create(RunConfig(name="w"), "local", time.time() - 60)
    us = ProcessRef(pid=os.getpid(), start_time=1.0, pgid=os.getpgid(0))
    folder.process_path.write_bytes(msgspec.json.encode(us))
    run = runner.attach(folder)
    assert not run.alive()
    assert run.stop("now").how == "was already over"


def test_a_run_of_another_machine_is_watched_and_asked_but_never_judged(
    runner: LocalRunner,
) -> None:
    run = start(runner, "well")
    record_as(run.folder, host="elsewhere")
    there = LocalRunner(runner.store).attach(run.folder)
    assert there.alive()
    assert not there.settle()
    assert not there.stop("graceful").ended
    wait_for(run.settle)
    assert isinstance(last_of(run.folder), RunFinished)
    assert there.settle()


def test_a_run_whose_record_is_damaged_can_still_be_stopped(runner: LocalRunner) -> None:
    run = start(runner, "well")
    run.folder.record_path.write_bytes(b"{")
    report = attach(LocalRunner(runner.store), run.folder).stop("graceful")
    assert (report.ended, report.how) == (True, "saved and exited")


def test_an_engine_that_cannot_be_launched_leaves_a_run_that_says_so(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with pytest.raises(LaunchFailed, match="No such file"):
        LocalRunner(store, python="/no/such/python").start(RunConfig())
    [folder] = store.folders()
    last = last_of(folder)
    assert isinstance(last, RunFailed)
    assert last.kind == "runner"


def test_a_missing_engine_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ENGINE_PACKAGES", ("sys", "no_such_package"))
    with pytest.raises(EngineMissing, match=r'pip install "composer-tui\[engine\]"'):
        LocalRunner(RunStore(tmp_path)).start(RunConfig())
    assert list(tmp_path.iterdir()) == []


def test_the_kernels_count_of_killed_processes_is_read_where_there_is_one() -> None:
    kills = last_word.oom_kills()
    assert kills is None or kills >= 0


@pytest.mark.parametrize(
    ("cgroup", "files", "count"),
    [
        ("0::/a/b", {"cgroup/a/b/memory.events": "low 0\noom 9\noom_kill 3\n"}, 3),
        ("4:memory:/a", {"cgroup/memory/a/memory.oom_control": "under_oom 0\noom_kill 4\n"}, 4),
        ("4:memory:/of/the/host", {"cgroup/memory/memory.oom_control": "oom_kill 5\n"}, 5),
        ("0::/", {"proc/vmstat": "nr_free 1\noom_kill 6\n"}, 6),
        ("0::/", {"cgroup/memory.events": "oom_kill 7\n", "proc/vmstat": "oom_kill 6\n"}, 7),
        ("0::/", {"proc/vmstat": "nr_free 1\n"}, None),
    ],
)
def test_the_count_is_the_groups_own_or_else_the_machines(
    tmp_path: Path, cgroup: str, files: dict[str, str], count: int | None
) -> None:
    for name, text in {"proc/self/cgroup": f"1:cpu:/x\n{cgroup}\n", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert last_word.oom_kills(tmp_path / "proc", tmp_path / "cgroup") == count


# ---------------------------------------------------------------- the next attempt


def checkpointed(run: LocalRun, step: int) -> None:
    """As if the stand-in had saved there."""
    folder = run.folder.path / f"checkpoints/step-{step}"
    folder.mkdir(parents=True)
    config = msgspec.to_builtins(run.folder.read_record().config)
    seal = Seal(
        step=step,
        attempt=1,
        saved_at=0.0,
        resumable=True,
        files={},
        identity=Identity(config=config),
    )
    write_seal(folder, seal)


def test_a_run_goes_on_in_its_folder_under_its_own_launcher(runner: LocalRunner) -> None:
    run = start(runner, "well")
    with pytest.raises(CannotResume, match="is still alive"):
        resumable(run.folder)
    before = run.pid
    run.stop("graceful")
    watched = LocalRun(run.folder)
    assert watched.settle()
    run.folder.stop_path.touch()  # left over: it must not end the next attempt
    with pytest.raises(CannotResume, match="nothing to resume"):
        resumable(run.folder)
    checkpointed(run, 2)
    config = resumable(run.folder, ["optimizer.steps=9"])
    again = runner.resume(run.folder, config)
    assert again.alive()
    assert again.pid not in (None, before)
    assert LocalRun(run.folder).alive()  # another program sees the new engine from the first moment
    assert not watched.settle()  # also one that had seen the end of the one before
    with pytest.raises(CannotResume, match="is still alive"):
        runner.resume(run.folder, config)
    assert psutil.Process(again.pid).cmdline()[-2:] == ["--resume", "auto"]
    assert not run.folder.stop_path.exists()
    assert run.folder.read_record().config.optimizer.steps == 9
    assert again.stop("now").ended


def test_a_run_that_cannot_go_on_says_why(runner: LocalRunner) -> None:
    run = start(runner, "finishes")
    wait_for(run.settle)
    checkpointed(run, 2)
    with pytest.raises(CannotResume, match="finished already, at step 3"):
        resumable(run.folder, ["optimizer.steps=3"])
    with pytest.raises(ConfigError, match=r"optimizer\.seed: is 5, and checkpoints/step-2"):
        resumable(run.folder, ["optimizer.seed=5"])
    (run.folder.path / "checkpoints/step-2/complete.json").unlink()
    with pytest.raises(CannotResume, match="passed over checkpoints/step-2"):
        resumable(run.folder)
    for change, word in (({"target": "modal"}, "modal"), ({"host": "mars"}, "mars")):
        record = msgspec.structs.replace(run.folder.read_record(), **change)
        run.folder.write_record(record)
        with pytest.raises(CannotResume, match=word):
            resumable(run.folder)
        run.folder.write_record(msgspec.structs.replace(record, target="local"))


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        ref = process_ref(process.pid)
        assert ref is not None
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert not is_alive(ref)
