"""An account of Modal, asked from this process: for commands, and inside the helper process."""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from composer_engine.complaints import Complaints
from composer_tui.cloud.cloud import OnProgress
from composer_tui.cloud.ledger import mark_gone
from composer_tui.cloud.notebook import NOTE_PREFIX
from composer_tui.cloud.problems import redact
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
        self._complaints = Complaints()

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
                self._complain(folder, f"{where}{error.strerror or error}")
            except Exception as error:  # noqa: BLE001  # the border: nobody waits for this thread
                what = redact(f"{type(error).__name__}: {error}")
                self._complain(folder, what, redact(traceback.format_exc()))

        thread = threading.Thread(
            target=see_through,
            name=f"tend {folder.run_id}",
            daemon=True,
        )
        self._tending[folder.path] = thread
        thread.start()

    def _complain(self, folder: RunFolder, why: str, evidence: str = "") -> None:
        """A run cannot be followed: its log says so, where all look who wait for it."""
        words = f"it cannot be followed: {' '.join(why.split())}"
        if not (line := self._complaints.line(folder.path, words)):
            return
        try:
            with folder.log_path.open("a", encoding="utf-8", errors="replace") as log:
                log.write(f"{evidence}{NOTE_PREFIX}{line}\n")
        except OSError:
            said = f"composer-tui: {folder.run_id}: {line}"
            print(said, file=sys.stderr)  # noqa: T201  # there is no other place

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

        result = stop_apps(app_ids, mode, grace_seconds, on_progress)
        mark_all_gone(self._store, [result])
        return result

    def extend_lease(self, app_id: str, minutes: float) -> float:
        """The new end of a run's lease, unix seconds."""
        from composer_tui.cloud.lease import extend

        return extend(self._store, app_id, minutes, time.time())

    def close(self) -> None:
        """Stops following; runs go on. Waits a moment for what is being written."""
        self._closing.set()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in self._tending.values():
            thread.join(max(0.0, deadline - time.monotonic()))


def mark_all_gone(store: RunStore, results: Iterable[StopResult]) -> None:
    """Runs whose apps were seen gone are over, whatever else is still to be had of them."""
    gone = {app.app_id for result in results for app in result.apps if app.stage == "gone"}
    with contextlib.suppress(OSError):  # a full disk: whoever follows the run sees its end, too
        mark_gone(store, gone)


_CLOSE_SECONDS = 5.0
