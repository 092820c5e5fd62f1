"""The line above the keys: what the run costs and what is not as it should be, if anything."""

from collections.abc import Sequence

from composer_tui.runs.feed import RunFeed
from composer_tui.widgets.cells import Row, Span, as_many_as_fit, cut
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import CellWidget


def irregularities(feed: RunFeed) -> list[str]:
    """What of a stream is missing, doubled or unreadable."""
    state = feed.state
    counts = (
        (state.missing, "event missing", "events missing"),
        (state.duplicates, "duplicate", "duplicates"),
        (feed.bad_lines, "bad line", "bad lines"),
        (feed.truncated_lines, "line cut", "lines cut"),
        (len(feed.dropped_columns), "metric left out", "metrics left out"),
    )
    return [f"{count:,} {one if count == 1 else many}" for count, one, many in counts if count]


def status_line_row(
    said: str, costs: Sequence[str], feed: RunFeed, width: int, glyphs: Glyphs
) -> Row:
    """How a stop went, then what the run costs, then what is irregular in the stream."""
    parts: list[Row] = [(Span(cut(said, width - 2, glyphs.ellipsis), "strong"),)] if said else []
    parts += [(Span(words, "dim" if index else "strong"),) for index, words in enumerate(costs)]
    parts += [(Span(f"{glyphs.alert} {words}", "warn"),) for words in irregularities(feed)]
    return (Span(" "), *as_many_as_fit(parts, Span("   "), width - 2)) if parts else ()


class StatusLine(CellWidget):
    """Takes no room while there is nothing to say."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes="status")
        self._feed: RunFeed | None = None
        self._said = ""
        self._costs: tuple[str, ...] = ()
        self.display = False

    def show(self, feed: RunFeed, said: str, costs: tuple[str, ...] = ()) -> None:
        """Show what a feed misses, what was ``said`` of a stop, and what the run costs."""
        self._feed, self._said, self._costs = feed, said, costs
        self.display = bool(said or costs or irregularities(feed))
        self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        if self._feed is None or not height:
            return []
        return [status_line_row(self._said, self._costs, self._feed, width, self.glyphs)]
