"""Events as the lines that a log shows a person. Steps are not told: charts show them better."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from composer_engine.protocol import (
    AlertRaised,
    CheckpointSaved,
    EndedBy,
    Evaluated,
    Event,
    Level,
    Logged,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunStarted,
    Unrecognized,
)
from composer_tui.runs.log import LogLine
from composer_tui.runs.state import STOPPED_BY_YOU, Life, RunState, is_own_stop

TAKEN_AWAY = "taken away; a new attempt is expected"
LOST = "work since the last checkpoint is lost"
_SHOWN_OF_A_BAD_LINE = 500
_ENDS: Mapping[tuple[Life, EndedBy], str] = MappingProxyType(
    {
        ("stopped", "budget"): "cap hit",
        ("stopped", "timeout"): "timed out",
        ("failed", "budget"): "cap hit",
        ("failed", "timeout"): "timed out",
        ("failed", "killed"): "killed",
    }
)


def log_lines(event: Event | Unrecognized) -> Iterable[LogLine]:
    """What a log says of an event; nothing for those that are shown elsewhere."""
    match event:
        case PhaseChanged(phase=phase):
            return _said(event, "info", f"{phase}...")
        case RunStarted():
            return _said(event, "info", started_words(event))
        case CheckpointSaved():
            best = ", the best so far" if event.best else ""
            return _said(event, "info", f"saved {event.path} at step {event.step}{best}")
        case Evaluated():
            numbers = ", ".join(
                f"{name} {'—' if value is None else format(value, '.4g')}"
                for name, value in event.metrics.items()
            )
            return _said(event, "info", f"evaluated at step {event.step}: {numbers}")
        case Logged():
            return _said(event, event.level, event.message)
        case AlertRaised():
            return _said(event, event.level, f"{event.rule}: {event.message}")
        case RunFinished():
            return _said(event, "info", finished_words(event))
        case RunFailed(kind="preempted", message=message):
            return _said(event, "warning", f"{TAKEN_AWAY}: {message}")
        case RunFailed() if is_own_stop(event):
            return _said(event, "info", event.message)
        case RunFailed():
            return _said(event, "error", f"failed ({event.kind}): {event.message}")
        case Unrecognized():
            text = f"not an event ({event.reason}): {event.text[:_SHOWN_OF_A_BAD_LINE]}"
            return [LogLine(None, "warning", text)]
    return []


def started_words(event: RunStarted) -> str:
    """Which model, on what, for how long."""
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    resumed = f", after step {event.resumed_step}" if event.resumed_step else ""
    return (
        f"{event.model}, {event.parameters:,} parameters, on {event.device.name}; "
        f"{event.total_steps} steps{attempt}{resumed}"
    )


def life_word(life: Life, ended_by: EndedBy = "") -> str:
    """How a run stands, in the one word that every list and every line has for it.

    ``ended_by`` is the guard rail that stopped it, or the kind of its failure.
    """
    return _ENDS.get((life, ended_by), life)


def hint_lines(hint: str) -> list[str]:
    """What to do, and apart from it what is only to be known."""
    parts = [part for part in hint.split("; ") if part]
    todo = "; ".join(part for part in parts if part != LOST)
    return [f"try: {todo}"] * bool(todo) + [f"note: {LOST}"] * (LOST in parts)


def state_words(state: RunState) -> str:
    """``training``, or ``cap hit: the cap of $0.05 is reached``."""
    if state.is_taken_away:
        return f"{state.life}: {TAKEN_AWAY}"
    word = life_word(state.life, state.ended_by)
    return f"{word}: {state.guard_rail}" if state.guard_rail else word


def finished_words(event: RunFinished, took: str = "") -> str:
    """That it ended, and why, when it was early; ``took`` is how long it took."""
    how = "stopped early" if event.stopped_early else "finished"
    if event.ended_by:
        how = life_word("stopped", event.ended_by)
        how = "stopped by a guard rail" if how == "stopped" else how
    elif event.reason.startswith(STOPPED_BY_YOU):
        return f"{event.reason} after {event.steps} steps{f' in {took}' if took else ''}"
    why = f": {event.reason}" if event.reason else ""
    after = f" in {took}" if took else ""
    return f"{how} after {event.steps} steps{after}{why}"


def _said(event: Event, level: Level, text: str) -> list[LogLine]:
    return [LogLine(event.time, level, line) for line in text.split("\n")]
