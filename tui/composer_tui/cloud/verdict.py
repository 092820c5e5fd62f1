"""How a call on Modal ended, and the last word of a run whose engine did not say one. Pure."""

import re
import signal
import time
from typing import Any, NamedTuple, get_args

from composer_engine.protocol import EndedBy, Event, FailureKind, RunFailed, RunFinished
from composer_tui.cloud.audit import OwnStop
from composer_tui.cloud.known_failures import diagnose
from composer_tui.cloud.problems import redact
from composer_tui.runs.sanitise import clean
from composer_tui.runs.state import STOPPED_BY_YOU
from composer_tui.runs.words import LOST

# Failures that Modal tries again, where the run's configuration has retries.
RETRIED: frozenset[FailureKind] = frozenset({"engine", "killed", "runner"})
_MOST_CHARACTERS = 400
_STOPPED = re.compile(
    r"\b(?:app|call|input)\b[^.:;]{0,40}\b(?:was|were|been)\s(?:stopped|terminated|cancell?ed)\b",
    re.IGNORECASE,
)
# What was told already, and what the client in the container tells of the network each second.
_NOISE = re.compile(r"composer-tui: |\[modal-client\].*heartbeat", re.IGNORECASE)
_BY_SIGNAL = re.compile(r"\bby signal:?\s(?P<number>\d{1,2})\b", re.IGNORECASE)


class Ending(NamedTuple):
    """Why a call is over. ``value`` is what the function returned, if it did."""

    kind: FailureKind
    message: str
    hint: str = ""
    value: dict[str, Any] | None = None
    by_signal: bool = False


UNKNOWN = Ending("runner", "the app ended, and Modal does not say how", LOST)
STOPPED = Ending("killed", "the app was stopped", LOST)
NOT_AGAIN = "Modal took the container away, and no other attempt began"
PLANE_GONE = Ending(
    "killed",
    "the rehearsal's control plane is gone: its process has ended, and its containers with it",
    "rehearsal/rehearsal.log in the run's folder says more; launch it again",
)


def ending_of_value(value: object) -> Ending:
    """The function returned."""
    known = value if isinstance(value, dict) else {}
    return Ending("engine", "the container ended without its engine's last word", LOST, known)


def ending_of_error(error: BaseException) -> Ending:
    """The call failed; ``error`` is what Modal raises for it."""
    name = type(error).__name__
    text = " ".join(redact(str(error)).split())
    said = clean(f"{name}: {text}" if text else name)[:_MOST_CHARACTERS]
    if name == "FunctionTimeoutError":
        hint = f"raise modal.timeout_seconds; {LOST}"
        return Ending("timeout", "Modal ended the attempt: its time was up", hint)
    if name in ("InputCancellation", "KeyboardInterrupt"):
        return Ending("killed", "the call was cancelled", LOST)
    if name == "PreemptionError":
        return Ending("preempted", NOT_AGAIN, LOST)
    if name == "OutputExpiredError":
        return UNKNOWN
    if name == "RemoteError" and (not text or _STOPPED.search(text)):
        # Modal's client drops the result's status; what was cancelled in its container has no text.
        return STOPPED
    by_signal = _BY_SIGNAL.search(text)
    number = int(by_signal["number"]) if by_signal else 0
    # The table of failures knows SIGKILL as a shell tells it.
    known = diagnose(f"{name}: {text}" + (" exit code 137" if number == signal.SIGKILL else ""))
    if known is not None:
        return Ending(known.kind, known.what, known.fix, by_signal=known.name == "killed")
    if number:
        message = f"the container was ended by {_signal_name(number)}"
        return Ending("killed", message, f"log.txt has its last lines; {LOST}", by_signal=True)
    return Ending("engine", f"the container failed: {said}", "log.txt has its last lines")


def last_word(ending: Ending, log: list[str], steps: int) -> Event:
    """The terminal event; ``log`` is the evidence, ``steps`` how far the run had come."""
    value = ending.value or {}
    outcome = str(value.get("outcome", ""))
    reason = clean(str(value.get("reason", "")))
    if outcome in ("finished", "stopped"):
        done = str(value.get("step", ""))
        return RunFinished(
            steps=int(done) if done.isdecimal() else steps,
            stopped_early=outcome == "stopped",
            reason=reason,
            ended_by=_ended_by(value.get("ended_by")),
        )
    detail = "\n".join(line for line in log if not _NOISE.match(line))
    if "preempted" in (outcome, ending.kind):  # the kind of an attempt that another follows
        return RunFailed(kind="killed", message=NOT_AGAIN, hint=LOST, detail=detail)
    if outcome in get_args(FailureKind):
        kind: FailureKind = outcome  # type: ignore[assignment]  # the line above looked
        return RunFailed(kind=kind, message=reason or ending.message, detail=detail)
    known = diagnose(detail) if ending.kind in ("engine", "runner") or ending.by_signal else None
    usable = known is not None and known.kind != "preempted"
    if known is not None and usable and (known.kind == "oom" or not ending.by_signal):
        return RunFailed(kind=known.kind, message=known.what, hint=known.fix, detail=detail)
    return RunFailed(kind=ending.kind, message=ending.message, hint=ending.hint, detail=detail)


def may_be_a_stop(ending: Ending) -> bool:
    """What a stop of its app leaves, and what else may: who stopped it knows."""
    outcome = str((ending.value or {}).get("outcome", ""))
    if ending == PLANE_GONE or ending.by_signal or outcome not in ("", "preempted", "killed"):
        return False
    return bool(outcome) or ending.kind in ("killed", "preempted") or ending == UNKNOWN


def stopped_word(stop: OwnStop, steps: int, *, is_started: bool) -> Event:
    """The last word of a run that this machine's user stopped.

    An attempt that has not started cannot have finished.
    """
    when = time.strftime("%H:%M", time.localtime(stop.time))
    how = f"(the stop of {when} took effect)" if stop.is_late else f"at {when}"
    reason = f"{STOPPED_BY_YOU} {how}"
    if is_started:
        return RunFinished(steps=steps, stopped_early=True, reason=reason)
    return RunFailed(kind="killed", message=reason)


def _ended_by(word: object) -> EndedBy:
    return next((kind for kind in get_args(FailureKind) if kind == word), "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
