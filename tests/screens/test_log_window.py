"""The log's window: it follows, or it holds still, whatever the ring drops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_tui.runs.log import LogLine, LogRing
from composer_tui.widgets.cells import row_cells
from composer_tui.widgets.glyphs import UNICODE
from composer_tui.widgets.log_view import LogWindow, log_row

HEIGHT = 5


def fill(ring: LogRing, first: int, count: int) -> None:
    ring.extend(LogLine(None, "info", f"line {n}") for n in range(first, first + count))


def shown(window: LogWindow) -> list[str]:
    return [line.text for line in window.rows(HEIGHT)]


@pytest.fixture
def ring() -> LogRing:
    ring = LogRing(capacity=50)
    fill(ring, 0, 30)
    return ring


def test_a_new_window_follows_the_newest_lines(ring: LogRing) -> None:
    window = LogWindow()
    window.watch(ring)
    fill(ring, 30, 1)
    assert shown(window) == [f"line {n}" for n in range(26, 31)]


def test_scrolling_up_holds_its_lines_while_new_ones_come(ring: LogRing) -> None:
    window = LogWindow()
    window.watch(ring)
    window.scroll(-10, HEIGHT)
    before = shown(window)
    fill(ring, 30, 15)
    assert not window.following
    assert shown(window) == before


def test_lines_that_fell_out_of_the_ring_are_not_shown_in_their_place(ring: LogRing) -> None:
    window = LogWindow()
    window.watch(ring)
    window.scroll(-100, HEIGHT)
    fill(ring, 30, 60)
    assert shown(window) == [f"line {n}" for n in range(40, 45)]


def test_scrolling_to_the_end_follows_again(ring: LogRing) -> None:
    window = LogWindow()
    window.watch(ring)
    window.scroll(-3, HEIGHT)
    window.scroll(3, HEIGHT)
    assert window.following


def test_a_filter_finds_lines_that_come_later_too(ring: LogRing) -> None:
    window = LogWindow()
    window.watch(ring)
    window.search("LINE 3")
    assert shown(window) == ["line 3"]
    fill(ring, 30, 3)
    assert shown(window) == ["line 3", "line 30", "line 31", "line 32"]
    window.search("")
    assert shown(window)[-1] == "line 32"


def test_a_level_is_a_filter(ring: LogRing) -> None:
    window = LogWindow()
    ring.append(LogLine(1.0, "error", "it broke"))
    window.watch(ring)
    window.search("error")
    assert shown(window) == ["it broke"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 40)),
            st.tuples(st.just("scroll"), st.integers(-30, 30)),
            st.tuples(st.just("search"), st.sampled_from(["", "1", "line 2"])),
        ),
        max_size=20,
    )
)
def test_a_filter_shows_exactly_the_matching_lines_of_the_ring(
    acts: list[tuple[str, int | str]],
) -> None:
    ring, window = LogRing(capacity=50), LogWindow()
    window.watch(ring)
    for act, value in acts:
        if act == "add" and isinstance(value, int):
            fill(ring, ring.total, value)
        elif act == "scroll" and isinstance(value, int):
            window.scroll(value, HEIGHT)
        elif isinstance(value, str):
            window.search(value)
        matching = [line.text for line in ring.lines if window.needle in line.text]
        assert window.count() == len(matching)
        lines = shown(window)
        assert len(lines) == min(HEIGHT, len(matching))
        if window.following and lines:
            assert lines == matching[-HEIGHT:]
        if lines:
            start = matching.index(lines[0])
            assert lines == matching[start : start + HEIGHT]


@pytest.mark.parametrize("left", [0, 16, 500])
def test_a_row_of_the_log_fits_and_moves_sideways(left: int) -> None:
    line = LogLine(None, "warning", "漢字🙂 wide text " * 9)
    assert row_cells(log_row(line, 60, left, UNICODE)) <= 60
