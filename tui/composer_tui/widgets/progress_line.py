"""How far the run is, since when, until when, and how fast."""

from collections.abc import Sequence

from composer_tui.numbers import duration, number
from composer_tui.runs.state import RunState
from composer_tui.widgets.cells import Row, Span, as_many_as_fit, row_cells
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.meter import meter
from composer_tui.widgets.pane import CellWidget

_LEAST_BAR = 8
_SEPARATOR = Span("   ")


def elapsed_seconds(state: RunState, now: float) -> float | None:
    """From the first event to the end, or to now."""
    if state.started_at is None:
        return None
    end = state.ended_at if state.ended_at is not None else now
    return max(0.0, end - state.started_at)


def progress_row(state: RunState, now: float, width: int, glyphs: Glyphs) -> Row:
    """One row; the words that do not fit are left out, the bar takes what is left."""
    done = state.steps_done
    part = state.progress or 0.0
    words = [
        *([_pair("", state.guard_rail, "bad")] if state.guard_rail else []),
        _pair("", f"{part:.0%}", "strong"),
        _pair("step ", f"{done:,}/{state.total_steps:,}" if state.total_steps else f"{done:,}"),
        _pair("elapsed ", duration(elapsed_seconds(state, now), glyphs.missing)),
    ]
    if state.attempt > 1:
        words.append(_pair("attempt ", f"{state.attempt}"))
    if not state.ended:
        words.append(_pair("eta ", duration(state.eta_seconds(now), glyphs.missing)))
    if state.last is not None:
        pace = state.last.step_seconds or state.seconds_per_step
        if pace is not None:
            words.append(_pair("", f"{duration(pace)}/step"))
        if state.last.tokens_per_second is not None:
            words.append(_pair("", f"{number(state.last.tokens_per_second)} tok/s"))
    if state.checkpoint is not None:
        words.append(_pair("checkpoint ", f"{state.checkpoint.step:,}"))
    shown = as_many_as_fit(words, _SEPARATOR, width - _LEAST_BAR - 3)
    style = {"failed": "bad", "stopped": "warn", "finished": "good"}.get(state.life, "line")
    bar = meter(part, width - row_cells(shown) - 3, glyphs, style=style)
    return (Span(" "), *bar, Span(" "), *shown)


def _pair(label: str, value: str, style: str = "text") -> Row:
    return (*((Span(label, "dim"),) if label else ()), Span(value, style))


class ProgressLine(CellWidget):
    """One line under the header."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._state: RunState | None = None
        self._now = 0.0

    def show(self, state: RunState, now: float) -> None:
        """Show how far ``state`` is at the moment ``now`` (unix seconds)."""
        self._state, self._now = state, now
        self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        if self._state is None or height < 1:
            return []
        return [progress_row(self._state, self._now, width, self.glyphs)]
