"""Follow a run that was just started, and let Ctrl-C end it."""

import signal
import sys
import threading
import time
from types import FrameType

from composer_tui.headless.watch import tell_to_end, watch_once
from composer_tui.runners.base import RunHandle
from composer_tui.runners.cloud import CloudRun
from composer_tui.runs.stop_mode import StopMode

_LOOK_SECONDS = 0.1
ADVICE_SECONDS = 10.0  # so long a stop may take before a person is told what else can be done
OVER_SECONDS = 3.0  # so long the stop of a run that is over is waited for


def launch(handle: RunHandle, *, as_json: bool, detach: bool, since_seq: int = 0) -> int:
    """The exit status of a run followed to its end, or 0 at once for a detached one.

    Told from ``since_seq`` on: where an attempt of a resumed run begins.
    """
    run_id = handle.folder.run_id
    if detach:
        return _leave(handle)
    stopper = _Stopper(handle)
    previous = signal.signal(signal.SIGINT, stopper)
    try:
        return tell_to_end(handle, as_json=as_json, heading=f"run {run_id}", since_seq=since_seq)
    except BrokenPipeError:
        _warn(f"nobody reads our output; the run goes on: composer-tui watch {run_id}")
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
        stopper.wait()


def _leave(handle: RunHandle) -> int:
    """0 as soon as the run goes on without us; the status of one that ended before it had begun."""
    while isinstance(handle, CloudRun) and not handle.is_launched:
        if handle.settle():
            return watch_once(handle, as_json=False) or 1
        time.sleep(_LOOK_SECONDS)
    print(handle.folder.run_id)
    return 0


class _Stopper:
    """Ctrl-C: the first saves and stops, the second stops at once, the third waits for neither.

    Stopping waits elsewhere.
    """

    def __init__(self, handle: RunHandle) -> None:
        self._handle = handle
        self._threads: list[threading.Thread] = []
        self._gave_up = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if len(self._threads) > 1:
            self._gave_up = True
            _warn(_unverified(self._handle))
            raise KeyboardInterrupt
        mode: StopMode = "now" if self._threads else "graceful"
        if mode == "graceful":
            _warn("saving a checkpoint, then stopping; Ctrl-C again stops at once")
        else:
            _warn("stopping at once; Ctrl-C again does not wait for it")
            advice = threading.Timer(ADVICE_SECONDS, self._advise)
            advice.daemon = True
            advice.start()
        thread = threading.Thread(target=self._stop, args=(mode,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop(self, mode: StopMode) -> None:
        try:
            self._handle.stop(mode)
        except OSError as error:
            _warn(f"NOT stopped: {error.strerror or error}")

    def _advise(self) -> None:
        """It takes long: what a person can do who does not want to wait."""
        if any(thread.is_alive() for thread in self._threads) and not self._gave_up:
            run_id = self._handle.folder.run_id
            _warn(f"not stopped yet; a third Ctrl-C leaves it: composer-tui stop {run_id}")

    def wait(self) -> None:
        """Until the stops have ended; of a run that is over, verified, none is waited for long."""
        if self._gave_up:
            return
        over_at: float | None = None
        try:
            while any(thread.is_alive() for thread in self._threads):
                time.sleep(_LOOK_SECONDS)
                now = time.monotonic()
                if over_at is None and self._handle.settle():
                    over_at = now
                if over_at is not None and now - over_at > OVER_SECONDS:
                    return
        except KeyboardInterrupt:
            _warn(_unverified(self._handle))
            raise


def _unverified(handle: RunHandle) -> str:
    """What somebody who does not wait for a stop is not told by it."""
    run_id = handle.folder.run_id
    ref = handle.ref if isinstance(handle, CloudRun) else None
    app = f" (app {ref.app_id})" if ref is not None and ref.app_id else ""
    what = f"NOT verified: that {run_id}{app} has ended"
    return f"{what}; it is ended, and looked at, by: composer-tui stop {run_id} --now --yes"


def _warn(text: str) -> None:
    print(f"composer-tui: {text}", file=sys.stderr, flush=True)
