"""Columns of numbers: nothing is lost between what is stored and what is drawn."""

import math
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_tui.runs.series import Series, bucket_for, to_floats
from composer_tui.runs.table import MAX_SERIES, StepColumn, StepTable

VALUES = st.one_of(st.none(), st.just(math.nan), st.floats(width=32, allow_infinity=False))
BATCHES = st.lists(st.lists(VALUES, max_size=70), max_size=12)


def series_of(batches: list[list[float | None]]) -> tuple[Series, list[float]]:
    """A series that was fed the batches, and the numbers it should hold."""
    series = Series()
    for batch in batches:
        series.extend(batch)
    return series, [math.nan if v is None else v for batch in batches for v in batch]


def assert_same(found: "list[float] | array[float]", expected: list[float]) -> None:
    assert [None if math.isnan(v) else v for v in found] == [
        None if math.isnan(v) else v for v in expected
    ]


def assert_draws(series: Series, values: list[float], start: int, bucket: int) -> None:
    """Every bucket of an envelope is what looking at each value would give."""
    columns = 2 + max(0, len(values) - start) // bucket
    envelope = series.envelope(start, bucket, columns)
    for column in range(columns):
        first = start + column * bucket
        there = [v for v in values[first : first + bucket] if not math.isnan(v)]
        mean = envelope.mean[column]
        assert envelope.low[column] == (min(there) if there else None)
        assert envelope.high[column] == (max(there) if there else None)
        if mean is None:
            assert not there
        else:
            scale = max(map(abs, there))
            assert mean == pytest.approx(math.fsum(there) / len(there), abs=scale * 1e-5 + 1e-44)


@given(BATCHES, st.integers(0, 900), st.integers(1, 600))
def test_an_envelope_never_loses_a_spike(
    batches: list[list[float | None]], start: int, bucket: int
) -> None:
    series, values = series_of(batches)
    assert_same(series.values(0, len(series)), values)
    assert_draws(series, values, start, bucket)


@given(BATCHES, st.integers(0, 900), BATCHES)
def test_what_is_forgotten_on_resume_leaves_no_trace(
    before: list[list[float | None]], length: int, after: list[list[float | None]]
) -> None:
    series, values = series_of(before)
    series.truncate(length)
    for batch in after:
        series.extend(batch)
    values = [*values[:length], *series_of(after)[1]]
    assert_same(series.values(0, len(series)), values)
    for bucket in (1, 3, 16, 48, 256):
        assert_draws(series, values, 0, bucket)


@settings(max_examples=20)
@given(st.integers(0, 69_999), st.integers(1, 400))
def test_one_spike_in_a_long_run_shows_at_every_zoom(position: int, columns: int) -> None:
    values = array("f", [0.5]) * 70_000
    values[position] = 9.0
    series = Series()
    series.extend(values)
    bucket = bucket_for(len(values), columns)
    envelope = series.envelope(0, bucket, columns)
    assert envelope.high[position // bucket] == 9.0
    assert sum(high == 9.0 for high in envelope.high) == 1


def test_a_bucket_that_no_chart_asks_for_is_still_right() -> None:
    values = [math.sin(i) for i in range(10_000)]
    series = Series()
    series.extend(values)
    assert_draws(series, list(to_floats(values)), 7, 4_999)


def test_numbers_beyond_float32_are_held_at_its_edge() -> None:
    series = Series()
    series.extend([1e300, -1e300, 10**400, None])
    low, high, _ = series.envelope(0, 4, 1)
    assert high[0] is not None
    assert low == [-high[0]]
    assert math.isfinite(high[0])
    assert high[0] > 3.4e38


def test_the_last_value_is_none_when_the_newest_row_has_none() -> None:
    series = Series()
    assert [series.last] == [None]
    series.extend([1.0, 2.0])
    assert [series.last, series.newest] == [2.0, 2.0]
    series.extend([None])
    assert [series.last, series.newest] == [None, 2.0]


def test_a_metric_that_never_comes_costs_nothing() -> None:
    series = Series()
    series.extend([None] * 100_000)
    assert (len(series), series.empty) == (100_000, True)
    assert math.isnan(series.values(99_999, 100_000)[0])
    series.extend([4.0])
    assert series.envelope(98_304, 4096, 1).high == [4.0]


@pytest.mark.parametrize(("start", "bucket"), [(-1, 1), (0, 0)])
def test_a_bucket_that_cannot_be_is_refused(start: int, bucket: int) -> None:
    with pytest.raises(ValueError, match="no bucket"):
        Series().envelope(start, bucket, 1)


@given(st.integers(0, 10**9), st.integers(1, 500))
def test_a_bucket_is_the_smallest_nice_one_that_fits(n: int, columns: int) -> None:
    bucket = bucket_for(n, columns)
    assert bucket * columns >= n
    multiple = bucket
    while multiple % 16 == 0:
        multiple //= 16
    assert multiple in {1, 2, 3, 4, 6, 8, 12}
    smaller = [m * 16**k for k in range(9) for m in (1, 2, 3, 4, 6, 8, 12) if m * 16**k < bucket]
    assert all(size * columns < n for size in smaller)


@given(st.lists(st.lists(st.integers(0, 300), max_size=30), max_size=8), st.integers(0, 320))
def test_a_table_holds_each_step_once_and_the_newest_attempt_wins(
    batches: list[list[int]], probe: int
) -> None:
    table, expected = StepTable(["loss"]), list[tuple[int, float]]()
    for number, batch in enumerate(batches):
        losses = [number + step / 1024 for step in batch]
        table.extend(batch, losses, {"loss": losses})
        for step, loss in zip(batch, losses, strict=True):
            expected = [*(row for row in expected if row[0] < step), (step, loss)]
    assert list(table.steps) == [step for step, _ in expected]
    assert [table.steps[i] for i in range(len(table))] == list(table.steps)
    assert table.times.tolist() == [loss for _, loss in expected]
    assert_same(table.series["loss"].values(0, len(table)), [loss for _, loss in expected])
    assert table.steps.row_of(probe) == sum(step < probe for step, _ in expected)


@given(st.sets(st.integers(0, 200)), st.lists(st.integers(0, 200), unique=True, max_size=20))
def test_late_rows_find_their_places_and_replace_nothing(there: set[int], late: list[int]) -> None:
    table = StepTable()
    steps = sorted(there)
    table.extend(steps, steps, {"a": [float(step) for step in steps]})
    table.merge(late, [step + 0.5 for step in late], {"b": [float(step) for step in late]})
    new = set(late) - there
    rows = sorted(there | new)
    assert list(table.steps) == rows
    assert table.times.tolist() == [step + 0.5 * (step in new) for step in rows]
    for name, steps_with_it in (("a", there), ("b", new)):
        if name in table.series:
            column = table.series[name].values(0, len(table))
            assert_same(column, [step if step in steps_with_it else math.nan for step in rows])


def test_a_metric_that_appears_late_is_missing_before() -> None:
    table = StepTable(["loss"])
    table.extend([1, 2], [0.0, 1.0], {"loss": [0.5, 0.25]})
    table.extend([3], [2.0], {"kl": [0.125]})
    assert list(table.series) == ["loss", "kl"]
    assert_same(table.series["kl"].values(0, 3), [math.nan, math.nan, 0.125])
    assert_same(table.series["loss"].values(0, 3), [0.5, 0.25, math.nan])


def test_a_stream_that_invents_names_is_given_no_more_room() -> None:
    table = StepTable()
    table.extend([1], [0.0], {f"m{i}": [1.0] for i in range(MAX_SERIES + 3)})
    assert len(table.series) == MAX_SERIES
    assert len(table.left_out) == 3


def test_neighbouring_steps_take_no_room() -> None:
    column = StepColumn()
    column.extend(range(1, 100_001))
    column.extend(range(200_001, 200_011))
    assert len(column._rows) == 2
    assert column[-1] == 200_010
    assert column[99_999:100_001] == [100_000, 200_001]
    with pytest.raises(IndexError):
        column[100_010]
