"""The runs on this machine that have not ended, and how each of them can be reached."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import psutil

from composer_tui.runners.attach import attach
from composer_tui.runners.base import RunHandle
from composer_tui.runners.cloud import CloudFor, CloudRun
from composer_tui.runners.local import LocalRun, LocalRunner
from composer_tui.runners.replay import ReplayRun
from composer_tui.runs.feed import RunFeed
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.journal import read_end
from composer_tui.runs.state import ENDED, RunState
from composer_tui.runs.store import RunSummary

_READ_SECONDS = 0.2


class StopFacts(NamedTuple):
    """What is known of a run that may be stopped; ``grace_seconds`` is its own setting."""

    run_id: str
    pid: int | None
    state: RunState
    total_steps: int
    grace_seconds: float


class LiveRun(NamedTuple):
    """A run that is live; ``ends_with_us`` when its configuration ties it to this program."""

    run_id: str
    step: int
    total_steps: int
    ends_with_us: bool


class Fleet:
    """Handles by run id. A run leaves the fleet when it has ended and has its last word."""

    def __init__(self, runner: LocalRunner, cloud_for: CloudFor | None = None) -> None:
        self._runner, self._cloud_for = runner, cloud_for
        self._handles: dict[str, RunHandle] = {}

    @property
    def live(self) -> frozenset[str]:
        """The ids of the runs that have not ended."""
        return frozenset(self._handles)

    def add(self, handle: RunHandle) -> None:
        """Take in a run that was just launched."""
        self._handles[handle.folder.run_id] = handle

    def get(self, run_id: str) -> RunHandle | None:
        """The handle of a live run."""
        return self._handles.get(run_id)

    def find_running(self) -> list[str]:
        """Take in what runs: local runs whose process is there, and runs on Modal that are launched
        and were not seen to end. Their ids, the newest first.

        A glance at one small file a run, before the first paint. `find` sees the rest later: what
        is just being launched, replays, rehearsals, and runs that died with nobody watching.
        """
        found: list[tuple[float, str]] = []
        store = self._runner.store
        for folder in (RunFolder(store.root / run_id) for run_id in store.run_ids()):
            if folder.cloud_path.exists():
                run = CloudRun(folder, self._cloud_for)
                if run.alive() and run.is_launched and run.ref and not run.ref.connection:
                    self.add(run)
                    found.append((run.ref.launched_at, folder.run_id))
                continue
            process = folder.read_process()
            if process is None or not psutil.pid_exists(process.pid):
                continue
            handle = self._runner.attach(folder)
            if not _is_over(handle):
                self.add(handle)
                found.append((process.start_time, folder.run_id))
        return [run_id for _, run_id in sorted(found, reverse=True)]

    def find(self, runs: list[RunSummary]) -> list[str]:
        """Take in every run of a list that is live; the ids of the new ones, in that order.

        A run that died with nobody watching gets its last word here.
        """
        found: list[str] = []
        for run in runs:
            if run.life in ENDED or run.run_id in self._handles:
                continue
            folder = RunFolder(self._runner.store.root / run.run_id)
            handle = attach(self._runner, folder, self._cloud_for)
            if not _is_over(handle):
                self._handles[run.run_id] = handle
                found.append(run.run_id)
        return found

    def settle(self) -> list[str]:
        """Let go of the runs that have ended; their ids."""
        ended = [run_id for run_id, handle in self._handles.items() if _is_over(handle)]
        for run_id in ended:
            del self._handles[run_id]
        return ended

    def replays(self) -> Iterator[ReplayRun]:
        """The replays."""
        return (handle for handle in self._handles.values() if isinstance(handle, ReplayRun))

    def pump(self, now: float) -> dict[str, str]:
        """Let the replays write what is due; by run id, why one could not."""
        failed: dict[str, str] = {}
        for replay in self.replays():
            try:
                replay.pump(now)
            except OSError as error:
                failed[replay.folder.run_id] = error.strerror or str(error)
        return failed

    def outliving(self) -> list[str]:
        """The ids of the live runs that a person has to decide about: a replay is nobody's work."""
        return [run for run, handle in self._handles.items() if not isinstance(handle, ReplayRun)]

    def cloud_run(self, app: str) -> CloudRun | None:
        """The live run on Modal whose app has this id or, before it has one, this name."""
        for handle in self._handles.values():
            ref = handle.ref if isinstance(handle, CloudRun) else None
            if isinstance(handle, CloudRun) and ref and app in (ref.app_id, ref.app_name):
                return handle
        return None

    def stop_facts(self, run_id: str, state: RunState | None) -> StopFacts | None:
        """What a person should know before stopping; None for a run that is not live."""
        handle = self._handles.get(run_id)
        if handle is None:
            return None
        if state is None:
            state = _read_state(handle.folder)
        try:
            config = handle.folder.read_record().config
            grace, steps = config.local.stop_grace_seconds, config.optimizer.steps
        except DamagedFolder:
            grace, steps = 0.0, state.total_steps
        pid = handle.pid if isinstance(handle, LocalRun) else None
        return StopFacts(run_id, pid, state, state.total_steps or steps, grace)

    def live_run(self, run_id: str, state: RunState | None) -> LiveRun | None:
        """What the question before quitting says of a run."""
        facts = self.stop_facts(run_id, state)
        if facts is None:
            return None
        done = facts.state.last.step if facts.state.last else 0
        return LiveRun(run_id, done, facts.total_steps, self._ends_with_us(run_id))

    def _ends_with_us(self, run_id: str) -> bool:
        try:
            config = self._handles[run_id].folder.read_record().config
        except DamagedFolder:
            return False
        return config.local.on_disconnect == "stop"


def _is_over(handle: RunHandle) -> bool:
    try:
        return handle.settle()
    except OSError:
        return False  # its folder cannot be looked at: what is not known to be over is not


def _read_state(folder: RunFolder) -> RunState:
    """The run's state as its file tells it; of a long one, what its end tells."""
    feed = RunFeed(folder)
    deadline = time.monotonic() + _READ_SECONDS
    feed.poll()
    while not feed.caught_up and time.monotonic() < deadline:
        feed.poll()
    state = feed.state if feed.caught_up else read_end(folder.events_path)
    feed.close()
    return state
