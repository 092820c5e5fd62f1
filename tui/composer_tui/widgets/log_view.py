"""A run's log: only the lines on show are ever drawn, whatever the ring holds.

Lines are known by their number in the whole log, so the place a person reads keeps still while
new lines come and old ones fall out of the ring.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar

from rich.cells import cell_len, chop_cells
from textual.binding import Binding, BindingType
from textual.message import Message

from composer_engine.protocol import Level
from composer_tui.numbers import clock
from composer_tui.runs.log import LogLine, LogRing
from composer_tui.widgets.cells import Row, Span, cut
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import Pane

_LEVELS: dict[Level, tuple[str, str]] = {
    "debug": ("DEBUG", "dim"),
    "info": ("INFO ", "text"),
    "warning": ("WARN ", "warn"),
    "error": ("ERROR", "bad"),
}
_SIDEWAYS = 16


def log_row(line: LogLine, width: int, left: int, glyphs: Glyphs) -> Row:
    """``16:42:07 INFO  text``, the text from cell ``left`` on."""
    word, style = _LEVELS[line.level]
    text = line.text
    if left:
        text = "".join(chop_cells(text, left)[1:]) if cell_len(text) > left else ""
    lead = f"{clock(line.time)} "
    body = cut(text, max(0, width - len(lead) - 6), glyphs.ellipsis)
    return (
        Span(lead, "axis"),
        Span(word + " ", "dim" if style == "text" else style),
        Span(body, style),
    )


class LogWindow:
    """Which lines of a ring are on show: those that match, from ``top`` on, or the newest."""

    def __init__(self) -> None:
        self._ring = LogRing()
        self._needle = ""
        self._matches: deque[int] = deque()
        self._seen = 0
        self.top: int | None = None

    @property
    def following(self) -> bool:
        """True while the newest lines are on show."""
        return self.top is None

    @property
    def needle(self) -> str:
        """What lines must contain to be shown, in lower case; empty shows all."""
        return self._needle

    def watch(self, ring: LogRing) -> None:
        """Look at a ring; another one than before starts at its end."""
        if ring is not self._ring:
            self._ring, self.top = ring, None
            self.search(self._needle)

    def search(self, needle: str) -> None:
        """Show only lines that contain ``needle``, in either case."""
        self._needle = needle.lower()
        self._matches.clear()
        self._seen = self._ring.dropped
        self._catch_up()

    def count(self) -> int:
        """How many lines there are to scroll through."""
        self._catch_up()
        return len(self._matches) if self._needle else len(self._ring.lines)

    def rows(self, height: int) -> list[LogLine]:
        """The lines on show, at most ``height``."""
        total = self.count()
        newest = max(0, total - height)
        first = newest if self.top is None else min(newest, self._index(self.top))
        lines = self._ring.lines
        if not self._needle:
            return list(islice(lines, first, first + height))
        dropped = self._ring.dropped
        return [lines[n - dropped] for n in islice(self._matches, first, first + height)]

    def scroll(self, move: int, height: int) -> None:
        """Move by lines; reaching the end follows again."""
        total = self.count()
        newest = max(0, total - height)
        first = newest if self.top is None else min(newest, self._index(self.top))
        first = max(0, first + move)
        self.top = None if first >= newest else self._number(first)

    def end(self) -> None:
        """Follow the newest line."""
        self.top = None

    def _index(self, number: int) -> int:
        if self._needle:
            return sum(1 for match in self._matches if match < number)
        return max(0, number - self._ring.dropped)

    def _number(self, index: int) -> int:
        return self._matches[index] if self._needle else self._ring.dropped + index

    def _catch_up(self) -> None:
        ring = self._ring
        if not self._needle or self._seen >= ring.total:
            self._forget(ring.dropped)
            return
        start = max(self._seen, ring.dropped)
        fresh = islice(reversed(ring.lines), ring.total - start)
        needle = self._needle
        found = [
            ring.total - 1 - back
            for back, line in enumerate(fresh)
            if needle in line.text.lower() or needle == line.level
        ]
        self._matches.extend(reversed(found))
        self._seen = ring.total
        self._forget(ring.dropped)

    def _forget(self, dropped: int) -> None:
        while self._matches and self._matches[0] < dropped:
            self._matches.popleft()


class LogView(Pane):
    """The log pane."""

    title = "log"
    help_text = (
        "What the engine said, newest at the bottom. Scrolling up stops following and keeps the "
        "place; end follows again. / shows only the lines that contain a text (or are of a level: "
        "warning, error). Left and right move long lines."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_lines(-1)", "Older line", show=False, id="log.up"),
        Binding("down,j", "scroll_lines(1)", "Newer line", show=False, id="log.down"),
        Binding("pageup", "scroll_page(-1)", "Older page", show=False, id="log.page_up"),
        Binding("pagedown", "scroll_page(1)", "Newer page", show=False, id="log.page_down"),
        Binding("home,g", "oldest", "Oldest", show=False, id="log.oldest"),
        Binding("end,G", "newest", "Follow", id="log.newest", tooltip="Follow the newest line"),
        Binding("left,h", "sideways(-1)", "Left", show=False, id="log.left"),
        Binding("right", "sideways(1)", "Right", show=False, id="log.right"),
        Binding("slash", "filter", "Filter", id="log.filter", tooltip="Show only matching lines"),
    ]

    class FilterAsked(Message):
        """A person wants to type a filter."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.window = LogWindow()
        self._left = 0
        self._errors = 0
        self._lines = 0

    def show(self, ring: LogRing) -> None:
        """Show a ring's lines."""
        self.window.watch(ring)
        self._lines = ring.total
        self.redraw()

    def search(self, needle: str) -> None:
        """Show only lines that contain ``needle``."""
        self.window.search(needle)
        self.redraw()

    def heading(self) -> Row:
        follow = "follow" if self.window.following else "paused, end follows"
        style = "good" if self.window.following else "warn"
        row: Row = (*super().heading(), Span(f" {self.glyphs.separator} ", "frame"))
        return (*row, Span(follow, style))

    def heading_right(self) -> Row:
        if self.window.needle:
            matches = f"{self.window.count():,} match"
            needle = cut(self.window.needle, 20, self.glyphs.ellipsis)
            return (Span(f"/{needle}", "accent"), Span(f" {matches}", "dim"))
        return (Span(f"{self._lines:,} line{'' if self._lines == 1 else 's'}", "dim"),)

    def content(self, width: int, height: int) -> Sequence[Row]:
        lines = self.window.rows(height)
        if not lines:
            words = "no line contains this" if self.window.needle else "nothing said yet"
            return [(Span(words, "dim"),)]
        return [log_row(line, width, self._left, self.glyphs) for line in lines]

    @property
    def _page(self) -> int:
        return max(1, self.content_size.height - 2)

    def action_scroll_lines(self, move: int) -> None:
        """Scroll by lines."""
        self.window.scroll(move, self._page)
        self.redraw()

    def action_scroll_page(self, move: int) -> None:
        """Scroll by pages."""
        self.action_scroll_lines(move * self._page)

    def action_oldest(self) -> None:
        """Go to the oldest line kept."""
        self.action_scroll_lines(-self.window.count())

    def action_newest(self) -> None:
        """Follow the newest line again."""
        self.window.end()
        self.redraw()

    def action_sideways(self, move: int) -> None:
        """Move long lines sideways."""
        self._left = max(0, self._left + move * _SIDEWAYS)
        self.redraw()

    def action_filter(self) -> None:
        """Ask for a filter."""
        self.post_message(self.FilterAsked())

    def on_mouse_scroll_up(self) -> None:
        self.action_scroll_lines(-3)

    def on_mouse_scroll_down(self) -> None:
        self.action_scroll_lines(3)
