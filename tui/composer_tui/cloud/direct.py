"""An account of Modal, asked from this process: for commands, and inside the helper process."""

import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from composer_tui.cloud.cloud import OnProgress
from composer_tui.cloud.wire import Apps, StopResult
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore

if TYPE_CHECKING:
    from pathlib import Path

# What needs modal is imported by what first needs it: a command that does not, does not wait.


class DirectCloud:
    """The account that this process's environment names; one process has one account."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._tending: dict[Path, threading.Thread] = {}
        self._closing = threading.Event()

    def tend(self, folder: RunFolder, *, launch: bool = False) -> None:
        """In a thread of its own, which ends with the run, or with `close`."""
        from composer_tui.cloud.tend import tend

        thread = self._tending.get(folder.path)
        if thread is not None and thread.is_alive():
            return

        def see_through() -> None:
            try:
                tend(folder, launch=launch, should_stop=self._closing.is_set)
            except OSError as error:  # it goes on all the same, and whoever looks next follows it
                where = f"{error.filename}: " if error.filename else ""
                words = f"{folder.run_id} cannot be followed: {where}{error.strerror or error}"
                print(f"composer-tui: {words}", file=sys.stderr)  # noqa: T201  # there is no screen

        thread = threading.Thread(
            target=see_through,
            name=f"tend {folder.run_id}",
            daemon=True,
        )
        self._tending[folder.path] = thread
        thread.start()

    def apps(self) -> Apps:
        """All live apps, as of now."""
        from composer_tui.cloud.apps import list_apps

        return list_apps(self._store, time.time())

    def stop(
        self,
        app_ids: Sequence[str],
        mode: StopMode,
        grace_seconds: float,
        on_progress: OnProgress,
    ) -> StopResult:
        """Ends apps, verified."""
        from composer_tui.cloud.kill import stop_apps

        return stop_apps(app_ids, mode, grace_seconds, on_progress)

    def extend_lease(self, app_id: str, minutes: float) -> float:
        """The new end of a run's lease, unix seconds."""
        from composer_tui.cloud.lease import extend

        return extend(self._store, app_id, minutes, time.time())

    def close(self) -> None:
        """Stops following; runs go on. Waits a moment for what is being written."""
        self._closing.set()
        for thread in self._tending.values():
            thread.join(_CLOSE_SECONDS)


_CLOSE_SECONDS = 5.0
