"""The question before a run is stopped."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Button

from composer_tui.numbers import duration
from composer_tui.runners.base import StopMode
from composer_tui.screens.dialog import Dialog
from composer_tui.screens.fleet import StopFacts
from composer_tui.widgets.cells import Row, Span, wrap
from composer_tui.widgets.choice import Choice

GRACEFUL, NOW = "graceful", "now"
_RENEW_SECONDS = 0.5
_MODES: dict[str, StopMode] = {GRACEFUL: "graceful", NOW: "now"}


def what_is_saved(facts: StopFacts, mode: str) -> str:
    """What a stop keeps and what it loses, in one sentence."""
    done = facts.state.last.step if facts.state.last else 0
    saved = facts.state.checkpoint.step if facts.state.checkpoint else 0
    if mode == GRACEFUL:
        if not done:
            return (
                "No step is done yet. A step that has begun is finished and saved; before that, "
                "the run ends without a checkpoint."
            )
        return (
            f"Finishes the step it is in and saves a checkpoint of it, then ends. After "
            f"{duration(facts.grace_seconds)} without an end it is ended by force."
        )
    if not done:
        return "Ends at once, before its first step."
    if done <= saved:
        return "Ends at once. Nothing is lost: the newest step is in a checkpoint."
    lost = done - saved
    kept = f"the checkpoint of step {saved:,} stays" if saved else "there is no checkpoint"
    return f"Ends at once. {lost:,} step{'s' if lost > 1 else ''} lost; {kept}."


def fact_rows(facts: StopFacts, mode: str, width: int) -> list[Row]:
    """The facts in pairs, then what will be saved."""
    state = facts.state
    done = state.last.step if state.last else 0
    saved = f"step {state.checkpoint.step:,}" if state.checkpoint else "none yet"
    steps = f"{done:,} of {facts.total_steps:,}"
    pairs = [
        ("run", facts.run_id),
        ("process", f"pid {facts.pid}" if facts.pid is not None else "not known yet"),
        ("step", steps),
        ("checkpoint", saved),
    ]
    rows: list[Row] = [(Span(f"{name:<12}", "dim"), Span(value)) for name, value in pairs]
    rows.append(())
    rows += [(Span(line, "warn"),) for line in wrap(what_is_saved(facts, mode), width)]
    return rows


class StopDialog(Dialog[StopMode]):
    """Answers the way to stop, or None. Cancel has the focus: Enter does nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "Stop it", id="stop.confirm", tooltip="Stop in the chosen way"),
        Binding("g", f"mode('{GRACEFUL}')", "Graceful", show=False, id="stop.graceful"),
        Binding("n", f"mode('{NOW}')", "Now", show=False, id="stop.now"),
    ]

    def __init__(self, ask: Callable[[], Sequence[StopFacts]]) -> None:
        """``ask`` answers what is known now: a run goes on while a person thinks."""
        super().__init__()
        self._ask = ask
        self._facts = ask()
        self._mode = GRACEFUL

    def on_mount(self) -> None:
        super().on_mount()
        self.set_interval(_RENEW_SECONDS, self._renew)

    def _renew(self) -> None:
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

    def fields(self) -> Sequence[Widget]:
        return [Choice([GRACEFUL, NOW], GRACEFUL, id="stop-mode")]

    def buttons(self) -> Sequence[Button]:
        return [
            Button("Cancel (esc)", id="close", compact=True),
            Button("Stop (y)", id="stop", variant="error", compact=True),
        ]

    @on(Choice.Changed, "#stop-mode")
    def _mode_chosen(self, event: Choice.Changed) -> None:
        event.stop()
        self._mode = event.value
        self.show_rows()

    def action_mode(self, mode: str) -> None:
        """Choose the way to stop."""
        self._mode = mode
        self.query_one("#stop-mode", Choice).set_value(mode)
        self.show_rows()

    def action_confirm(self) -> None:
        """Stop."""
        if self.is_settled:
            self.dismiss(_MODES[self._mode])

    def answer(self, button: str) -> None:
        if button == "stop":
            self.action_confirm()
