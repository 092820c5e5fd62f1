"""Charts as rows: nothing vanishes, nothing is invented, and a million points cost what ten do."""

import math
import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from composer_tui.runs.series import Series
from composer_tui.widgets.axis import Scale, scale_for, ticks
from composer_tui.widgets.band import Chart, band_rows
from composer_tui.widgets.cells import row_cells
from composer_tui.widgets.curve import SMOOTHINGS, View, curve, last_average, smoothed
from composer_tui.widgets.glyphs import ASCII, BRAILLE, UNICODE, Glyphs
from composer_tui.widgets.raster import raster
from composer_tui.widgets.spark import spark

WIDTH, HEIGHT = 60, 12
PLAIN = View()


def series_of(values: Sequence[float | None]) -> Series:
    series = Series()
    series.extend(values)
    return series


def draw(
    values: Sequence[float | None],
    view: View = PLAIN,
    glyphs: Glyphs = UNICODE,
    held: Scale | None = None,
) -> Chart:
    steps = range(1, len(values) + 1)
    return band_rows(series_of(values), steps, WIDTH, HEIGHT, view, glyphs, held=held)


def text(chart: Chart) -> list[str]:
    return ["".join(span.text for span in row) for row in chart.rows]


def dots(chart: Chart) -> int:
    braille = [ord(c) - 0x2800 for row in text(chart) for c in row if 0x2800 <= ord(c) < 0x2900]
    return sum(mask.bit_count() for mask in braille)


@pytest.mark.parametrize("count", [0, 1, 2, 10, 54, 108, 109, 1000, 50_000])
@pytest.mark.parametrize("view", [View(), View(live=True), View(span=9, smoothing=0.9, log=True)])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_any_number_of_points_fills_the_room_and_no_more(
    count: int, view: View, glyphs: Glyphs
) -> None:
    chart = draw([1 + math.sin(i / 9) for i in range(count)], view, glyphs)
    assert len(chart.rows) == HEIGHT
    assert all(row_cells(row) <= WIDTH for row in chart.rows)
    if count:
        assert f" {count} " in text(chart)[-1]


@given(
    st.lists(
        st.one_of(st.none(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
        max_size=300,
    ),
    st.booleans(),
    st.sampled_from(SMOOTHINGS),
    st.integers(0, 400),
)
def test_no_series_breaks_a_chart(
    values: list[float | None], log: bool, smoothing: float, span: int
) -> None:
    chart = draw(values, View(span=span, smoothing=smoothing, log=log))
    assert all(row_cells(row) <= WIDTH for row in chart.rows)


def test_a_single_point_is_a_dot_and_two_are_a_line() -> None:
    assert dots(draw([3.0])) == 1
    assert dots(draw([1.0, 2.0])) > 20


def test_a_few_points_of_an_ended_run_reach_across_the_whole_width() -> None:
    columns = (WIDTH - 6) * BRAILLE.columns
    drawn = curve(series_of([1.0, 3.0, 2.0]), columns, View())
    assert all(value is not None for value in drawn.mean)
    assert drawn.mean[0] == 1.0
    assert drawn.mean[-1] == 2.0


def test_a_spike_of_one_step_in_fifty_thousand_shows_at_the_top() -> None:
    values = [0.0] * 50_000
    values[31_234] = 1.0
    chart = draw(values)
    upper = text(chart)[: HEIGHT // 4]
    assert any(0x2800 <= ord(c) < 0x2900 for row in upper for c in row)


def test_many_values_a_column_are_a_band_with_a_line_and_not_a_block() -> None:
    values = [(i * 7919 % 1000) / 1000 for i in range(50_000)]
    styles = {span.style for row in draw(values).rows[: HEIGHT - 1] for span in row}
    assert {"band", "line"} <= styles


def test_the_moving_average_is_drawn_over_the_values() -> None:
    values = [math.sin(i / 3) for i in range(100)]
    styles = {span.style for row in draw(values, View(smoothing=0.9)).rows for span in row}
    assert {"trace", "average"} <= styles
    assert "line" not in styles


def test_a_step_without_a_value_is_a_gap_with_a_mark() -> None:
    values: list[float | None] = [1.0] * 20
    values[10] = None
    chart = draw(values)
    assert UNICODE.gap in text(chart)[-1]
    columns = (WIDTH - 6) * BRAILLE.columns
    assert None in curve(series_of(values), columns, View()).mean


def test_values_of_zero_and_less_do_not_break_a_logarithmic_axis() -> None:
    chart = draw([1.0, 0.0, -5.0, 100.0], View(log=True))
    assert chart.scale is not None
    assert chart.scale.log
    nowhere = draw([0.0, -1.0], View(log=True))
    assert nowhere.scale is not None
    assert not nowhere.scale.log


def test_a_window_shows_the_newest_steps() -> None:
    chart = draw([float(i) for i in range(1000)], View(span=64))
    axis = text(chart)[-1]
    assert " 1000 " in axis
    assert " 937 " in axis or " 936 " in axis


def test_the_axis_holds_still_while_the_data_fits_it() -> None:
    first = scale_for([0.0, 1.0], None, log=False)
    assert scale_for([0.1, 0.9], first, log=False) is first
    assert scale_for([0.0, 1.5], first, log=False) is not first
    assert scale_for([0.5, 0.6], first, log=False) is not first


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 40))
@example(1.0, 151.0, 3)
def test_an_axis_has_two_labels_or_more_in_its_rows(low: float, size: float, rows: int) -> None:
    found = ticks(Scale(low, low + size), rows)
    assert all(0 <= tick.row < rows for tick in found)
    assert len({tick.row for tick in found}) == len(found)
    if size > abs(low) * 1e-6:
        assert len(found) >= 2


def test_the_average_of_single_points_is_the_textbook_one() -> None:
    values = [float(i * i % 17) for i in range(50)]
    average, weight, expected = 0.0, 0.0, []
    for value in values:
        average = 0.9 * average + 0.1 * value
        weight = 0.9 * weight + 0.1
        expected.append(average / weight)
    assert smoothed(values, [1] * 50, 0.9) == pytest.approx(expected)
    assert last_average(series_of(values), 0.9) == pytest.approx(expected[-1], abs=0.2)


def test_the_average_of_a_window_remembers_what_was_before_it() -> None:
    values = [0.0] * 900 + [10.0] * 100
    columns = (WIDTH - 6) * BRAILLE.columns
    drawn = curve(series_of(values), columns, View(span=64, smoothing=0.97))
    assert drawn.average[0] is not None
    assert 5.0 < drawn.average[0] < 9.9


def test_a_raster_has_no_holes_between_neighbours() -> None:
    rows = raster([0, 15], [0, 15], 1, 4, BRAILLE)
    assert sum(mask.bit_count() for row in rows for mask in row) == 1 + 15


def test_a_spark_is_as_long_as_its_room_and_rises_with_its_series() -> None:
    line = spark(series_of([float(i) for i in range(500)]), 12, UNICODE)
    assert len(line) == 12
    assert list(line) == sorted(line)
    assert spark(Series(), 5, UNICODE) == " " * 5
    assert len(spark(series_of([1.0]), 5, UNICODE)) == 5


def test_a_million_points_are_drawn_as_fast_as_a_thousand() -> None:
    def seconds(points: int) -> float:
        series = series_of([float(i % 97) for i in range(points)])
        times = []
        for _ in range(15):
            began = time.process_time()
            band_rows(series, range(points), 114, 30, View(smoothing=0.9), UNICODE)
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(1_000_000) < 3 * seconds(1000) + 0.001
