"""Screen 3: every run that there is."""

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from composer_tui.messages import ReplayAsked, StopAsked, WatchAsked
from composer_tui.runs.state import ENDED
from composer_tui.runs.store import RunSummary
from composer_tui.screens.base import BaseScreen, Moment
from composer_tui.screens.replay_dialog import ReplayDialog
from composer_tui.widgets.run_table import RunTable
from composer_tui.widgets.text_input import TextInput


class RunsScreen(BaseScreen):
    """The list of runs."""

    mode = "runs"
    lists_runs = True
    first_focus = "#runs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="filter", tooltip="Show only matching runs"),
        Binding("R", "replay", "Replay", id="replay", tooltip="Play a finished run again"),
        Binding("K", "stop", "Stop", id="stop", tooltip="Ask whether to stop the chosen run"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._runs: Sequence[RunSummary] | None = None
        self._moment: Moment | None = None
        self._shown: tuple[object, ...] = ()

    def body(self) -> ComposeResult:
        yield RunTable(id="runs")
        yield TextInput(placeholder="name, model, state or target", id="filter", compact=True)

    def on_mount(self) -> None:
        self.query_one("#filter").display = False

    def list_runs(self, runs: Sequence[RunSummary]) -> None:
        """Show these runs from the next tick on."""
        self._runs = runs

    def tick(self, moment: Moment) -> bool:
        more = super().tick(moment)
        self._moment = moment
        shown = (self._runs, moment.stopping, int(moment.now))
        if self._runs is not None and shown != self._shown:
            self._shown = shown
            self.query_one(RunTable).show(self._runs, moment.stopping, moment.now)
            self.refresh_bindings()
        return more

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only an ended run can be replayed, only a live one stopped."""
        allowed = super().check_action(action, parameters)
        if allowed and action in {"replay", "stop"} and self.is_ready:
            chosen = self.query_one(RunTable).selected
            live = self._moment.live if self._moment else frozenset()
            if chosen is None:
                return False
            return chosen.life in ENDED if action == "replay" else chosen.run_id in live
        return allowed

    @on(RunTable.Opened)
    def _opened(self, event: RunTable.Opened) -> None:
        self.post_message(WatchAsked(event.run.run_id))

    def action_filter(self) -> None:
        """Type what runs must match."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_back(self) -> None:
        box = self.query_one("#filter", Input)
        box.display = False
        box.value = ""
        self.query_one(RunTable).focus()
        super().action_back()

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        self.query_one(RunTable).search(event.value)

    @on(Input.Submitted, "#filter")
    def _filter_kept(self) -> None:
        self.query_one("#filter").display = False
        self.query_one(RunTable).focus()

    def action_replay(self) -> None:
        """Ask for a speed and play the chosen run again."""
        run = self.query_one(RunTable).selected
        if run is None:
            return

        def play(speed: float | None) -> None:
            if speed is not None:
                self.post_message(ReplayAsked(run.run_id, speed))

        self.app.push_screen(ReplayDialog(run.run_id), play)

    def action_stop(self) -> None:
        """Ask whether to stop the chosen run."""
        run = self.query_one(RunTable).selected
        if run is not None:
            self.post_message(StopAsked(run.run_id))
