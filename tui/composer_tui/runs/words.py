"""Events as the lines that a log shows a person. Steps are not told: charts show them better."""

from collections.abc import Iterable

from composer_engine.protocol import (
    AlertRaised,
    CheckpointSaved,
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
from composer_tui.runs.state import RunState

_SHOWN_OF_A_BAD_LINE = 500


def log_lines(event: Event | Unrecognized) -> Iterable[LogLine]:
    """What a log says of an event; nothing for those that are shown elsewhere."""
    match event:
        case PhaseChanged(phase=phase):
            return _said(event, "info", f"{phase}...")
        case RunStarted():
            return _said(event, "info", started_words(event))
        case CheckpointSaved():
            return _said(event, "info", f"saved {event.path} at step {event.step}")
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
        case RunFailed():
            return _said(event, "error", f"failed ({event.kind}): {event.message}")
        case Unrecognized():
            text = f"not an event ({event.reason}): {event.text[:_SHOWN_OF_A_BAD_LINE]}"
            return [LogLine(None, "warning", text)]
    return []


def started_words(event: RunStarted) -> str:
    """Which model, on what, for how long."""
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    return (
        f"{event.model}, {event.parameters:,} parameters, on {event.device.name}; "
        f"{event.total_steps} steps{attempt}"
    )


def state_words(state: RunState) -> str:
    """``training``, or ``stopped: the cap of $0.05 is reached``."""
    return f"{state.life}: {state.guard_rail}" if state.guard_rail else state.life


def finished_words(event: RunFinished, took: str = "") -> str:
    """That it ended, and why, when it was early; ``took`` is how long it took."""
    how = "stopped early" if event.stopped_early else "finished"
    if event.ended_by:
        how = "stopped by a guard rail"
    why = f": {event.reason}" if event.reason else ""
    after = f" in {took}" if took else ""
    return f"{how} after {event.steps} steps{after}{why}"


def _said(event: Event, level: Level, text: str) -> list[LogLine]:
    return [LogLine(event.time, level, line) for line in text.split("\n")]
