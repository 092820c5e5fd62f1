"""What every runner can do, wherever its runs live."""

from typing import Literal, NamedTuple, Protocol

from composer_engine.config import RunConfig
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.stop_mode import StopMode

Ending = Literal[
    "saved and exited",
    "exited",
    "terminated",
    "killed",
    "was already over",
    "replay stopped",
    "still there",
]


class StopReport(NamedTuple):
    """How a stop went. ``ended`` is true only when nothing of the run is left, as verified.

    ``how`` says what ended it; ``seconds`` is how long that took; ``left`` are the ids of the
    processes that are still there.
    """

    ended: bool
    how: Ending
    seconds: float
    left: tuple[int, ...] = ()


class RunHandle(Protocol):
    """One run, as its runner can reach it. Its folder tells everything else."""

    @property
    def folder(self) -> RunFolder: ...

    def alive(self) -> bool:
        """Something of it may still write events."""
        ...

    def settle(self) -> bool:
        """Sees to it that a run that is over has its last word; True when it is and has.

        Cheap: viewers call it again and again.
        """
        ...

    def stop(self, mode: StopMode, grace_seconds: float | None = None) -> StopReport:
        """Ends the run, and returns when it has ended or says that it has not. Blocks.

        "graceful" lets it save for ``grace_seconds`` (``None``: as its configuration says).
        """
        ...


class Runner(Protocol):
    """Where runs are launched."""

    def start(self, config: RunConfig) -> RunHandle:
        """Launches a run; it has its folder, and is listed, before anything else happens."""
        ...

    def attach(self, folder: RunFolder) -> RunHandle:
        """A handle of a run that was launched before, by whomever."""
        ...
