"""What the rest of the program asks of Modal. Two things answer: this process (`direct`), for a
command, and a helper process (`link` and `bridge`), for the app, so that no call can hang a key.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from composer_tui.cloud.wire import Apps, StopProgress, StopResult
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.stop_mode import StopMode

OnProgress = Callable[[StopProgress], object]


class Cloud(Protocol):
    """One account of Modal (or one rehearsal). Raises `problems.CloudProblem`, and nothing else."""

    def tend(self, folder: RunFolder, *, launch: bool = False) -> None:
        """Sees a run through: launches it if asked, then follows it into its folder to its end.

        Returns at once; what goes wrong is told by the run's own events. Asking again is harmless.
        """
        ...

    def apps(self) -> Apps:
        """All live apps, as of now. Blocks for at most some seconds."""
        ...

    def stop(
        self,
        app_ids: Sequence[str],
        mode: StopMode,
        grace_seconds: float,
        on_progress: OnProgress,
    ) -> StopResult:
        """Ends apps and returns when none of their containers is left, or says which. Blocks.

        ``on_progress`` is called from another thread.
        """
        ...

    def extend_lease(self, app_id: str, minutes: float) -> float:
        """The new end of a run's lease, unix seconds."""
        ...

    def close(self) -> None:
        """Lets go. Runs go on."""
        ...
