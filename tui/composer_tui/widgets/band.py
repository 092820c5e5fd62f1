"""A chart as rows: a dim band from minimum to maximum, a bright line through the means.

A spike can never vanish: the band reaches every value of its column. Several steps in one column
become a band instead of the solid block that their line would be.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len

from composer_tui.runs.series import Series
from composer_tui.widgets.axis import Scale, Tick, scale_for, ticks
from composer_tui.widgets.cells import Row, Span, fit_right
from composer_tui.widgets.curve import Curve, Values, View, curve
from composer_tui.widgets.glyphs import Glyphs, PixelGrid
from composer_tui.widgets.raster import raster

_LEAST_WIDTH, _LEAST_HEIGHT = 12, 3
_LEAST_GUTTER = 6
_ROOM_FOR_A_LABEL_BETWEEN = 30


class Chart(NamedTuple):
    """Rows to show, and the axis they were drawn on: the next chart of the series holds it."""

    rows: list[Row]
    scale: Scale | None


def band_rows(
    series: Series,
    steps: Sequence[int],
    width: int,
    height: int,
    view: View,
    glyphs: Glyphs,
    *,
    colour: str = "line",
    held: Scale | None = None,
    mark_gaps: bool = True,
) -> Chart:
    """``height`` rows of ``width`` cells. ``steps[i]`` is the step of the series' point ``i``.

    ``colour`` is the style of the curve; its band and its dim line have styles named after it.
    """
    if width < _LEAST_WIDTH or height < _LEAST_HEIGHT:
        return Chart([], held)
    if not len(series):
        return Chart(_message("no steps yet", width, height), None)
    plot_rows = height - 1
    gutter = _LEAST_GUTTER
    shown = curve(series, (width - gutter) * glyphs.pixels.columns, view)
    # On a logarithmic axis the lows may lie decades below, or have no place at all: they are drawn
    # down to the bottom, and the axis is for the rest.
    lows = shown.mean if view.log else shown.low
    scale = scale_for([*lows, *shown.high], held, log=view.log)
    labels = ticks(scale, plot_rows)
    needed = max((len(tick.label) for tick in labels), default=0) + 1
    if needed > gutter:
        gutter = needed
        shown = curve(series, (width - gutter) * glyphs.pixels.columns, view)
    if all(value is None for value in shown.mean):
        return Chart(_message("no values yet", width, height), None)
    plot = _plot(shown, scale, width - gutter, plot_rows, glyphs.pixels, _tones(colour))
    rows = [(*_label(labels, y, gutter, glyphs), *line) for y, line in enumerate(plot)]
    gaps = shown.gaps if mark_gaps else []
    rows.append(_axis_row(shown, steps, gutter, width, glyphs, gaps))
    return Chart(rows, scale)


def _message(text: str, width: int, height: int) -> list[Row]:
    rows: list[Row] = [()] * height
    rows[height // 2] = (Span(" " * max(0, (width - len(text)) // 2)), Span(text, "dim"))
    return rows


class _Layer(NamedTuple):
    masks: list[bytes]
    style: str
    glyphs: tuple[str, ...]


class _Tones(NamedTuple):
    line: str
    trace: str
    band: str


def _tones(colour: str) -> _Tones:
    if colour == "line":
        return _Tones("line", "trace", "band")
    return _Tones(colour, f"{colour}-trace", f"{colour}-band")


def _plot(
    shown: Curve, scale: Scale, width: int, height: int, grid: PixelGrid, tones: _Tones
) -> list[Row]:
    pixels = height * grid.rows

    def line(values: Values, style: str) -> _Layer:
        places = [scale.pixel(value, pixels) for value in values]
        return _Layer(raster(places, places, width, height, grid), style, grid.glyphs)

    layers = [line(shown.mean, tones.trace if shown.average else tones.line)]
    if shown.low != shown.mean or shown.high != shown.mean:
        top = [scale.pixel(value, pixels) for value in shown.high]
        masks = raster(top, _floor(shown, scale, pixels), width, height, grid)
        layers.append(_Layer(masks, tones.band, grid.band))
    if shown.average:
        layers.insert(0, line(shown.average, "average"))
    return [_cells(layers, y, width) for y in range(height)]


def _floor(shown: Curve, scale: Scale, pixels: int) -> list[int | None]:
    """The band's lower edge: on a logarithmic axis a value of 0 or less is at the bottom."""
    return [
        None if low is None else pixels - 1 if (y := scale.pixel(low, pixels)) is None else y
        for low in shown.low
    ]


def _cells(layers: Sequence[_Layer], y: int, width: int) -> Row:
    """One row of cells: the first layer that has something in a cell has all of it.

    A terminal cell has one colour; two layers in one cell would be a blot of either's colour.
    """
    drawn = [" "] * width
    chosen = [0] * width
    style = 0
    for x in range(width):
        for index, layer in enumerate(layers):
            mask = layer.masks[y][x]
            if mask:
                drawn[x], style = layer.glyphs[mask], index
                break
        chosen[x] = style  # an empty cell goes on in the style before it: fewer colour changes
    spans: list[Span] = []
    for index, run in groupby(range(width), chosen.__getitem__):
        spans.append(Span("".join([drawn[x] for x in run]), layers[index].style))
    return tuple(spans)


def _label(labels: Sequence[Tick], y: int, gutter: int, glyphs: Glyphs) -> Row:
    for tick in labels:
        if tick.row == y:
            return (Span(fit_right(tick.label, gutter - 1) + glyphs.tick, "axis"),)
    return (Span(" " * (gutter - 1) + glyphs.axis, "axis"),)


def _axis_row(
    shown: Curve,
    steps: Sequence[int],
    gutter: int,
    width: int,
    glyphs: Glyphs,
    gaps: Sequence[int],
) -> Row:
    """The horizontal axis: step numbers where their points stand, and marks under the gaps."""
    cells = width - gutter
    per_cell = glyphs.pixels.columns
    line = [glyphs.rule] * cells
    for column in gaps:
        line[min(cells - 1, column // per_cell)] = glyphs.gap
    last = shown.last_column // per_cell
    places = {shown.stop - 1: last, shown.start: 0}
    if last >= _ROOM_FOR_A_LABEL_BETWEEN:
        middle = (shown.start + shown.stop - 1) // 2
        places[middle] = last // 2
    taken: list[tuple[int, int]] = []
    for index, cell in places.items():
        text = f" {steps[index]} "
        start = max(0, min(cells - cell_len(text), cell - cell_len(text) // 2))
        stop = start + len(text)
        if stop <= cells and all(stop <= a or start >= b for a, b in taken):
            taken.append((start, stop))
            line[start:stop] = text
    text = "".join(line)
    lead = Span(" " * (gutter - 1) + glyphs.corner, "axis")
    return (lead, *_marked(text, glyphs.gap))


def _marked(text: str, gap: str) -> Row:
    return tuple(
        Span("".join(run), "bad" if is_gap else "axis") for is_gap, run in groupby(text, gap.__eq__)
    )
