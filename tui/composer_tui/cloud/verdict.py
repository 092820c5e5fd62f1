"""How a call on Modal ended, and the last word of a run whose engine did not say one. Pure."""

from typing import Any, NamedTuple, get_args

from composer_engine.protocol import Event, FailureKind, RunFailed, RunFinished
from composer_tui.cloud.known_failures import diagnose
from composer_tui.cloud.problems import redact
from composer_tui.runs.sanitise import clean

_LOST = "work since the last checkpoint is lost"
_MOST_CHARACTERS = 400


class Ending(NamedTuple):
    """Why a call is over. ``value`` is what the function returned, if it did."""

    kind: FailureKind
    message: str
    hint: str = ""
    value: dict[str, Any] | None = None


UNKNOWN = Ending("runner", "the app ended, and Modal does not say how", _LOST)


def ending_of_value(value: object) -> Ending:
    """The function returned."""
    known = value if isinstance(value, dict) else {}
    return Ending("engine", "the container ended without its engine's last word", _LOST, known)


def ending_of_error(error: BaseException) -> Ending:
    """The call failed; ``error`` is what Modal raises for it."""
    name = type(error).__name__
    text = " ".join(redact(str(error)).split())
    said = clean(f"{name}: {text}" if text else name)[:_MOST_CHARACTERS]
    if name == "FunctionTimeoutError":
        hint = f"raise modal.timeout_seconds; {_LOST}"
        return Ending("timeout", "Modal ended the attempt: its time was up", hint)
    if name in ("InputCancellation", "KeyboardInterrupt", "PreemptionError"):
        return Ending("preempted", "Modal took the container away", _LOST)
    if name == "OutputExpiredError":
        return UNKNOWN
    if _is_stop(text):
        return Ending("killed", "the app was stopped", _LOST)
    known = diagnose(f"{name}: {text}")
    if known is not None:
        return Ending(known.kind, known.what, known.fix)
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
        )
    detail = "\n".join(log)
    if outcome in get_args(FailureKind):
        kind: FailureKind = outcome  # type: ignore[assignment]  # the line above looked
        return RunFailed(kind=kind, message=reason or ending.message, detail=detail)
    known = diagnose(detail) if ending.kind in ("engine", "runner") else None
    if known is not None:
        return RunFailed(kind=known.kind, message=known.what, hint=known.fix, detail=detail)
    return RunFailed(kind=ending.kind, message=ending.message, hint=ending.hint, detail=detail)


def _is_stop(text: str) -> bool:
    lowered = text.lower()
    return any(
        word in lowered for word in ("terminated", "cancelled", "canceled", "app was stopped")
    )
