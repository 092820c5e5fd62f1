"""Every number of a step beside its own history; the chosen one is drawn in the big chart."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from textual.binding import Binding, BindingType
from textual.message import Message

from composer_tui.numbers import number
from composer_tui.runs.series import Series
from composer_tui.runs.table import StepTable
from composer_tui.widgets.cells import Row, Span, fit, fit_right
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import Pane
from composer_tui.widgets.spark import spark


class Metric(NamedTuple):
    """A series and the name that people read. ``may_be_null``: a null is news, not an error.

    ``colour`` is the style of its curves, here and in charts.
    """

    series: str
    name: str
    may_be_null: bool = False
    colour: str = "line"


METRICS = (
    Metric("reward_mean", "reward", colour="reward"),
    Metric("loss", "loss total"),
    Metric("channel/grpo", "  grpo", may_be_null=True, colour="grpo"),
    Metric("channel/sdpo", "  sdpo", may_be_null=True, colour="sdpo"),
    Metric("channel/replay", "  replay", may_be_null=True, colour="replay"),
    Metric("grad_norm", "grad norm"),
    Metric("learning_rate", "learn rate"),
    Metric("tokens_per_second", "tok/s"),
    Metric("step_seconds", "step s"),
    Metric("reward_std", "reward std"),
    Metric("seconds/rollout", "rollout s"),
    Metric("seconds/loss", "loss s"),
    Metric("seconds/optimizer", "optim s"),
    Metric("mfu", "mfu", may_be_null=True),
)
_NAMED = {metric.series for metric in METRICS}
_NAME_CELLS = 11
_VALUE_CELLS = 9
NULL_NOTE = "no signal in this step"


def metrics_of(table: StepTable) -> list[Metric]:
    """The known metrics, then what else the trainer measured, as it came."""
    return [*METRICS, *(Metric(name, name) for name in table.series if name not in _NAMED)]


def channel_rows(
    table: StepTable,
    metrics: Sequence[Metric],
    chosen: int,
    width: int,
    glyphs: Glyphs,
) -> list[Row]:
    """A row for each metric: name, newest value, history over the whole run."""
    rows: list[Row] = []
    bars = max(0, width - _NAME_CELLS - _VALUE_CELLS - 3)
    empty = Series()
    for index, metric in enumerate(metrics):
        series = table.series.get(metric.series, empty)
        value = series.last if len(series) else None
        marker = glyphs.cursor if index == chosen else " "
        rows.append(
            (
                Span(marker, "accent"),
                Span(
                    fit(metric.name, _NAME_CELLS, glyphs.ellipsis),
                    "strong" if index == chosen else "dim",
                ),
                Span(fit_right(number(value, glyphs.missing), _VALUE_CELLS, glyphs.ellipsis)),
                Span("  " + spark(series, bars, glyphs), metric.colour),
            )
        )
    return rows


def silent_channels(table: StepTable, metrics: Iterable[Metric] = METRICS) -> list[str]:
    """The channels whose newest value is null although they have had one."""
    found: list[str] = []
    for metric in metrics:
        series = table.series.get(metric.series)
        silent = series is not None and series.last is None and not series.empty
        if metric.may_be_null and silent:
            found.append(metric.name.strip())
    return found


class ChannelTable(Pane):
    """The table of the newest step. Up and down choose the metric of the big chart."""

    title = "channels"
    help_text = (
        "Every number of the newest step, with its history over the whole run. The chosen row is "
        "drawn in the big chart. A dash is a null: a channel that had nothing to learn from in "
        "this step (no group with a difference, no hint, no preference pair) says so, instead of "
        "a silent 0."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "choose(-1)", "Previous metric", show=False, id="channels.previous"),
        Binding("down,j", "choose(1)", "Next metric", show=False, id="channels.next"),
    ]

    class Chosen(Message):
        """A person chose the metric of the big chart."""

        def __init__(self, metric: Metric) -> None:
            super().__init__()
            self.metric = metric

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._table = StepTable()
        self._metrics: list[Metric] = list(METRICS)
        self.chosen = 0

    def show(self, table: StepTable) -> None:
        """Show the newest row of the table."""
        self._table = table
        self._metrics = metrics_of(table)
        self.redraw()

    @property
    def metric(self) -> Metric:
        """The chosen metric."""
        return self._metrics[min(self.chosen, len(self._metrics) - 1)]

    def heading(self) -> Row:
        if not len(self._table):
            return super().heading()
        return (*super().heading(), Span(f"  step {self._table.steps[-1]:,}", "dim"))

    def note(self) -> Row:
        silent = silent_channels(self._table)
        if not silent:
            return ()
        room = self.content_size.width - 6
        text = f"{self.glyphs.missing} {NULL_NOTE}"
        return (Span(fit(text, min(len(text), room), self.glyphs.ellipsis), "dim"),)

    def content(self, width: int, height: int) -> Sequence[Row]:
        top = max(0, min(self.chosen - height + 1, len(self._metrics) - height))
        shown = self._metrics[top : top + height]
        return channel_rows(self._table, shown, self.chosen - top, width, self.glyphs)

    def action_choose(self, move: int) -> None:
        """Choose the metric ``move`` rows further down."""
        self.chosen = (self.chosen + move) % len(self._metrics)
        self.redraw()
        self.post_message(self.Chosen(self.metric))
