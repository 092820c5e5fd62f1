"""Rows of cells: they are as wide as they say, and a repaint touches what changed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from composer_engine.protocol import DeviceSample, MemorySampled, SampleGenerated
from composer_tui.numbers import age, duration, memory, number
from composer_tui.runs.state import LIVES, RunState
from composer_tui.runs.table import StepTable
from composer_tui.widgets.cells import (
    Row,
    Span,
    apart,
    as_many_as_fit,
    changed_cells,
    cut,
    fit,
    fit_right,
    fit_row,
    framed,
    row_cells,
    wrap,
)
from composer_tui.widgets.glyphs import ASCII, UNICODE
from composer_tui.widgets.header import HeaderFacts, header_row, tab_at
from composer_tui.widgets.memory_gauge import gauge_rows
from composer_tui.widgets.meter import meter
from composer_tui.widgets.progress_line import progress_row
from composer_tui.widgets.sample_view import sample_rows
from composer_tui.widgets.status import status_of

words = st.text(st.sampled_from("abc 漢字🙂é⠿━"), max_size=30)
rows = st.lists(st.tuples(words, st.sampled_from(["text", "dim"])), max_size=6).map(
    lambda spans: tuple(Span(*span) for span in spans)
)


def plain(row: Row) -> str:
    return "".join(span.text for span in row)


@given(words, st.integers(0, 40))
def test_text_is_cut_and_fitted_by_cells_not_by_characters(text: str, cells: int) -> None:
    assert cell_len(cut(text, cells)) <= cells
    assert cell_len(fit(text, cells)) == cells
    assert cell_len(fit_right(text, cells)) == cells


@given(rows, rows, st.integers(1, 60))
def test_rows_are_exactly_as_wide_as_asked(left: Row, right: Row, cells: int) -> None:
    assert row_cells(fit_row(left, cells)) == cells
    assert row_cells(apart(left, right, cells)) == cells


@given(words, st.integers(2, 30))
def test_wrapped_lines_fit_and_keep_every_word(text: str, cells: int) -> None:
    lines = wrap(text, cells)
    assert all(cell_len(line) <= cells for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_code_keeps_its_indentation_when_it_is_wrapped() -> None:
    assert wrap("def f():\n    return 1", 40) == ["def f():", "    return 1"]


@given(rows, rows, st.integers(1, 40))
def test_what_a_repaint_leaves_out_is_equal(old: Row, new: Row, cells: int) -> None:
    before, after = fit_row(old, cells), fit_row(new, cells)
    changed = changed_cells(before, after)
    if changed is None:
        assert before == after
        return
    first, last = changed
    assert 0 <= first < last
    was = [(c, s.style) for s in before for c in s.text]
    now = [(c, s.style) for s in after for c in s.text]
    if len(was) == len(now) == cells:
        assert was[:first] == now[:first]
        assert was[last:] == now[last:]


def test_one_digit_that_changed_is_one_cell_to_paint() -> None:
    old, new = (Span("step 611/1200"),), (Span("step 612/1200"),)
    assert changed_cells(old, new) == (7, 8)


@given(rows, st.integers(6, 60), st.integers(3, 9))
def test_a_box_has_its_size_whatever_is_in_it(row: Row, width: int, height: int) -> None:
    box = framed([row] * 12, width, height, UNICODE, title=row, right=row, note=row)
    assert len(box) == height
    assert {row_cells(line) for line in box} == {width}


def test_labels_that_do_not_fit_are_left_out_whole() -> None:
    parts: list[Row] = [(Span("training"),), (Span("step 12"),), (Span("a-long-name"),)]
    assert plain(as_many_as_fit(parts, Span("  "), 20)) == "training  step 12"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (float("nan"), "—"),
        (0.0, "0"),
        (1.2141, "1.214"),
        (0.0617, "0.0617"),
        (1.9e-5, "1.9e-5"),
        (-0.5, "-0.500"),
        (41_234.0, "41.23k"),
        (3e13, "3.0e13"),
    ],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_times_and_sizes_have_units() -> None:
    assert [duration(s) for s in (0.046, 4.12, 42, 1051, 7500, 277_200)] == [
        "46ms",
        "4.1s",
        "42s",
        "17m31s",
        "2h05m",
        "3d05h",
    ]
    assert [age(s) for s in (0, 42, 1080, 27_000, 300_000)] == ["now", "42s", "18m", "7h", "3d"]
    assert [memory(b) for b in (512, 900 << 20, 61 << 30)] == ["512 B", "900 MiB", "61.0 GiB"]


def test_every_state_is_a_glyph_and_a_word() -> None:
    seen = {(status.glyph, status.word) for status in map(status_of, LIVES)}
    assert len(seen) == len(LIVES)
    assert status_of("training", stopping=True).word == "stopping"
    assert status_of("finished", stopping=True).word == "finished"


@pytest.mark.parametrize("width", range(40, 130, 7))
def test_the_header_keeps_its_tabs_and_drops_what_does_not_fit(width: int) -> None:
    facts = HeaderFacts(
        status_of("training"), "a-very-long-run-name-2026", "short", "612/1200", "0.85", "cuda", 2
    )
    row = header_row("monitor", facts, width, UNICODE)
    assert row_cells(row) == width
    assert "2 Monitor" in plain(row)


def test_a_click_on_a_tab_is_that_screen() -> None:
    row = plain(header_row("launch", HeaderFacts(), 80, UNICODE))
    for name, label in (("launch", "1 Launch"), ("monitor", "2 Monitor"), ("runs", "3 Runs")):
        assert tab_at(row.index(label), "launch", 80) == name
    assert tab_at(70, "launch", 80) is None


@given(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 50))
def test_a_meter_is_as_long_as_its_room(part: float, mark: float | None, cells: int) -> None:
    assert row_cells(meter(part, cells, UNICODE, mark=mark)) == cells


@pytest.mark.parametrize("width", [20, 28, 38, 60, 110])
@pytest.mark.parametrize("on_device", [True, False])
def test_the_gauge_fits_its_pane(width: int, on_device: bool) -> None:
    device = DeviceSample(index=0, utilization=0.97, power_watts=612.0, temperature_c=71.0)
    sample = MemorySampled(
        allocated_bytes=(61 << 30) if on_device else None,
        reserved_bytes=64 << 30,
        peak_bytes=66 << 30,
        total_bytes=80 << 30,
        host_rss_bytes=823 << 20,
        host_total_bytes=23 << 30,
        devices=(device,),
    )
    table = StepTable()
    table.extend([1], [0.0], {"allocated_bytes": [61e9], "host_rss_bytes": [8e8]})
    for height in (1, 3):
        gauge = gauge_rows(sample, table, width, height, ASCII)
        assert len(gauge) <= height
        assert all(row_cells(row) <= width for row in gauge)
        assert ("61.0" if on_device else "823") in plain(gauge[0])


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_progress_line_fits_before_the_first_event_too(width: int) -> None:
    assert row_cells(progress_row(RunState(), 0.0, width, UNICODE)) <= width


def test_a_sample_keeps_its_lines_and_fits() -> None:
    sample = SampleGenerated(step=1, prompt="漢字 " * 9, completion="def f():\n    x", reward=None)
    shown = sample_rows(sample, 20, UNICODE)
    assert all(row_cells(row) <= 20 for row in shown)
    assert any("    x" in plain(row) for row in shown)
