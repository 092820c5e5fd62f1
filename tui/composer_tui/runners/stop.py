"""One stop, carried out beside whatever asked for it, and what came of it."""

import threading
from collections.abc import Callable

from composer_tui.numbers import duration
from composer_tui.runners.base import RunHandle, StopReport
from composer_tui.runs.sanitise import clean
from composer_tui.runs.stop_mode import StopMode


class Stop:
    """Ends a run in a thread of its own: that may take a minute, and must outlive a screen.

    ``shown`` is for the one who asked: whether a person has been told the outcome.
    """

    def __init__(
        self, handle: RunHandle, mode: StopMode, when_ended: Callable[["Stop"], object]
    ) -> None:
        self.run_id = handle.folder.run_id
        self.shown = False
        self._handle, self._mode, self._when_ended = handle, mode, when_ended
        self._report: StopReport | None = None
        self._error = "it is under way"
        # Not kept alive by it: a program that waits for a stop says so, and can be interrupted.
        self._thread = threading.Thread(target=self._carry_out, name=self.run_id, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self) -> None:
        """Until there is an outcome."""
        self._thread.join()

    @property
    def ended(self) -> bool:
        """Nothing of the run is left, as verified."""
        return self._report is not None and self._report.ended

    @property
    def words(self) -> str:
        """The outcome: "ended" is said of what was verified, and of nothing else."""
        report = self._report
        if report is None:
            return f"{self.run_id} was not stopped: {self._error}"
        took = duration(report.seconds)
        if report.ended:
            return f"ended: {report.how}, in {took}; no process is left"
        if report.left:
            pids = " ".join(map(str, report.left))
            return f"{self.run_id} has NOT ended after {took}: pid {pids}; K tries again"
        return (
            f"{self.run_id} was asked to stop and has not ended yet: "
            "it is not this program's to end"
        )

    def _carry_out(self) -> None:
        try:
            self._report = self._handle.stop(self._mode)
        except OSError as error:
            self._error = clean(str(error))
        self._when_ended(self)
