"""The name of a preset to save."""

from collections.abc import Sequence
from pathlib import Path

from textual import on
from textual.widget import Widget
from textual.widgets import Button, Input

from composer_tui.screens.dialog import Dialog
from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.text_input import TextInput


class SaveDialog(Dialog[str]):
    """Answers a name, or None."""

    first_focus = "#preset-name"

    def __init__(self, folder: Path, name: str, taken: Sequence[str]) -> None:
        super().__init__()
        self._folder, self._name, self._taken = folder, name, taken

    def heading(self) -> str:
        return "Save as a preset"

    def rows(self, width: int) -> Sequence[Row]:
        del width
        return [
            (Span("TOML, in ", "dim"), Span(str(self._folder))),
            (Span("for this form, and by its name for composer-tui run", "dim"),),
            (Span("replaces your preset of that name", "warn"),)
            if self._name in self._taken
            else (),
            (),
        ]

    def fields(self) -> Sequence[Widget]:
        return [TextInput(self._name, id="preset-name", compact=True)]

    def buttons(self) -> Sequence[Button]:
        return [
            Button("Cancel (esc)", id="close", compact=True),
            Button("Save (enter)", id="save", variant="primary", compact=True),
        ]

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._name = event.value.strip()
        self.show_rows()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.answer("save")

    def answer(self, button: str) -> None:
        if button == "save" and self._name:
            self.dismiss(self._name)
