"""Ending a run well: signals, the stop file, and steps whose numbers are not finite."""

import contextlib
import signal
from pathlib import Path
from types import FrameType

from composer_engine.contract import NOTICE_FILE, STOP_FILE
from composer_engine.emitter import Emitter
from composer_engine.protocol import EndedBy, RunFailed

_READ_BYTES = 1000
_GUARD_RAILS: dict[str, EndedBy] = {"budget": "budget", "timeout": "timeout"}


class StopRequest:
    """Whether the run should end after this step, and why.

    The first SIGINT, SIGTERM or SIGHUP, the stop file and a launcher that is gone ask for it; a
    second signal does not ask: the run fails as killed and the process ends at once. A stop file
    may hold the reason in its first line, and in its second the guard rail that asks.
    """

    def __init__(self, emitter: Emitter, folder: Path | None) -> None:
        self._emitter = emitter
        self._stop_file = folder / STOP_FILE if folder else None
        self._notice_file = folder / NOTICE_FILE if folder else None
        self._signals = 0
        self._reason = ""
        self._ended_by: EndedBy = ""

    def listen(self) -> None:
        """Take SIGINT, SIGTERM and, unless nohup has it ignored, SIGHUP. For the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    def ask(self, reason: str) -> None:
        """End the run after this step; the first reason stays. Any thread may ask."""
        self._reason = self._reason or reason

    def reason(self) -> str:
        """Why to stop, or '' to go on. A stop file is taken away once it is seen."""
        if not self._reason and self._stop_file is not None and self._stop_file.exists():
            reason, ended_by = _use_up(self._stop_file)
            self.ask(reason or "asked by the stop file")
            self._ended_by = _GUARD_RAILS.get(ended_by, "")
        return self._reason

    @property
    def ended_by(self) -> EndedBy:
        """The guard rail that asked, or "" for anybody else."""
        return self._ended_by

    def notice(self) -> str:
        """What somebody outside wants the run to tell, once; else ''."""
        if self._notice_file is None or not self._notice_file.exists():
            return ""
        return _use_up(self._notice_file)[0]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._signals += 1
        if self._signals == 1:
            self.ask(f"asked by {name}")
        else:
            message = f"asked a second time ({name}): the run ended at once, without saving"
            hint = "work since the last checkpoint is lost; a graceful stop saves it"
            self._emitter.abort(RunFailed(kind="killed", message=message, hint=hint))


def _use_up(file: Path) -> tuple[str, str]:
    """The first two lines of a file, which is then taken away."""
    text = b""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        text = stream.read(_READ_BYTES)
    file.unlink(missing_ok=True)
    first, second, *_ = [*text.decode("utf-8", "replace").split("\n"), ""]
    return first.strip(), second.strip()


class NonFiniteGuard:
    """Counts the non-finite steps in a row; a finite one starts the count anew.

    ``in_a_row`` is the count so far, which a run that goes on from a checkpoint takes along.
    """

    def __init__(self, patience: int, in_a_row: int = 0) -> None:
        self.patience, self.in_a_row = patience, in_a_row
        self.last_guilty = ""

    def judge(self, guilty: str) -> None:
        """``guilty`` names what was not finite in a step, or is '' for a healthy one."""
        self.in_a_row = self.in_a_row + 1 if guilty else 0
        self.last_guilty = guilty or self.last_guilty

    @property
    def exhausted(self) -> bool:
        return self.in_a_row >= self.patience
