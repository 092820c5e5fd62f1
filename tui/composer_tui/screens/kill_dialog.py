"""The question before apps on Modal are stopped."""

from collections.abc import Callable, Sequence
from string import digits

from textual import events, on
from textual.widget import Widget
from textual.widgets import Button, Input

from composer_tui.numbers import duration
from composer_tui.runs.stop_mode import StopMode
from composer_tui.screens.end_dialog import GRACEFUL, NOW, EndDialog
from composer_tui.screens.kill_facts import (
    EVERYTHING,
    KillAnswer,
    KillSheet,
    sheet_rows,
    to_type,
    usual_mode,
)
from composer_tui.widgets.cells import Row
from composer_tui.widgets.text_input import TextInput


class KillDialog(EndDialog[KillAnswer]):
    """Answers what to stop and how, or None.

    One app is stopped with ``y`` or by its button; of several their count has to be typed, and
    for everything the word STOP, until then the button is dead. What is answered is what was
    on show: an app that came to be in the meantime is never among them unseen.
    """

    def __init__(self, ask: Callable[[], KillSheet]) -> None:
        """``ask`` answers what is known now."""
        self._ask = ask
        self._sheet = ask()
        self._grace_seconds = self._sheet.grace_seconds  # as it is offered
        self._has_to_type = self._sheet.everything or self._sheet.things > 1
        super().__init__(usual_mode(self._sheet))

    def renew(self) -> None:
        sheet = self._ask()
        if sheet == self._sheet:
            return
        came = {app.app_id for app in sheet.apps} - {app.app_id for app in self._sheet.apps}
        is_outdated = bool(came) or to_type(sheet) != to_type(self._sheet)
        self._sheet = sheet
        if is_outdated and self._has_to_type:
            self.query_one("#typed", Input).value = ""  # it was typed for others
        self.show_rows()
        self._offer()

    def heading(self) -> str:
        count = self._sheet.things
        if self._sheet.everything:
            return f"Stop everything? {count} live"
        if self._has_to_type:
            return f"Stop {_apps(count)}?"
        return "Stop this app?"

    def rows(self, width: int) -> Sequence[Row]:
        return sheet_rows(self._sheet, self._mode, width)

    def mode_words(self) -> dict[StopMode, str]:
        grace = duration(self._grace_seconds)
        return {
            GRACEFUL: f"graceful: saves first, up to {grace}  (n: now)",
            NOW: "now: does not save  (g: graceful)",
        }

    def fields(self) -> Sequence[Widget]:
        if not self._has_to_type:
            return super().fields()
        word = to_type(self._sheet)
        box = TextInput(placeholder=f"type {word} to confirm", id="typed", compact=True)
        box.select_on_focus = False  # a letter that brings the focus is not to be typed over
        return [*super().fields(), box]

    def buttons(self) -> Sequence[Button]:
        words = f"Stop {_apps(self._sheet.things)}" if self._has_to_type else "Stop app (y)"
        if self._sheet.everything:
            words = "Stop everything"
        return [
            Button("Cancel (esc)", id="close", compact=True),
            Button(words, id="stop", variant="error", compact=True, disabled=self._has_to_type),
        ]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """``y`` is for one app."""
        if action == "confirm" and self._has_to_type:
            return False
        return super().check_action(action, parameters)

    @property
    def _is_typed(self) -> bool:
        typed = self.query_one("#typed", Input).value.strip()
        return typed == to_type(self._sheet)

    def _offer(self) -> None:
        """Wake the button when what it asks for is there."""
        ready = bool(self._sheet.things) and (not self._has_to_type or self._is_typed)
        button = self.query_one("#stop", Button)
        button.disabled = not ready
        if self._has_to_type:
            word = to_type(self._sheet)
            self.query_one("#typed", Input).placeholder = f"type {word} to confirm"
            if not self._sheet.everything:
                button.label = f"Stop {_apps(self._sheet.things)}"

    @on(Input.Changed, "#typed")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._offer()

    @on(Input.Submitted, "#typed")
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_confirm()

    def on_key(self, event: events.Key) -> None:
        """What has to be typed may be typed while Cancel has the focus."""
        if not self._has_to_type or isinstance(self.focused, Input) or not self.is_settled:
            return
        typed = event.character or ""
        meant = set(EVERYTHING) if self._sheet.everything else set(digits)
        if typed in meant:
            event.stop()
            event.prevent_default()
            box = self.query_one("#typed", Input)
            box.focus()
            box.insert_text_at_cursor(typed)

    def confirm(self) -> None:
        sheet = self._sheet
        if not sheet.things or (self._has_to_type and not self._is_typed):
            return
        self.dismiss(
            KillAnswer(
                tuple(app.app_id for app in sheet.apps),
                tuple(run.run_id for run in sheet.runs),
                self._mode,
                self._grace_seconds,
            )
        )


def _apps(count: int) -> str:
    return f"{count} app{'s' if count != 1 else ''}"
