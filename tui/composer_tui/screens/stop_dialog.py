"""The question before a run on this machine is stopped."""

from collections.abc import Callable, Sequence

from textual.widgets import Button

from composer_tui.runs.stop_mode import StopMode
from composer_tui.screens.end_dialog import EndDialog, what_is_saved
from composer_tui.screens.fleet import StopFacts
from composer_tui.widgets.cells import Row, Span, wrap


def fact_rows(facts: StopFacts, mode: StopMode, width: int) -> list[Row]:
    """The facts in pairs, then what will be saved."""
    state = facts.state
    done = state.last.step if state.last else 0
    saved = state.checkpoint.step if state.checkpoint else 0
    pairs = [
        ("run", facts.run_id),
        ("process", f"pid {facts.pid}" if facts.pid is not None else "not known yet"),
        ("step", f"{done:,} of {facts.total_steps:,}"),
        ("checkpoint", f"step {saved:,}" if state.checkpoint else "none yet"),
    ]
    rows: list[Row] = [(Span(f"{name:<12}", "dim"), Span(value)) for name, value in pairs]
    words = what_is_saved(done, saved, mode, facts.grace_seconds)
    return [*rows, (), *((Span(line, "warn"),) for line in wrap(words, width))]


class StopDialog(EndDialog[StopMode]):
    """Answers the way to stop, or None."""

    def __init__(self, ask: Callable[[], Sequence[StopFacts]]) -> None:
        """``ask`` answers what is known now."""
        super().__init__()
        self._ask = ask
        self._facts = ask()

    def renew(self) -> None:
        facts = self._ask()
        if facts and facts != self._facts:
            self._facts = facts
            self.show_rows()

    def heading(self) -> str:
        return "Stop this run?" if len(self._facts) == 1 else f"Stop {len(self._facts)} runs?"

    def rows(self, width: int) -> Sequence[Row]:
        rows: list[Row] = []
        for facts in self._facts:
            rows += [*fact_rows(facts, self._mode, width), ()]
        return [*rows, (Span("how: g graceful, n now", "dim"),)]

    def buttons(self) -> Sequence[Button]:
        return [
            Button("Cancel (esc)", id="close", compact=True),
            Button("Stop (y)", id="stop", variant="error", compact=True),
        ]

    def confirm(self) -> None:
        self.dismiss(self._mode)
