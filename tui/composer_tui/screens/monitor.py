"""Screen 2: one run, live or from its file."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input

from composer_tui.messages import StopAsked
from composer_tui.runs.feed import RunFeed
from composer_tui.screens.base import BaseScreen, Moment
from composer_tui.screens.pace import Pace
from composer_tui.screens.run_cost import cost_parts
from composer_tui.screens.watch import Watch
from composer_tui.widgets.alert_list import AlertList
from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.channel_table import METRICS, ChannelTable
from composer_tui.widgets.chart import BandChart
from composer_tui.widgets.failure_panel import FailurePanel
from composer_tui.widgets.log_view import LogView
from composer_tui.widgets.memory_gauge import MemoryGauge
from composer_tui.widgets.pane import Pane
from composer_tui.widgets.phase_ladder import PhaseLadder
from composer_tui.widgets.plan_pane import RowsPane
from composer_tui.widgets.progress_line import ProgressLine
from composer_tui.widgets.sample_view import SampleView
from composer_tui.widgets.status_line import StatusLine
from composer_tui.widgets.text_input import TextInput

_SMALL = METRICS[1:5]
_NO_RUN = (
    "No run is open.",
    "",
    "1  the launch form: F5 there starts the smoke preset on this machine",
    "3  the runs that there are: enter opens one",
)


class MonitorScreen(BaseScreen):
    """Charts, numbers, memory, alerts, rollouts and log of the watched run."""

    mode = "monitor"
    first_focus = "#headline"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "smooth(1)", "Smooth", id="chart.smooth", tooltip="More smoothing, then none"),
        Binding("S", "smooth(-1)", "Less smooth", show=False, id="chart.rough"),
        Binding("y", "log", "Log y", id="chart.log", tooltip="Logarithmic or linear axis"),
        Binding(
            "plus,equals_sign",
            "zoom(1)",
            "Zoom in",
            show=False,
            id="chart.zoom_in",
            tooltip="Half as many of the newest steps",
        ),
        Binding(
            "minus",
            "zoom(-1)",
            "Zoom out",
            show=False,
            id="chart.zoom_out",
            tooltip="Twice as many of the newest steps",
        ),
        Binding("0", "zoom(0)", "All steps", show=False, id="chart.zoom_reset"),
        Binding(
            "left_square_bracket",
            "metric(-1)",
            "Previous metric",
            show=False,
            id="chart.previous",
            tooltip="The metric above in the big chart",
        ),
        Binding(
            "right_square_bracket",
            "metric(1)",
            "Metric",
            id="chart.next",
            tooltip="The metric below in the big chart",
        ),
        Binding("l", "pane('#log')", "Log", id="pane.log", tooltip="The log in the whole screen"),
        Binding(
            "o",
            "pane('#samples')",
            "Rollouts",
            id="pane.samples",
            tooltip="The rollouts in the whole screen",
        ),
        Binding("enter", "full", "Zoom", show=False, id="pane.zoom", tooltip="As f"),
        Binding("slash", "filter", "Filter", show=False, id="filter", tooltip="Filter the log"),
        Binding("K", "stop", "Stop", id="stop", tooltip="Ask whether to stop this run"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._watch: Watch | None = None
        self._second = -1
        self._can_stop = False
        self._layout_pace = Pace(0.1)
        # Nobody reads numbers at ten a second. The paces differ, so that a flood of events does
        # not have everything drawn in the same frame.
        self._parts: list[tuple[Pace, Callable[[RunFeed], None]]] = [
            (Pace(0.2), partial(self._draw_chart, "#headline")),
            (Pace(0.2), self._draw_log),
            (Pace(0.3), self._draw_numbers),
            (Pace(0.3), self._draw_panels),
            *((Pace(0.5), partial(self._draw_chart, f"#small-{i}")) for i in range(len(_SMALL))),
        ]

    def body(self) -> ComposeResult:
        yield ProgressLine(id="progress")
        yield RowsPane("monitor", id="nothing")
        with Vertical(id="stage"):
            yield FailurePanel(id="failure")
            yield PhaseLadder(id="ladder")
            with Horizontal(id="top"):
                yield BandChart(id="headline")
                yield ChannelTable(id="channels")
            with Horizontal(id="small"):
                for index, metric in enumerate(_SMALL):
                    yield BandChart(metric, id=f"small-{index}")
            with Horizontal(id="middle"):
                yield MemoryGauge(id="memory")
                yield AlertList(id="alerts")
            with Horizontal(id="bottom"):
                yield LogView(id="log")
                yield SampleView(id="samples")
        yield StatusLine(id="status")
        yield TextInput(
            placeholder="filter the log; enter keeps it, esc clears it", id="filter", compact=True
        )

    def on_mount(self) -> None:
        self.query_one("#nothing", RowsPane).show(_nothing)
        self.query_one("#filter").display = False
        self._arrange(None)

    def tick(self, moment: Moment) -> bool:
        super().tick(moment)
        watch = moment.watch
        self._offer_stop(watch is not None and watch.run_id in moment.live)
        if watch is not self._watch:
            self._watch, self._second = watch, -1
            for pace in (self._layout_pace, *(pace for pace, _ in self._parts)):
                pace.reset()
        if watch is None:
            self._arrange(None)
            return False
        feed = watch.feed
        costs = cost_parts(watch, moment.apps, moment.now)
        self.query_one(StatusLine).show(feed, moment.stop_words, costs)
        # A live run's clock goes on between its events; an ended run's screen does not move.
        second = 0 if feed.state.ended else int(moment.now)
        laid_out = self._layout_pace.due(feed.version, moment.now)
        if laid_out:
            self._arrange(watch)
        if laid_out or second != self._second:
            self._second = second
            self._show_clocks(watch, moment.now)
        for pace, draw in self._parts:
            if pace.due(feed.version, moment.now):
                draw(feed)
                return True
        return False

    def _offer_stop(self, can_stop: bool) -> None:
        if can_stop != self._can_stop:
            self._can_stop = can_stop
            self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only a live run can be stopped."""
        allowed = super().check_action(action, parameters)
        return self._can_stop if allowed and action == "stop" else allowed

    def _arrange(self, watch: Watch | None) -> None:
        """Which panes there are: a ladder before step 1, charts from then on."""
        self.query_one("#nothing").display = watch is None
        self.query_one("#stage").display = watch is not None
        self.query_one("#progress").display = watch is not None
        if watch is None:
            return
        state = watch.feed.state
        stepped = len(watch.feed.table) > 0
        self.query_one("#ladder").display = not stepped and not state.ended
        for name in ("#top", "#small"):
            self.query_one(name).set_class(not stepped, "waiting")
        # Where there is room for one of them, a log without a line gives way to the rollouts.
        silent = not watch.feed.log.lines and bool(watch.feed.samples)
        self.query_one("#bottom").set_class(silent, "silent")
        self.query_one(FailurePanel).show(state.failure)
        self.query_one("#stage").set_class(state.failure is not None, "failed")

    def _show_clocks(self, watch: Watch, now: float) -> None:
        feed = watch.feed
        self.query_one(ProgressLine).show(feed.state, now)
        ladder = self.query_one(PhaseLadder)
        if ladder.display:
            newest = feed.progress or (feed.log.lines[-1].text if feed.log.lines else "")
            ladder.show(feed.state, watch.launched_at, now, newest)

    def _draw_chart(self, selector: str, feed: RunFeed) -> None:
        self.query_one(selector, BandChart).show(feed.table, live=not feed.state.ended)

    def _draw_log(self, feed: RunFeed) -> None:
        self.query_one(LogView).show(feed.log)

    def _draw_numbers(self, feed: RunFeed) -> None:
        self.query_one(ChannelTable).show(feed.table)

    def _draw_panels(self, feed: RunFeed) -> None:
        self.query_one(MemoryGauge).show(feed.state.memory, feed.memory)
        self.query_one(AlertList).show(feed.state.alerts, feed.state.alert_count)
        self.query_one(SampleView).show(feed.samples)

    @on(ChannelTable.Chosen)
    def _metric_chosen(self, event: ChannelTable.Chosen) -> None:
        self.query_one("#headline", BandChart).draw(event.metric)

    def action_metric(self, move: int) -> None:
        """Draw the next metric in the big chart."""
        self.query_one(ChannelTable).action_choose(move)

    def action_smooth(self, direction: int) -> None:
        """Smooth all charts alike."""
        for chart in self.query(BandChart):
            chart.smooth(direction)

    def action_zoom(self, direction: int) -> None:
        """Show the same steps in all charts."""
        for chart in self.query(BandChart):
            chart.zoom(direction)

    def action_log(self) -> None:
        """Another axis for the focused chart, or the big one."""
        focused = self.focused
        chart = (
            focused if isinstance(focused, BandChart) else self.query_one("#headline", BandChart)
        )
        chart.toggle_log()

    def action_pane(self, selector: str) -> None:
        """Give a pane the whole screen, or give it back."""
        pane = self.query_one(selector, Pane)
        if self.maximized is pane:
            self.action_back()
        else:
            self.fill(pane)

    def action_back(self) -> None:
        box = self.query_one("#filter", Input)
        if box.display or self.query_one(LogView).window.needle:
            box.display = False
            box.value = ""
            self.query_one(LogView).search("")
            self.query_one(LogView).focus()
        elif self.maximized is not None:
            hidden = self.maximized
            super().action_back()
            if not hidden.display:
                self.query_one("#headline").focus()

    @on(LogView.FilterAsked)
    def action_filter(self) -> None:
        """Type what lines of the log must contain."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        self.query_one(LogView).search(event.value)

    @on(Input.Submitted, "#filter")
    def _filter_kept(self) -> None:
        self.query_one("#filter").display = False
        self.query_one(LogView).focus()

    def action_stop(self) -> None:
        """Ask whether to stop the run."""
        if self._watch is not None:
            self.post_message(StopAsked(self._watch.run_id))


def _nothing(_: int) -> list[Row]:
    return [
        (Span("  " + line, "strong" if index == 0 else "dim"),)
        for index, line in enumerate(_NO_RUN)
    ]
