"""Runs on Modal, and rehearsals of them on this machine.

A handle works from the folder and what follows the run writes there; it asks a `Cloud` for
everything else, and nothing here imports modal. Whether somebody follows the run can be seen by a
lock: when nobody does, whoever shows it sees to it that somebody does.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from composer_engine.cloud_spec import app_name
from composer_engine.complaints import Complaints
from composer_engine.config import RunConfig
from composer_engine.protocol import Event, RunFailed
from composer_tui.cloud.accounts import has_own_account
from composer_tui.cloud.audit import own_stop
from composer_tui.cloud.cloud import Cloud
from composer_tui.cloud.launch import was_tried
from composer_tui.cloud.ledger import CloudRef, connection_file, known_ref, write_ref
from composer_tui.cloud.notebook import NOTE_PREFIX, is_followed
from composer_tui.cloud.plan import check
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.rates_cache import kept_rates
from composer_tui.cloud.verdict import STOPPED, last_word, stopped_word
from composer_tui.cloud.whose import account_words
from composer_tui.pricing.rates import dearest_usd_per_hour, snapshot_rates
from composer_tui.rehearsal import process
from composer_tui.runners.base import Ending, StopReport
from composer_tui.runners.local import LaunchFailed
from composer_tui.runners.preflight import check_inputs
from composer_tui.runners.processes import is_alive, process_ref
from composer_tui.runs.folder import DamagedFolder, ProcessRef, RunFolder
from composer_tui.runs.journal import append, read_end
from composer_tui.runs.log_end import read_log_end
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore

CloudFor = Callable[[str], Cloud]
"""The account of a connection: "" is the user's own."""

IDLE_EXIT_SECONDS = 300.0  # a rehearsal that nobody asks for anything ends
LAUNCH_SECONDS = 60.0  # from its folder to where Modal is asked, a rehearsal's start included
LAST_WORD_SECONDS = 30.0  # from no container left to the last word
_AGAIN_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_SECONDS_PER_MINUTE = 60.0


class CloudRunner:
    """Launches runs on Modal, or in a rehearsal each. ``chaos`` is what is to go wrong there."""

    def __init__(
        self,
        store: RunStore,
        target: Literal["modal", "rehearsal"],
        cloud_for: CloudFor,
        *,
        chaos: str = "",
    ) -> None:
        self.store = store
        self.target = target
        self._cloud_for, self._chaos = cloud_for, chaos

    def start(self, config: RunConfig) -> "CloudRun":
        """Launches a run; its folder names its app before Modal is asked for anything.

        Raises `ConfigError`, `LaunchFailed`, or OSError (no folder).
        """
        if self.target == "modal" and not has_own_account(os.environ):
            raise LaunchFailed(
                "this machine has no Modal token: modal token new, "
                "or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
            )
        now = time.time()
        rates = kept_rates(now).rates if self.target == "modal" else snapshot_rates()
        check(config, rates)
        check_inputs(config, self.target)
        folder = self.store.create(config, self.target, now, process_ref(os.getpid()))
        rehearsed = self.target == "rehearsal"
        connection = connection_file(folder.run_id) if rehearsed else None
        ref = CloudRef(
            app_name=app_name(folder.run_id),
            environment=config.modal.environment,
            connection=str(connection or ""),
            usd_per_hour=str(dearest_usd_per_hour(rates, config.modal) or ""),
            rates_source=rates.source,
            rates_as_of=rates.as_of,
            cap_usd=f"{config.modal.cap_usd:g}",
            lease_until=now + config.modal.lease_minutes * _SECONDS_PER_MINUTE,
            account="" if rehearsed else account_words(),
        )
        write_ref(folder, ref)
        try:
            if connection is not None:
                start_rehearsal(folder, connection, self._chaos)
            self._cloud_for(ref.connection).tend(folder, launch=True)
        except (CloudProblem, process.RehearsalFailed) as error:
            if not was_tried(folder):  # else Modal may have been asked: its follower looks
                _write_word(folder, RunFailed(kind="runner", message=str(error)))
                write_ref(folder, msgspec.structs.replace(ref, ended=True))
            raise LaunchFailed(str(error)) from None
        return self.attach(folder)

    def attach(self, folder: RunFolder) -> "CloudRun":
        """A handle of any run on Modal or of any rehearsal."""
        return CloudRun(folder, self._cloud_for)


class CloudRun:
    """One run on Modal. Handles of one run, in any number of programs, agree.

    Without ``cloud_for`` it only looks: it neither follows the run nor can it stop it.
    """

    def __init__(self, folder: RunFolder, cloud_for: CloudFor | None = None) -> None:
        self.folder = folder
        self._cloud_for = cloud_for
        self._ref: CloudRef | None = None
        self._stamp = -1
        self._settled = False
        self._asked_at = -_AGAIN_SECONDS
        self._asking: threading.Thread | None = None
        self._complaints = Complaints()

    @property
    def ref(self) -> CloudRef | None:
        """What is known of its app; None when that cannot be read."""
        try:
            stamp = self.folder.cloud_path.stat().st_mtime_ns
        except OSError:
            stamp = -1  # what the rest of the folder says may change at any time
        if stamp == -1 or stamp != self._stamp:
            try:
                self._ref, self._stamp = known_ref(self.folder), stamp
            except DamagedFolder:
                self._ref, self._stamp = None, -1
        return self._ref

    @property
    def is_launched(self) -> bool:
        """Its call has been spawned: the run goes on whoever leaves."""
        ref = self.ref
        return ref is not None and ref.launched_at > 0

    def alive(self) -> bool:
        """Some of it may still run, or be about to."""
        ref = self.ref
        if ref is not None:
            return not ref.ended
        return self.folder.cloud_path.exists() or self.is_being_launched()

    def settle(self) -> bool:
        """True when it is over, verified, and its last word is written. Returns at once.

        Sees to it that somebody follows a run that is not over.
        """
        if self._settled:
            return True
        if self.alive():
            self._see_to_it()
            return False
        try:
            if self.lacks_word():
                self._see_to_it()
                return False
            if not read_end(self.folder.events_path).ended:
                message = "the launch was interrupted before Modal was asked for anything"
                return _write_word(self.folder, RunFailed(kind="runner", message=message))
        except OSError:
            return True
        self._settled = True
        return True

    def lacks_word(self) -> bool:
        """Its app was seen gone, and its last word is still to be had. Raises OSError."""
        ref = self.ref
        if ref is None or not ref.ended or not (ref.app_id or ref.launched_at):
            return False
        return not read_end(self.folder.events_path).ended

    def stop(self, mode: StopMode, grace_seconds: float | None = None) -> StopReport:
        """Ends its app, and returns when no container is left, or says which are. Blocks.

        Raises OSError: Modal cannot be asked, or the folder cannot be written.
        """
        begun = time.monotonic()
        if not self.alive():
            self.settle()
            return StopReport(ended=True, how="was already over", seconds=0.0)
        if self._cloud_for is None:
            return StopReport(ended=False, how="still there", seconds=0.0)
        ref = self._await_app()
        try:
            zero = ref is None or _is_without_plane(ref)
            if ref is not None and not zero:
                zero = self._stop_app(ref, mode, grace_seconds)
        except CloudProblem as error:
            raise ConnectionError(str(error)) from None
        ended = zero and self._await_end()
        if ended:  # else whoever launches it is still to see it
            with contextlib.suppress(OSError):
                self.folder.stop_path.unlink(missing_ok=True)
        how = self._ending(mode) if ended else "still there"
        return StopReport(ended=ended, how=how, seconds=time.monotonic() - begun)

    def _stop_app(self, ref: CloudRef, mode: StopMode, grace_seconds: float | None) -> bool:
        cloud = self._account(ref)
        grace = self._grace_seconds() if grace_seconds is None else grace_seconds
        return cloud.stop([ref.app_id], mode, grace, lambda _: None).zero

    def _await_app(self) -> CloudRef | None:
        """Its app's id; None when the launch gave up because it was told to.

        A launch that goes on is told first: an app that is stopped beneath it might come again.
        """
        ref = self.ref
        if ref is not None and ref.rebuilt:
            ref = self._await_found()
        if ref is None and self.folder.cloud_path.exists():
            raise OSError(
                f"{self.folder.cloud_path} cannot be read; "
                "`composer-tui apps` shows its app, to stop by id"
            )
        if ref is not None and (ref.launched_at or ref.call_id):
            return ref
        self.folder.stop_path.touch()
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while time.monotonic() < deadline:
            if self.settle():
                return None
            ref = self.ref
            if ref is not None and ref.call_id:
                return ref
            time.sleep(_LOOK_SECONDS)
        return ref if ref is not None and ref.app_id else None

    def _await_found(self) -> CloudRef | None:
        """The follower finds an app that only its name is known of; None when it did not."""
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while time.monotonic() < deadline:
            self.settle()
            ref = self.ref
            if ref is not None and not ref.rebuilt:
                return ref
            time.sleep(_LOOK_SECONDS)
        return None

    def _await_end(self) -> bool:
        """The follower sees that the app has gone, and says the last word."""
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while time.monotonic() < deadline:
            if self.settle():
                return True
            time.sleep(_LOOK_SECONDS)
        return not self.alive()

    def _see_to_it(self) -> None:
        """Somebody follows it: in a thread, since a helper may have to be started."""
        now = time.monotonic()
        if self._cloud_for is None or now - self._asked_at < _AGAIN_SECONDS:
            return
        self._asked_at = now
        if self._is_anothers_to_launch():
            return  # whoever comes first to a run that is not launched takes its launch for failed
        if is_followed(self.folder) or (self._asking is not None and self._asking.is_alive()):
            return
        if self._is_its_launchers():
            return
        self._asking = threading.Thread(
            target=self._ask_for_follower, name=f"follow {self.folder.run_id}", daemon=True
        )
        self._asking.start()

    def _ask_for_follower(self) -> None:
        ref = self.ref
        if ref is None:
            return
        with contextlib.suppress(OSError):  # a folder that cannot be written cannot be followed
            try:
                self._account(ref).tend(self.folder)
            except (CloudProblem, process.RehearsalFailed) as error:
                if ref.ended and ref.connection:  # nobody else will ever have more of it
                    self._write_what_is_known()
                elif line := self._complaints.line("", f"it cannot be followed now: {error}"):
                    with self.folder.log_path.open("a", encoding="utf-8") as log:
                        log.write(f"{NOTE_PREFIX}{line}\n")

    def _write_what_is_known(self) -> None:
        """Its app was stopped, and nothing of it can be asked for any more."""
        end = read_end(self.folder.events_path)
        log = read_log_end(self.folder.log_path)
        ref, steps = self.ref, end.last.step if end.last else 0
        stop = own_stop(ref.app_id) if ref is not None else None
        word = last_word(STOPPED, log, steps)
        _write_word(
            self.folder,
            word if stop is None else stopped_word(stop, steps, is_started=end.last is not None),
        )

    def _account(self, ref: CloudRef) -> Cloud:
        """Raises `CloudProblem`, `RehearsalFailed`, OSError."""
        if self._cloud_for is None:
            raise RuntimeError("this handle only looks")
        if ref.connection:
            start_rehearsal(self.folder, Path(ref.connection))
        return self._cloud_for(ref.connection)

    def _is_its_launchers(self) -> bool:
        """It was made a moment ago, and is about to be launched: who made it will follow it."""
        if self.is_launched or was_tried(self.folder) or not self.is_being_launched():
            return False
        return time.time() - self.folder.read_record().created_at < LAUNCH_SECONDS

    def is_being_launched(self) -> bool:
        """Whoever makes its folder and launches it is still there."""
        launcher = self._launcher()
        return launcher is not None and is_alive(launcher)

    def _is_anothers_to_launch(self) -> bool:
        """Another program is about to launch it, and is still there."""
        ref, launcher = self.ref, self._launcher()
        begun = ref is not None and bool(ref.app_id or ref.launched_at)
        if begun or launcher is None or launcher.pid == os.getpid():
            return False
        return is_alive(launcher)

    def _launcher(self) -> ProcessRef | None:
        try:
            return self.folder.read_record().launcher
        except DamagedFolder:
            return None

    def _grace_seconds(self) -> float:
        try:
            return self.folder.read_record().config.modal.stop_grace_seconds
        except DamagedFolder:
            return RunConfig().modal.stop_grace_seconds

    def _ending(self, mode: StopMode) -> Ending:
        end = read_end(self.folder.events_path)
        if end.finish is None:
            return "killed" if mode == "now" else "terminated"
        saved = end.checkpoint is not None and end.checkpoint.step == end.finish.steps
        if saved:
            return "saved and exited"
        return "killed" if mode == "now" else "exited"


def start_rehearsal(folder: RunFolder, connection: Path, chaos: str = "") -> None:
    """The run's control plane serves, again if it had ended. Raises `RehearsalFailed`, OSError."""
    root = folder.path / "rehearsal"
    process.start(root, connection, chaos=chaos, idle_exit_seconds=IDLE_EXIT_SECONDS)


def _is_without_plane(ref: CloudRef) -> bool:
    """It is a rehearsal whose control plane has ended, and all that ran in it with it."""
    return bool(ref.connection) and process.find(Path(ref.connection)) is None


def _write_word(folder: RunFolder, word: Event) -> bool:
    """False when another program is at it."""
    with folder.lock() as ours:
        if not ours or is_followed(folder):
            return False
        end = read_end(folder.events_path)
        if not end.ended:
            stamped = msgspec.structs.replace(word, seq=end.next_seq, time=time.time())
            append(folder.events_path, [stamped])
    return True
