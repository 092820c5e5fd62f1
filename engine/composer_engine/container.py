"""One attempt of a run in a container: the engine as a child, watched, heard and saved.

The container writes what a fresh machine needs in order to attach, starts the engine, passes its
events on, commits the volume, and ends the run when money, time or a person says so. It knows no
modal: `composer_engine.modal_app` hands it the volume's commit and a board to talk through.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import msgspec

from composer_engine.child import EngineChild, engine_command, leave_line
from composer_engine.cloud_spec import CloudSpec, ControlBeat, app_name
from composer_engine.commits import Commit, Committer
from composer_engine.config import to_toml
from composer_engine.contract import (
    CONFIG_FILE,
    EVENTS_FILE,
    NOTICE_FILE,
    OPENING_VARIABLE,
    PREEMPTED,
    SPEC_FILE,
)
from composer_engine.control import Board, Control
from composer_engine.emitter import Emitter, end_unspoken, read_earlier
from composer_engine.failures import complain
from composer_engine.given import GIVEN_VARIABLE, given_paths_text
from composer_engine.inputs import container_config, given_paths
from composer_engine.outcome import attempt_words, is_worth_retrying, last_word
from composer_engine.protocol import (
    CheckpointSaved,
    EndedBy,
    Event,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    Unrecognized,
    decode,
)
from composer_engine.spending import Lease, Spending
from composer_engine.watchdog import (
    Facts,
    Verdict,
    lease_is_over,
    left_seconds,
    saving_seconds,
    spent_usd,
    timeout_is_cap,
    timeout_seconds,
    verdict,
    warning,
)
from composer_engine.world import gpu_count

_COMMIT_SECONDS = 15.0
_ASK_SECONDS = 2.0
_LOOK_SECONDS = 5.0  # the most that the board and the first commit may keep the engine waiting
_TICK_SECONDS = 0.25
_INTERRUPT_GRACE_SECONDS = 20.0  # Modal kills 30 s after it interrupts
_TERMINATE_SECONDS = 3.0
_KILL_SECONDS = 5.0
_LAST_COMMIT_SECONDS = 60.0
_LEAST_COMMIT_SECONDS = 5.0  # also where all is spent: without the commit the end is not known
_LAST_BEAT_SECONDS = 5.0
_HEAR_SECONDS = 30.0  # for a board that cannot be read, where the lease is over unless it says not
_ENDING_SECONDS = 30.0
"""What may follow the time to save: to insist, the engine's pipes, the beat, the last commit."""

Command = Callable[[Path, Path, str, int], list[str]]
"""Configuration, run folder, run id and number of processes, as a command line."""


class Attempt(NamedTuple):
    """How one attempt ended. ``worth_retrying``: a new one may end better."""

    outcome: str  # finished, stopped, or the kind of its failure
    reason: str
    step: int
    spent_usd: str
    worth_retrying: bool
    ended_by: EndedBy = ""


class Crashed(RuntimeError):  # noqa: N818  # says what the engine did
    """An attempt that is worth another one."""


def train_attempt(
    spec: CloudSpec,
    runs: Path,
    commit: Commit,
    board: Board,
    command: Command = engine_command,
    container_id: str = "",
) -> dict[str, str]:
    """Run one attempt in ``runs/<run id>``; the value says how it ended.

    Raises `Crashed` for an engine that is worth starting again, and KeyboardInterrupt when the
    container is being taken away: Modal then starts the same call in another one. For the main
    thread.
    """
    interrupts = Interrupts()
    with interrupts.listening():
        attempt = Container(
            spec, runs, commit, board, interrupts, command, container_id=container_id
        ).run()
    if attempt.outcome == "preempted":
        raise KeyboardInterrupt(PREEMPTED)
    if attempt.worth_retrying:
        raise Crashed(attempt.reason)
    return {
        "outcome": attempt.outcome,
        "reason": attempt.reason,
        "step": str(attempt.step),
        "spent_usd": attempt.spent_usd,
        "ended_by": attempt.ended_by,
    }


class Interrupts:
    """Whether Modal has interrupted this container; a signal only sets that."""

    def __init__(self) -> None:
        self.seen = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; gives them back."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.seen = True


@dataclass
class _Heard:
    """What the engine said so far that its container has to know; written by one thread."""

    device: str = ""
    attempt: int = 1
    step: int = 0
    total_steps: int = 0
    checkpoint_step: int = 0
    last_step_at: float = 0.0
    last: RunFinished | RunFailed | None = None


class Container:
    """One attempt at work."""

    def __init__(
        self,
        spec: CloudSpec,
        runs: Path,
        commit: Commit,
        board: Board,
        interrupts: Interrupts,
        command: Command = engine_command,
        clock: Callable[[], float] | None = None,
        container_id: str = "",
    ) -> None:
        if spec.run_id in ("", "..") or Path(spec.run_id).name != spec.run_id:
            raise ValueError(f"{spec.run_id!r} does not name a folder")
        self._spec, self._interrupts = spec, interrupts
        self._clock = clock = clock or steady_clock()
        self._command = command
        self._folder = runs / spec.run_id
        self._folder.mkdir(parents=True, exist_ok=True)
        self._started_at = clock()
        self._spending = Spending(self._folder, self._started_at, spec.usd_per_hour, container_id)
        self._lease = Lease(self._folder)
        self._over: Attempt | None = None
        self._heard = _Heard()
        self._state: str = "starting"
        self._first_seq = 0
        self._write_papers()
        self._committer = Committer(commit, _COMMIT_SECONDS)
        self._committer.request()
        name = app_name(spec.run_id)
        self._control = Control(board, name, self._beat, ask_seconds=_ASK_SECONDS)

    # ------------------------------------------------------------------ the attempt

    def run(self) -> Attempt:
        """From the papers in the folder to the last commit."""
        try:
            attempt = self._begin()
        finally:
            self._state = "ended"
            self._keep_lease()
            self._close_book()
            self._control.close(_LAST_BEAT_SECONDS)
            left = left_seconds(self._facts(), self._clock())
            seconds = min(_LAST_COMMIT_SECONDS, max(_LEAST_COMMIT_SECONDS, left))
            if not self._committer.close(seconds):
                complain("the volume lacks the end of the run")
        return attempt

    def _close_book(self) -> None:
        over = self._over
        self._spending.end(
            self._clock(),
            over.outcome if over else "",
            over.reason if over else "",
            worth_retrying=over.worth_retrying if over else None,
            taken_away=self._interrupts.seen,
        )

    def _begin(self) -> Attempt:
        """Only a run that is not over yet, and that may still spend, is worked on."""
        self._control.start(_LOOK_SECONDS)
        self._hear_of_lease()
        last = last_event(self._folder / EVENTS_FILE)
        if isinstance(last, RunFinished):
            # Modal starts a call again when its container died before it could answer.
            self._heard.last, self._heard.step = last, last.steps
            return self._attempt(last, 0, None)
        self._mourn(last)
        self._first_seq = read_earlier(self._folder / EVENTS_FILE).next_seq
        why = self._verdict()
        # Before anything is spent on training, another machine can find this run.
        self._committer.settle(_LOOK_SECONDS)
        return self._work() if why is None else self._refuse(why)

    def _work(self) -> Attempt:
        config, environ = self._folder / CONFIG_FILE, dict(os.environ)
        # The child finds this very package, wherever it is mounted.
        here = str(Path(__file__).parents[1])
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environ.get("PYTHONPATH"))))
        environ[GIVEN_VARIABLE] = given_paths_text(given_paths(self._spec.config))
        environ[OPENING_VARIABLE] = attempt_words(
            self._spending.earlier, self._spec.config.modal.retries
        )
        processes = process_count(self._spec.config.modal.gpu, count_devices())
        command = self._command(config, self._folder, self._spec.run_id, processes)
        child = EngineChild(command, self._folder, environ, self._hear)
        self._state = "running"
        ending: Verdict | None = None
        try:
            ending, status = self._watch(child)
        except BaseException as error:
            # The call was cancelled: Modal raises that in here, whatever we are doing.
            reason = f"the call was cancelled ({type(error).__name__})"
            ending = Verdict("killed", reason)
            self._finish(child, self._end(child, ending), ending)
            raise
        return self._finish(child, status, ending)

    def _finish(self, child: EngineChild, status: int, ending: Verdict | None) -> Attempt:
        """The last word, if the engine left none, and what there is to say of the attempt."""
        child.clear()
        last = self._heard.last
        if last is None:
            last = last_word(status, child.last_lines, ending)
            sys.stdout.flush()
            end_unspoken(1, self._folder, last, self._first_seq)
        return self._attempt(last, status, ending)

    def _watch(self, child: EngineChild) -> tuple[Verdict | None, int]:
        """Until it has ended, by itself or because it had to."""
        warned = False
        noted_at = self._clock()
        while True:
            status = child.wait(_TICK_SECONDS)
            if status is not None:
                return None, status
            now = self._clock()
            self._keep_lease()
            ending = self._verdict()
            if ending is not None:
                return ending, self._end(child, ending)
            if not warned and (text := warning(self._facts(), now)):
                warned = True
                complain(text)
                leave_line(self._folder / NOTICE_FILE, text)
            if now - noted_at >= _COMMIT_SECONDS:
                noted_at = now
                self._spending.note(now)
                self._committer.touch()

    def _end(self, child: EngineChild, ending: Verdict) -> int:
        """Save and end; then insist. The exit status."""
        self._state = "ending"
        complain(f"saving and ending: {ending.reason}")
        # A person's stop and a container that is taken away are no guard rail.
        child.ask(ending.reason, ending.kind if ending.kind in ("budget", "timeout") else "")
        if ending.kind == "preempted":
            self._spending.note(self._clock(), taken_away=True)
            self._committer.request()
        now = self._clock()
        deadline = now + saving_seconds(self._facts(), now)
        while self._clock() < deadline:
            if self._interrupts.seen:  # now or since: little time is left
                soon = self._clock() + _INTERRUPT_GRACE_SECONDS
                deadline = min(deadline, soon)
            status = child.wait(min(_TICK_SECONDS, max(0.0, deadline - self._clock())))
            if status is not None:
                return status
        for number, seconds in (
            (signal.SIGTERM, _TERMINATE_SECONDS),
            (signal.SIGKILL, _KILL_SECONDS),
        ):
            complain(f"it does not end: {number.name}")
            child.signal(number)
            status = child.wait(seconds)
            if status is not None:
                return status
        return -signal.SIGKILL

    # ------------------------------------------------------------------ facts

    def _verdict(self) -> Verdict | None:
        if self._interrupts.seen:
            return Verdict("preempted", PREEMPTED)
        return verdict(self._facts(), self._clock())

    def _hear_of_lease(self) -> None:
        """A lease that is over may have been extended while no container was there to be told."""
        deadline = self._clock() + _HEAR_SECONDS
        while lease_is_over(self._facts(), self._clock()) and not self._interrupts.seen:
            if self._control.hear(_TICK_SECONDS) or self._clock() >= deadline:
                break
        self._keep_lease()

    def _keep_lease(self) -> None:
        """An extended lease outlives this container, also where the next one cannot ask."""
        if self._lease.extend(self._control.ask.lease_until):
            self._committer.request()

    def _facts(self) -> Facts:
        modal, ask = self._spec.config.modal, self._control.ask
        return Facts(
            started_at=self._started_at,
            usd_per_hour=Decimal(self._spec.usd_per_hour),
            cap_usd=Decimal(str(modal.cap_usd)),
            earlier_usd=self._spending.earlier_usd,
            limit_seconds=timeout_seconds(self._spec),
            limit_is_cap=timeout_is_cap(self._spec),
            grace_seconds=modal.stop_grace_seconds,
            ending_seconds=_ENDING_SECONDS,
            startup_seconds=modal.startup_timeout_seconds,
            stall_seconds=modal.stall_minutes * 60,
            lease_until=max(self._spec.lease_until, self._lease.until, ask.lease_until),
            last_step_at=self._heard.last_step_at,
            asked=ask.stop,
        )

    def _hear(self, line: bytes) -> None:
        """One line of the engine's stdout, from the thread that reads it."""
        heard, event = self._heard, decode(line)
        self._committer.touch()
        if isinstance(event, RunStarted):
            heard.device, heard.attempt = event.device.name, event.attempt
            heard.total_steps = event.total_steps
        elif isinstance(event, StepCompleted):
            heard.step, heard.last_step_at = event.step, self._clock()
        elif isinstance(event, CheckpointSaved):
            heard.checkpoint_step = event.step
            self._committer.request()
        elif isinstance(event, RunFinished | RunFailed):
            heard.last = event

    def _beat(self) -> ControlBeat:
        now, heard, facts = self._clock(), self._heard, self._facts()
        beat = {
            "time": now,
            "run_id": self._spec.run_id,
            "state": self._state,
            "attempt": heard.attempt,
            "attempt_started_at": self._started_at,
            "device": heard.device,
            "step": heard.step,
            "total_steps": heard.total_steps,
            "last_step_at": heard.last_step_at,
            "checkpoint_step": heard.checkpoint_step,
            "lease_until": facts.lease_until,
            "spent_usd": f"{spent_usd(facts, now):.4f}",
        }
        return msgspec.convert(beat, ControlBeat)

    # ------------------------------------------------------------------ papers

    def _write_papers(self) -> None:
        """What the engine reads, and what a fresh machine needs to attach."""
        config = container_config(self._spec.config)
        (self._folder / CONFIG_FILE).write_text(to_toml(config), "utf-8")
        (self._folder / SPEC_FILE).write_bytes(msgspec.json.encode(self._spec))
        self._spending.note(self._started_at)

    def _mourn(self, last: Event | None) -> None:
        """The word that the attempt before this one did not get to say, in events and book."""
        taken = self._spending.was_taken_away
        failure = RunFailed(
            kind="preempted" if taken else "killed",
            message=PREEMPTED if taken else "the container ended without a word",
        )
        end_unspoken(1, self._folder, failure)
        said = last if isinstance(last, RunFailed) else failure
        worth_retrying = is_worth_retrying(said, 0, None)
        self._spending.mourn(said.kind, said.message, worth_retrying=worth_retrying)

    def _refuse(self, why: Verdict) -> Attempt:
        """An attempt that must not begin: all is spent, the lease is over, or it was stopped."""
        message = f"not started: {why.reason}"
        failure = RunFailed(kind=why.kind, message=message)
        with Emitter(1, self._folder) as emitter:
            emitter.emit(failure)
        return self._attempt(failure, 0, why)

    def _attempt(
        self, last: RunFinished | RunFailed, status: int, ending: Verdict | None
    ) -> Attempt:
        ended_by: EndedBy = ""
        if isinstance(last, RunFinished):
            outcome, reason = "stopped" if last.stopped_early else "finished", last.reason
            ended_by = last.ended_by
        else:
            outcome, reason = last.kind, last.message
        self._over = Attempt(
            outcome=outcome,
            reason=reason,
            step=self._heard.step,
            spent_usd=f"{spent_usd(self._facts(), self._clock()):.4f}",
            worth_retrying=is_worth_retrying(last, status, ending),
            ended_by=ended_by,
        )
        return self._over


def steady_clock() -> Callable[[], float]:
    """Unix seconds, counted on from now: a clock that is set meanwhile makes no hour cheaper."""
    ahead = time.time() - time.monotonic()
    return lambda: ahead + time.monotonic()


def last_event(path: Path) -> Event | None:
    """The last event of a file; None when it holds none, or ends in something else."""
    line = b""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:  # noqa: B007  # the last one is meant
            pass
    event = decode(line)
    return None if isinstance(event, Unrecognized) else event


def process_count(gpus: Sequence[str], devices: int) -> int:
    """How many processes are to train: one a GPU that was asked for and is there, or one.

    ``gpus`` is the configuration's list: ``H100:2`` asks for two.
    """
    return max(1, min(devices, max(map(gpu_count, gpus), default=0)))


def count_devices() -> int:
    """The GPUs that the driver sees; 0 without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
