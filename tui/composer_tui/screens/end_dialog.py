"""What the dialogs that end something have in common: how, and facts that are renewed."""

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget

from composer_tui.numbers import duration
from composer_tui.runs.stop_mode import StopMode
from composer_tui.screens.dialog import Dialog
from composer_tui.widgets.choice import Choice

T = TypeVar("T")
GRACEFUL: StopMode = "graceful"
NOW: StopMode = "now"
_RENEW_SECONDS = 0.5


def what_is_saved(done: int, saved: int, mode: StopMode, grace_seconds: float) -> str:
    """What a stop keeps and what it loses; ``done`` and ``saved`` are steps."""
    if mode == GRACEFUL:
        if not done:
            return (
                "No step is done yet. A step that has begun is finished and saved; before that, "
                "the run ends without a checkpoint."
            )
        return (
            f"Finishes the step it is in and saves a checkpoint of it, then ends. After "
            f"{duration(grace_seconds)} without an end it is ended by force."
        )
    if not done:
        return "Ends at once, before its first step."
    if done <= saved:
        return "Ends at once. Nothing is lost: the newest step is in a checkpoint."
    lost = done - saved
    kept = f"the checkpoint of step {saved:,} stays" if saved else "there is no checkpoint"
    return f"Ends at once. {lost:,} step{'s' if lost > 1 else ''} lost; {kept}."


class EndDialog(Dialog[T]):
    """Cancel has the focus: Enter does nothing. A run goes on while a person thinks."""

    lists_apps: ClassVar[bool] = True  # what it says of them has to be fresh
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "Stop it", id="stop.confirm", tooltip="Stop in the chosen way"),
        Binding("g", f"mode('{GRACEFUL}')", "Graceful", show=False, id="stop.graceful"),
        Binding("n", f"mode('{NOW}')", "Now", show=False, id="stop.now"),
    ]

    def __init__(self, mode: StopMode = GRACEFUL) -> None:
        super().__init__()
        self._mode: StopMode = mode

    def on_mount(self) -> None:
        super().on_mount()
        self.set_interval(_RENEW_SECONDS, self.renew)

    def renew(self) -> None:
        """Ask again for what is known, and show it where it is new."""
        raise NotImplementedError

    def mode_words(self) -> dict[StopMode, str]:
        """The ways to stop, as they are offered."""
        return {GRACEFUL: "graceful", NOW: "now"}

    def fields(self) -> Sequence[Widget]:
        words = self.mode_words()
        return [Choice([*words.values()], words[self._mode], id="stop-mode")]

    @on(Choice.Changed, "#stop-mode")
    def _mode_chosen(self, event: Choice.Changed) -> None:
        event.stop()
        self._mode = next(mode for mode, word in self.mode_words().items() if word == event.value)
        self.show_rows()

    def action_mode(self, mode: StopMode) -> None:
        """Choose the way to stop."""
        self._mode = mode
        self.query_one("#stop-mode", Choice).set_value(self.mode_words()[mode])
        self.show_rows()

    def action_confirm(self) -> None:
        """Stop, unless the key was pressed for what was there before this dialog."""
        if self.is_settled:
            self.confirm()

    def confirm(self) -> None:
        """Answer."""
        raise NotImplementedError

    def answer(self, button: str) -> None:
        if button == "stop":
            self.action_confirm()
