"""A recorded run once more, at any speed: for demos, screenshots and tests.

There is no process and no thread: whoever drives a replay pumps it. Its folder is a run's folder
like any other, so everything that watches a run watches it.

Every event keeps its ``seq``; lines that are no event are left out. Times are moved to the replay,
gaps divided by its speed; at infinite speed they stay as recorded, since the replay takes none.
``run_started`` names the new run. A recording that has no last word, or whose replay is stopped,
ends with ``run_finished(stopped_early=True)``, or with ``run_failed(kind="killed")`` while the
attempt had not started: a replay keeps the laws of the protocol.
"""

import math
import os
import threading
import time
from collections import deque
from typing import Any

import msgspec

from composer_engine.config import RunConfig
from composer_engine.protocol import (
    Event,
    Logged,
    RunFailed,
    RunFinished,
    RunStarted,
    Unrecognized,
)
from composer_tui.runners.base import Ending, StopReport
from composer_tui.runners.processes import is_alive, process_ref
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.framer import Framer
from composer_tui.runs.journal import append, read_end, read_line
from composer_tui.runs.state import RunState
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore
from composer_tui.runs.tail import Tail

_READ_BYTES = 1 << 18


class ReplayRunner:
    """Replays ``source`` into new folders of ``store``.

    ``speed`` is recorded seconds a second, above 0; it may be infinite.
    """

    def __init__(self, store: RunStore, source: RunFolder, speed: float = 1.0) -> None:
        if not speed > 0:
            raise ValueError(f"a replay cannot have speed {speed:g}")
        self.store = store
        self.source = source
        self.speed = speed

    def start(self, config: RunConfig | None = None, now: float | None = None) -> "ReplayRun":
        """A replay that begins at ``now`` (unix seconds), the clock that `ReplayRun.pump` is given.

        ``config`` is what the new run is said to run; ``None`` takes the recorded one. Raises
        `DamagedFolder` when there is none, and OSError when there can be no folder.
        """
        begun = time.time() if now is None else now
        config = config or self.source.read_record().config
        folder = self.store.create(config, "replay", begun, process_ref(os.getpid()))
        return ReplayRun(folder, self.source, self.speed, begun)

    def attach(self, folder: RunFolder) -> "ReplayRun":
        """A handle of a replay that somebody else drives: it can be watched and ended."""
        return ReplayRun.attached(folder)


class ReplayRun:
    """One replay. Without a ``source`` it writes nothing but a last word, if one is due."""

    def __init__(
        self, folder: RunFolder, source: RunFolder | None, speed: float, begun: float
    ) -> None:
        self.folder = folder
        self._speed = speed
        self._begun = begun
        self._tail = Tail(source.events_path) if source else None
        self._framer = Framer()
        self._waiting: deque[Event] = deque()
        self._recorded_from: float | None = None
        self._ended = False
        self._lock = threading.Lock()  # a replay is pumped in one thread and stopped in another

    @classmethod
    def attached(cls, folder: RunFolder) -> "ReplayRun":
        """A handle of a replay that somebody else drives, or drove."""
        return cls(folder, None, 1.0, 0.0)

    def pump(self, now: float) -> int:
        """Writes the events that are due at ``now`` (unix seconds), and says how many.

        One call reads at most 256 KiB of the recording, so at infinite speed call it until
        `alive` is False. Raises OSError.
        """
        with self._lock:
            if self._ended or self._tail is None:
                return 0
            if self.folder.stop_path.exists():
                self._end(now, "replay stopped")
                return 0
            more = bool(self._waiting) or self._read(self._tail)
            due: list[Event] = []
            while self._waiting and self._due_at(self._waiting[0]) <= now:
                due.append(self._retold(self._waiting.popleft()))
            if due:
                append(self.folder.events_path, due)
            if not more:
                self._end(now, "the recording ends here")
            return len(due)

    def alive(self) -> bool:
        """Somebody may still pump it."""
        if self._tail is not None:
            return not self._ended
        try:
            launcher = self.folder.read_record().launcher
        except DamagedFolder:
            return False
        return (
            launcher is not None
            and is_alive(launcher)
            and not read_end(self.folder.events_path).ended
        )

    def settle(self) -> bool:
        """Ends a replay whose driver is gone. True when it has ended."""
        if self.alive():
            return False
        with self._lock:
            if not self._ended:
                self._end(time.time(), "replay stopped")
        return True

    def stop(self, mode: StopMode, grace_seconds: float | None = None) -> StopReport:  # noqa: ARG002  # there is nothing to save or to wait for
        """Ends the replay; one that another program drives is asked, and ends when it is pumped."""
        if self._tail is None and self.alive():
            self.folder.stop_path.touch()
            return StopReport(ended=False, how="still there", seconds=0.0)
        with self._lock:
            watched = self._tail is None  # between attempts, our own stream has ended as well
            if self._ended or (watched and read_end(self.folder.events_path).ended):
                return StopReport(ended=True, how="was already over", seconds=0.0)
            self._end(time.time(), "replay stopped")
            how: Ending = "replay stopped" if self._ended else "still there"
        return StopReport(ended=self._ended, how=how, seconds=0.0)

    def _read(self, tail: Tail) -> bool:
        """Takes in more of the recording; False at its end."""
        data = tail.read(_READ_BYTES)
        for line in self._framer.feed(data):
            event = read_line(line)
            if isinstance(event, Unrecognized):
                if event.seq is None:
                    continue
                # It keeps its place, so that the replay has no hole where the recording has none.
                event = Logged(
                    seq=event.seq, level="warning", message=f"{event.reason}, in the recording"
                )
            self._waiting.append(event)
        return bool(data)

    def _due_at(self, event: Event) -> float:
        if self._recorded_from is None:
            self._recorded_from = event.time
        return self._begun + (event.time - self._recorded_from) / self._speed

    def _retold(self, event: Event) -> Event:
        changes: dict[str, Any] = {}
        if isinstance(event, RunStarted):
            changes["run_id"] = self.folder.run_id
        if not math.isinf(self._speed):
            changes["time"] = self._due_at(event)
        return msgspec.structs.replace(event, **changes)

    def _end(self, now: float, reason: str) -> None:
        """Writes the last word unless there is one."""
        with self.folder.lock() as ours:
            if not ours:
                return  # another program is at it
            end = read_end(self.folder.events_path)
            if not end.ended:
                append(self.folder.events_path, [_last_word(end, now, reason)])
        self._ended = True
        if self._tail is not None:
            self._tail.close()


def _last_word(end: RunState, now: float, reason: str) -> Event:
    if end.last is not None or end.run_id:
        steps = end.last.step if end.last else 0
        return RunFinished(
            seq=end.next_seq, time=now, steps=steps, stopped_early=True, reason=reason
        )
    message = f"{reason}, before the run had started"
    return RunFailed(seq=end.next_seq, time=now, kind="killed", message=message)
