"""The question before the program ends while runs are live."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from textual.binding import Binding, BindingType
from textual.widgets import Button

from composer_tui.screens.dialog import Dialog
from composer_tui.screens.fleet import LiveRun
from composer_tui.widgets.cells import Row, Span, wrap

QuitAnswer = Literal["leave", "stop"]


class QuitDialog(Dialog[QuitAnswer]):
    """Answers what becomes of the live runs, or None to stay."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "answer('stop')", "Stop them", id="quit.stop"),
        Binding("c", "close", "Stay", show=False, id="quit.cancel"),
    ]

    def __init__(self, runs: Sequence[LiveRun], *, readonly: bool = False) -> None:
        """With ``readonly`` they can only be left running."""
        super().__init__()
        self._runs = runs
        self._readonly = readonly

    def heading(self) -> str:
        one = len(self._runs) == 1
        return "A run is still live" if one else f"{len(self._runs)} runs are still live"

    def rows(self, width: int) -> Sequence[Row]:
        rows: list[Row] = []
        for run in self._runs:
            steps = f"  step {run.step:,} of {run.total_steps:,}"
            rows.append((Span(run.run_id, "strong"), Span(steps, "dim")))
            if run.ends_with_us:
                said = "ends with this program, as its local.on_disconnect says"
                rows += [(Span(f"  {line}", "warn"),) for line in wrap(said, width - 2)]
        if all(run.ends_with_us for run in self._runs):
            return [*rows, ()]
        said = "Left running, they go on without this program, and it finds them at its next start."
        return [*rows, (), *((Span(line, "dim"),) for line in wrap(said, width)), ()]

    def buttons(self) -> Sequence[Button]:
        buttons = [
            Button("Leave running", id="leave", compact=True),
            Button("Stop...", id="stop", variant="error", compact=True),
            Button("Cancel (esc)", id="close", compact=True),
        ]
        return [button for button in buttons if button.id != "stop" or not self._readonly]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A read-only app stops nothing."""
        if action == "answer" and self._readonly:
            return None
        return super().check_action(action, parameters)

    def action_answer(self, answer: QuitAnswer) -> None:
        """Answer."""
        if self.is_settled:
            self.dismiss(answer)

    def answer(self, button: str) -> None:
        self.action_answer("stop" if button == "stop" else "leave")
