"""How fast a recorded run is played again."""

import math
from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Button

from composer_tui.screens.dialog import Dialog
from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.choice import Choice

SPEEDS = {
    "1x, as it was": 1.0,
    "4x": 4.0,
    "16x": 16.0,
    "64x": 64.0,
    "at once": math.inf,
}
_USUAL = "16x"


class ReplayDialog(Dialog[float]):
    """Answers a speed, or None."""

    first_focus = "#speed"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "play", "Play", show=False, id="replay.play"),
    ]

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id
        self._speed = _USUAL

    def heading(self) -> str:
        return "Replay"

    def rows(self, width: int) -> Sequence[Row]:
        del width
        return [
            (Span(self._run_id, "strong"),),
            (Span("into a folder of its own; the recording stays as it is", "dim"),),
            (),
            (Span("speed, with left and right:", "dim"),),
        ]

    def fields(self) -> Sequence[Widget]:
        return [Choice(list(SPEEDS), _USUAL, id="speed")]

    def buttons(self) -> Sequence[Button]:
        return [
            Button("Cancel (esc)", id="close", compact=True),
            Button("Play", id="play", variant="primary", compact=True),
        ]

    @on(Choice.Changed)
    def _chosen(self, event: Choice.Changed) -> None:
        event.stop()
        self._speed = event.value

    def action_play(self) -> None:
        """Play at the chosen speed."""
        if self.is_settled:
            self.answer("play")

    def answer(self, button: str) -> None:
        if button == "play":
            self.dismiss(SPEEDS[self._speed])
