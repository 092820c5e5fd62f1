"""The interface's end of its helper process: `Cloud`, with nothing of modal in this process.

A helper that dies is started again by whatever is asked next, and told anew which runs to see
through. One that hangs is replaced. A stop does not depend on it: when the helper dies or falls
silent in the middle of one, the modal command line does it from a fresh process.
"""

import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from composer_tui.cloud.cloud import OnProgress
from composer_tui.cloud.direct import mark_all_gone
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.speech import (
    Answer,
    Ask,
    AskApps,
    AskLease,
    AskStop,
    AskTend,
    Say,
    Told,
    line,
    read_say,
)
from composer_tui.cloud.wire import Apps, Problem, StopResult
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore

APPS_SECONDS = 30.0
LEASE_SECONDS = 30.0
TEND_SECONDS = 20.0  # it only begins; the helper imports modal first
STOP_SILENCE_SECONDS = 15.0  # a stop that is under way says something more often than that
_LOG_BYTES = 1 << 20
_OURS_ALONE = 0o600

Environ = Callable[[], Mapping[str, str]]


class _Helper:
    """One helper process, and who waits for its answers."""

    def __init__(self, runs_dir: Path, environ: Mapping[str, str], log: Path) -> None:
        with _opened(log) as stderr:
            # A session of its own: ctrl+c in the terminal is not meant for it.
            self._process = subprocess.Popen(  # noqa: S603  # argv is ours
                [sys.executable, "-m", "composer_tui.cloud.bridge", "--runs-dir", str(runs_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **environ},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.environ = dict(environ)
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Say | None]] = {}
        self._stops: set[int] = set()
        self._gone = False
        threading.Thread(target=self._read, name="cloud answers", daemon=True).start()

    def ask(self, ask: Ask) -> "queue.SimpleQueue[Say | None]":
        """What comes for it, in order; None when the helper has died."""
        says: queue.SimpleQueue[Say | None] = queue.SimpleQueue()
        with self._lock:
            if self._gone or self._process.stdin is None:
                says.put(None)
                return says
            self._waiting[ask.number] = says
            if isinstance(ask, AskStop):
                self._stops.add(ask.number)
            try:
                self._process.stdin.write(line(ask))
                self._process.stdin.flush()
            except OSError:
                self._waiting.pop(ask.number, None)
                says.put(None)
        return says

    def is_stopping(self) -> bool:
        """It is at it to end apps, and whoever asked for that sees to it that it does not hang."""
        with self._lock:
            return bool(self._stops & self._waiting.keys())

    def is_alive(self) -> bool:
        return not self._gone and self._process.poll() is None

    def kill(self) -> None:
        """For one that hangs."""
        self._gone = True  # at once: the kernel may take a moment
        self._process.kill()

    def let_go(self) -> None:
        """It carries through what it is stopping, and ends."""
        with self._lock:
            if self._process.stdin is not None:
                try:
                    self._process.stdin.close()
                except OSError:
                    return

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for text in self._process.stdout:
            try:
                say = read_say(text)
            except msgspec.DecodeError:
                continue
            with self._lock:
                says = self._waiting.get(say.number)
                if isinstance(say, Answer):
                    self._waiting.pop(say.number, None)
            if says is not None:
                says.put(say)
        self._process.wait()
        with self._lock:
            self._gone = True
            waiting, self._waiting = list(self._waiting.values()), {}
        for says in waiting:
            says.put(None)


def _opened(log: Path) -> BinaryIO:
    """For a helper's last words. Where they cannot be kept, apps can be stopped all the same."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        is_short = log.exists() and log.stat().st_size < _LOG_BYTES
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if is_short else os.O_TRUNC)
        return os.fdopen(os.open(log, flags, _OURS_ALONE), "ab")
    except OSError:
        return Path(os.devnull).open("wb")


class Link:
    """One account of Modal (or one rehearsal), asked through a helper process of its own.

    ``environ`` is asked for at every start of the helper: what it adds to this process's
    environment names the account. It may raise `CloudProblem`.
    """

    def __init__(self, runs_dir: Path, environ: Environ, log: Path) -> None:
        self._runs_dir, self._environ, self._log = runs_dir, environ, log
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._helper: _Helper | None = None
        self._tended: set[Path] = set()
        self._closed = False

    @property
    def helper_pid(self) -> int | None:
        """The helper's process id, while it runs."""
        helper = self._helper
        return helper.pid if helper is not None and helper.is_alive() else None

    @property
    def is_stopping(self) -> bool:
        """The helper is at it to end apps."""
        return self._helper is not None and self._helper.is_stopping()

    def tend(self, folder: RunFolder, *, launch: bool = False) -> None:
        """Sees a run through to its end, over as many helpers as that takes."""
        self._ask(
            lambda number: AskTend(number=number, folder=str(folder.path), launch=launch),
            TEND_SECONDS,
        )
        self._tended.add(folder.path)  # not before: a new helper is told of these first

    def apps(self) -> Apps:
        """All live apps, as of now."""
        answer = self._ask(lambda number: AskApps(number=number), APPS_SECONDS)
        return answer.apps or Apps()

    def extend_lease(self, app_id: str, minutes: float) -> float:
        """The new end of a run's lease, unix seconds."""
        answer = self._ask(
            lambda number: AskLease(number=number, app_id=app_id, minutes=minutes), LEASE_SECONDS
        )
        return answer.lease_until or 0.0

    def stop(
        self,
        app_ids: Sequence[str],
        mode: StopMode,
        grace_seconds: float,
        on_progress: OnProgress,
    ) -> StopResult:
        """Ends apps, verified; by the second path when the helper cannot."""
        try:
            answer = self._ask(
                lambda number: AskStop(
                    number=number, app_ids=tuple(app_ids), mode=mode, grace_seconds=grace_seconds
                ),
                STOP_SILENCE_SECONDS,
                on_progress,
            )
        except CloudProblem:
            return self._stop_without_helper(app_ids, on_progress)
        return answer.result or StopResult(apps=(), seconds=0.0)

    def close(self) -> None:
        """Lets the helper go. Runs go on, and so does what it is stopping."""
        with self._lock:
            self._closed = True
            if self._helper is not None:
                self._helper.let_go()

    def _stop_without_helper(self, app_ids: Sequence[str], on_progress: OnProgress) -> StopResult:
        from composer_tui.cloud.kill import emergency_stop

        result = emergency_stop(app_ids, self._environ(), on_progress)
        mark_all_gone(RunStore(self._runs_dir), [result])
        return result

    def _ask(
        self,
        make: Callable[[int], Ask],
        silence_seconds: float,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """The answer. Raises `CloudProblem`: the answer's own, or that no word came in time."""
        ask = make(next(self._numbers))
        helper = self._running_helper()
        says = helper.ask(ask)
        while True:
            try:
                say = says.get(timeout=silence_seconds)
            except queue.Empty:
                if isinstance(ask, AskStop) or not helper.is_stopping():
                    helper.kill()  # whatever else it was asked will be asked of its successor
                raise CloudProblem(
                    Problem(
                        kind="timeout",
                        message=f"no answer from Modal for {silence_seconds:g} s",
                        hint="it is asked again, by another helper process if need be",
                    )
                ) from None
            if say is None:
                raise CloudProblem(
                    Problem(
                        kind="server",
                        message="the helper process that talks to Modal ended unexpectedly",
                        hint=f"it is started again; its last words are in {self._log}",
                    )
                )
            if isinstance(say, Told):
                if on_progress is not None:
                    on_progress(say.progress)
                continue
            if say.problem is not None:
                raise CloudProblem(say.problem)
            return say

    def _running_helper(self) -> _Helper:
        with self._lock:
            if self._closed:
                raise CloudProblem(Problem(kind="refused", message="this program is closing"))
            environ = self._environ()
            if self._helper is not None and self._helper.is_alive():
                if self._helper.environ == dict(environ) or self._helper.is_stopping():
                    return self._helper
                self._helper.let_go()  # its rehearsal was started again, and is another account
            restarted = self._helper is not None
            self._helper = self._new_helper(environ)
            if restarted:
                for path in self._tended:
                    number = next(self._numbers)
                    self._helper.ask(AskTend(number=number, folder=str(path), launch=False))
            return self._helper

    def _new_helper(self, environ: Mapping[str, str]) -> _Helper:
        try:
            return _Helper(self._runs_dir, environ, self._log)
        except OSError as error:
            what = f"the helper process cannot be started: {error.strerror or error}"
            raise CloudProblem(Problem(kind="server", message=what)) from None
