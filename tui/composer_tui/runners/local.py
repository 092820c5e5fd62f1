"""Runs on this machine: an engine process in a session of its own.

The engine outlives whoever looks at it. A handle therefore trusts only what is on disk (who the
engine is, what it has written) and what the kernel says, so that a second program, or this one
after a crash, can watch and stop a run as well as the one that launched it. The one thing that
only the launcher knows is the exit status.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from composer_engine.config import RunConfig, config_hash, to_toml
from composer_engine.contract import ENGINE_PACKAGES, HEARTBEAT_VARIABLE
from composer_engine.protocol import RunFailed
from composer_engine.resume import AUTO
from composer_tui.runners.base import Ending, StopReport
from composer_tui.runners.last_word import Death, last_word, oom_kills
from composer_tui.runners.preflight import check_inputs
from composer_tui.runners.processes import (
    RUN_ID_VARIABLE,
    is_alive,
    members,
    process_ref,
)
from composer_tui.runners.stopping import Stage, stop_processes
from composer_tui.runs.folder import (
    DamagedFolder,
    ProcessRef,
    RunFolder,
    RunRecord,
    this_host,
    write_whole,
)
from composer_tui.runs.journal import append, read_end
from composer_tui.runs.log_end import read_log_end
from composer_tui.runs.state import RunState
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore

LAUNCH_SECONDS = 20.0  # from run.json to process.json at most
TERM_SECONDS = 5.0  # from SIGTERM to SIGKILL
KILL_SECONDS = 5.0  # until the kernel has ended what it was told to kill
_LAUNCHER_FIRST_SECONDS = 5.0  # the launcher knows the exit status: let it speak


class EngineMissing(RuntimeError):  # noqa: N818  # says what is the matter
    """The packages that train are not installed; the message names the one command."""


class LaunchFailed(RuntimeError):  # noqa: N818  # says what happened
    """The system would not start the engine. The run's stream says so too."""


class CannotResume(RuntimeError):  # noqa: N818  # says what happened
    """A run that has no next attempt; the message is one line that says why."""


class _Child(NamedTuple):
    """The engine as the process that launched it knows it."""

    process: "subprocess.Popen[bytes]"
    ref: ProcessRef | None
    oom_kills: int | None  # before the launch


class LocalRunner:
    """Launches engines with ``python``, one process group each.

    Holds the pipes by which a run with ``local.on_disconnect = "stop"`` notices that this process
    is gone; they end with the process and nothing else.
    """

    def __init__(self, store: RunStore, python: str = sys.executable) -> None:
        self.store = store
        self.python = python
        self._children: dict[Path, _Child] = {}
        self._heartbeats: list[int] = []

    def start(self, config: RunConfig) -> "LocalRun":
        """Launches a run.

        Raises `ConfigError`, `EngineMissing`, `LaunchFailed`, or OSError (no folder).
        """
        if self.python == sys.executable:
            require_engine()
        check_inputs(config, "local")
        folder = self.store.create(config, "local", time.time(), process_ref(os.getpid()))
        before = oom_kills()
        try:
            process = self._spawn(folder, config)
        except OSError as error:
            message = f"the engine could not be started: {error.strerror}: {error.filename}"
            _write_word(folder, RunFailed(kind="runner", message=message))
            raise LaunchFailed(message) from error
        self._children[folder.path] = _Child(process, process_ref(process.pid), before)
        return self.attach(folder)

    def resume(self, folder: RunFolder, config: RunConfig) -> "LocalRun":
        """Launches the next attempt of a run that is over, from its newest checkpoint on.

        ``config`` is what `composer_tui.runners.resuming.resumable` allowed; the run has it from
        now on. Raises `EngineMissing`, `LaunchFailed`, `CannotResume` for a run that somebody
        else has just resumed, or OSError.
        """
        if self.python == sys.executable:
            require_engine()
        with folder.lock() as ours:
            if not ours or self.attach(folder).alive():
                raise CannotResume(f"{folder.run_id} is still alive")
            record = folder.read_record()
            folder.write_record(
                msgspec.structs.replace(
                    record,
                    config=config,
                    config_hash=config_hash(config),
                    launcher=process_ref(os.getpid()),
                )
            )
            write_whole(folder.config_path, to_toml(config).encode())
            for left in (folder.stop_path, folder.stopping_path):
                left.unlink(missing_ok=True)  # what the attempt before was asked
            before = oom_kills()
            try:
                process = self._spawn(folder, config, "--resume", AUTO)
            except OSError as error:
                message = f"the engine could not be started: {error.strerror}: {error.filename}"
                raise LaunchFailed(message) from error
            ref = process_ref(process.pid)
            if ref is not None:
                # The engine says the same in a second; until then it is not the one before.
                write_whole(folder.process_path, msgspec.json.encode(ref))
        self._children[folder.path] = _Child(process, ref, before)
        return self.attach(folder)

    def attach(self, folder: RunFolder) -> "LocalRun":
        """A handle of any local run, whoever launched it."""
        return LocalRun(folder, self._children.get(folder.path))

    def _spawn(self, folder: RunFolder, config: RunConfig, *more: str) -> "subprocess.Popen[bytes]":
        argv = [self.python, "-m", "composer_engine", "--config", str(folder.config_path)]
        argv += ["--run-dir", str(folder.path), "--run-id", folder.run_id, *more]
        env = {name: text for name, text in os.environ.items() if not _is_withheld(name)}
        env |= {RUN_ID_VARIABLE: folder.run_id, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        ours: int | None = None
        theirs: tuple[int, ...] = ()
        if config.local.on_disconnect == "stop":
            # Our end is not inheritable (os.pipe sees to it): a sibling that held it open would
            # keep the engine from noticing our death.
            end, ours = os.pipe()
            theirs, env[HEARTBEAT_VARIABLE] = (end,), str(end)
        try:
            with folder.log_path.open("ab") as log:
                process = subprocess.Popen(  # noqa: S603  # argv is ours
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd=folder.read_record().cwd,
                    env=env,
                    pass_fds=theirs,
                    start_new_session=True,
                )
        except OSError:
            if ours is not None:
                os.close(ours)
            raise
        finally:
            for end in theirs:
                os.close(end)
        if ours is not None:
            self._heartbeats.append(ours)
        return process


class LocalRun:
    """One run on this machine. Handles of one run, in any number of programs, agree."""

    def __init__(self, folder: RunFolder, child: _Child | None = None) -> None:
        self.folder = folder
        self._child = child
        self._record = _read_record(folder)
        self._settled = False
        self._settled_engine = 0  # when that engine had said who it is: a later one is not settled
        self._dead_since: float | None = None  # monotonic seconds

    @property
    def pid(self) -> int | None:
        """The engine's process id; ``None`` until it is known."""
        ref = self._engine()
        return ref.pid if ref else None

    def alive(self) -> bool:
        """The engine runs, or is about to.

        A run of another machine, or of another runner, counts as alive until its stream has ended.
        """
        if self._child is not None and self._child.process.poll() is None:
            return True
        if not self._is_ours():
            return not read_end(self.folder.events_path).ended
        ref = self._engine()
        if ref is not None:
            return is_alive(ref, self.folder.run_id)
        if self._child is not None:
            return False
        launcher = self._record.launcher if self._record else None
        if launcher is not None and is_alive(launcher):
            return True
        return time.time() - self._created_at() < LAUNCH_SECONDS

    def settle(self) -> bool:
        """Reaps the engine; writes the last word of one that died without. True when all is over.

        Never raises: a folder that cannot be read or written counts as over, without a last word,
        and each call tries again.
        """
        if self._settled and self._settled_engine == _changed_ns(self.folder.process_path):
            return True
        try:
            if self.alive():
                return False
            self._settled_engine = _changed_ns(self.folder.process_path)
            self._settled = read_end(self.folder.events_path).ended
            if not self._settled and not self._launcher_may_speak():
                self._settled = self._write_last_word("")
        except OSError:
            return True
        return self._settled

    def stop(self, mode: StopMode, grace_seconds: float | None = None) -> StopReport:
        """Asks the engine to save and end, then insists: SIGINT, SIGTERM, SIGKILL.

        Returns when no process of the run is left, or `KILL_SECONDS` after the last resort. It
        blocks for as long as that takes: call it in a thread. A run of another machine, or of
        another runner, is only asked. Raises OSError when the folder cannot be written.
        """
        begun = time.monotonic()
        if not self._is_ours():
            self.folder.stop_path.touch()
            return StopReport(ended=not self.alive(), how="still there", seconds=0.0)
        if not self._members() and not self.alive():
            self.settle()
            return StopReport(ended=True, how="was already over", seconds=0.0)
        grace = self._grace_seconds() if grace_seconds is None else grace_seconds
        sent, left = stop_processes(self._members, self._leader(), self._stages(mode, grace))
        if not left:
            self._reap()
        ended = not left and not self.alive()
        if not left and not ended:  # another program is launching it: the engine will see this
            self.folder.stop_path.touch()
        how = self._ending(sent) if ended else "still there"
        if ended:
            with contextlib.suppress(OSError):  # it has ended; `settle` writes what this could not
                self.folder.stopping_path.unlink(missing_ok=True)
                self._settled = self._write_last_word(sent.name if sent else "")
                self._settled_engine = _changed_ns(self.folder.process_path)
        pids = tuple(sorted(process.pid for process in left))
        return StopReport(ended, how, time.monotonic() - begun, pids)

    def _ending(self, sent: signal.Signals | None) -> Ending:
        end = RunState()
        with contextlib.suppress(OSError):
            end = read_end(self.folder.events_path)
        if end.finish is not None:
            saved = end.checkpoint is not None and end.checkpoint.step == end.finish.steps
            return "saved and exited" if saved else "exited"
        return "killed" if sent == signal.SIGKILL else "terminated"

    def _stages(self, mode: StopMode, grace: float) -> list[Stage]:
        insist = [
            Stage(signal.SIGTERM, leader_only=False, seconds=TERM_SECONDS),
            Stage(signal.SIGKILL, leader_only=False, seconds=KILL_SECONDS),
        ]
        if mode == "now":
            # Two different signals, so that an engine in good health takes the second for what it
            # is, impatience, and writes its last word itself.
            return [Stage(signal.SIGINT, leader_only=True, seconds=0.0), *insist]
        # Whoever is second to ask for a graceful stop must not be that second signal.
        first = _claim(self.folder.stopping_path, grace + TERM_SECONDS + KILL_SECONDS)
        number = signal.SIGINT if first else None
        return [Stage(number, leader_only=True, seconds=grace), *insist]

    def _members(self) -> list[psutil.Process]:
        if self._child is not None:
            self._child.process.poll()
        return members(self._engine(), self.folder.run_id)

    def _reap(self) -> None:
        """Waits for a child that runs no more: the kernel may still be ending its threads."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.process.wait(KILL_SECONDS)

    def _leader(self) -> psutil.Process | None:
        ref = self._engine()
        try:
            return psutil.Process(ref.pid) if ref and is_alive(ref, self.folder.run_id) else None
        except psutil.NoSuchProcess:
            return None

    def _engine(self) -> ProcessRef | None:
        """Who the engine says it is, and until it does, whom its launcher has started."""
        written = self.folder.read_process()
        if self._child is None:
            return written
        runs = self._child.process.poll() is None
        if written is None or (runs and not is_alive(written, self.folder.run_id)):
            return self._child.ref
        return written

    def _is_ours(self) -> bool:
        """An engine of this machine; what its record does not deny is taken for one."""
        record = self._record
        return record is None or (record.target == "local" and record.host in ("", this_host()))

    def _grace_seconds(self) -> float:
        config = self._record.config if self._record else RunConfig()
        return config.local.stop_grace_seconds

    def _created_at(self) -> float:
        if self._record is not None:
            return self._record.created_at
        return self.folder.path.stat().st_mtime

    def _launcher_may_speak(self) -> bool:
        """Another program launched it, is still there, and has had little time to say more."""
        launcher = self._record.launcher if self._record else None
        if self._child is not None or launcher is None or launcher.pid == os.getpid():
            return False
        now = time.monotonic()
        self._dead_since = self._dead_since or now
        return now - self._dead_since < _LAUNCHER_FIRST_SECONDS and is_alive(launcher)

    def _write_last_word(self, stopped_with: str) -> bool:
        """False when another handle is at it: it will be done by the next call."""
        if self._record is None and self.folder.read_process() is None:
            return True  # a folder that no run has made is nobody's to write in
        with self.folder.lock() as ours:
            if not ours:
                return False
            end = read_end(self.folder.events_path)
            if not end.ended:
                log = read_log_end(self.folder.log_path)
                _append_word(self.folder, end, last_word(self._death(stopped_with), log))
            return True

    def _death(self, stopped_with: str) -> Death:
        if self._child is None:
            return Death(None, stopped_with=stopped_with)
        kills = oom_kills()
        before = self._child.oom_kills
        killed = kills is not None and before is not None and kills > before
        return Death(self._child.process.poll(), killed, stopped_with)


def _is_withheld(name: str) -> bool:
    """What an engine has no use for: another's heartbeat, and the token of a Modal account."""
    return name == HEARTBEAT_VARIABLE or name.startswith("MODAL_TOKEN_")


def require_engine() -> None:
    """Raises `EngineMissing` unless what trains is installed. Imports none of it."""
    missing = [name for name in ENGINE_PACKAGES if find_spec(name) is None]
    if missing:
        raise EngineMissing(
            f"training needs packages that are not installed ({', '.join(missing)}): "
            'pip install "composer-tui[engine]"'
        )


def _changed_ns(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 for one that is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read_record(folder: RunFolder) -> RunRecord | None:
    """A folder whose record is damaged can still be watched and stopped."""
    try:
        return folder.read_record()
    except DamagedFolder:
        return None


def _write_word(folder: RunFolder, word: RunFailed) -> None:
    with folder.lock():
        _append_word(folder, read_end(folder.events_path), word)


def _append_word(folder: RunFolder, end: RunState, word: RunFailed) -> None:
    stamped = msgspec.structs.replace(word, seq=end.next_seq, time=time.time())
    append(folder.events_path, [stamped])


def _claim(path: Path, seconds: float) -> bool:
    """Makes the file; False when somebody else has, less than so many seconds ago."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        with contextlib.suppress(OSError):
            fresh = time.time() - path.stat().st_mtime < seconds
            path.touch()
            return not fresh
    except OSError:
        return True  # a disk that is full must not keep a run alive
    return True
