"""A chart of one metric over the steps of a run."""

from collections.abc import Sequence

from composer_tui.numbers import number, smoothing_name
from composer_tui.runs.series import Series
from composer_tui.runs.table import StepTable
from composer_tui.widgets.axis import Scale
from composer_tui.widgets.band import band_rows
from composer_tui.widgets.cells import Row, Span, row_cells
from composer_tui.widgets.channel_table import METRICS, Metric
from composer_tui.widgets.curve import View, last_average
from composer_tui.widgets.pane import Pane


class BandChart(Pane):
    """One metric of a table: the band of its values, the line of its means, its moving average."""

    title = "charts"
    help_text = (
        "The dim band reaches from the lowest to the highest value of each column, the bright line "
        "is the mean: a spike can not vanish. With smoothing on, the bright line is the moving "
        "average and the dim line the values. A cross on the axis marks steps without a value."
    )

    def __init__(self, metric: Metric = METRICS[0], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.metric = metric
        self.view = View()
        self._table = StepTable()
        self._series = Series()
        self._scale: Scale | None = None

    def show(self, table: StepTable, *, live: bool) -> None:
        """Show the newest state of a table; ``live`` when more steps will come."""
        self.view = self.view._replace(live=live)
        self._look_at(table)
        self.redraw()

    def draw(self, metric: Metric) -> None:
        """Draw another metric of the same table."""
        if metric != self.metric:
            self.metric, self._scale = metric, None
            self._look_at(self._table)
            self.redraw()

    def _look_at(self, table: StepTable) -> None:
        if table is not self._table:
            self._scale = None
        self._table = table
        self._series = table.series.get(self.metric.series) or Series()

    def heading(self) -> Row:
        value = self._series.last if len(self._series) else None
        row: Row = (
            Span(self.metric.name.strip(), "title"),
            Span(f"  {number(value, self.glyphs.missing)}", self.metric.colour),
        )
        if not self.view.smoothing:
            return row
        average = number(last_average(self._series, self.view.smoothing), self.glyphs.missing)
        name = Span(f"  ema {smoothing_name(self.view.smoothing)} ", "dim")
        room = self.content_size.width - 6
        for tail in ((name, Span(average, "average")), (Span(f"  {average}", "average"),)):
            if row_cells((*row, *tail)) <= room:
                return (*row, *tail)
        return row

    def heading_right(self) -> Row:
        words = []
        if 0 < self.view.span < len(self._series):
            words.append(f"last {self.view.span:,}")
        if self.view.log:
            words.append("log")
        return (Span(" ".join(words), "accent"),) if words else ()

    def content(self, width: int, height: int) -> Sequence[Row]:
        chart = band_rows(
            self._series,
            self._table.steps,
            width,
            height,
            self.view,
            self.glyphs,
            colour=self.metric.colour,
            held=self._scale,
            mark_gaps=not self.metric.may_be_null,
        )
        self._scale = chart.scale
        return chart.rows

    def _look(self, view: View) -> None:
        self.view, self._scale = view, None
        self.redraw()

    def smooth(self, direction: int) -> None:
        """More smoothing (1) or less (-1); past either end it starts again."""
        self._look(self.view.smoother() if direction > 0 else self.view.rougher())

    def toggle_log(self) -> None:
        """Switch the vertical axis between linear and logarithmic."""
        self._look(self.view._replace(log=not self.view.log))

    def zoom(self, direction: int) -> None:
        """Half as many of the newest steps (1), twice as many (-1), all (0)."""
        points = len(self._series)
        if direction == 0 or not points:
            self._look(self.view._replace(span=0))
        elif direction > 0:
            self._look(self.view.zoomed_in(points))
        else:
            self._look(self.view.zoomed_out(points))
