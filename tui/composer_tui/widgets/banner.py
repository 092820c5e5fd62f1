"""What must not be missed and does not go away by itself: it is on every screen."""

from collections.abc import Sequence
from typing import NamedTuple

from composer_tui.widgets.cells import Row, Span, cut
from composer_tui.widgets.pane import CellWidget


class BannerLine(NamedTuple):
    """One line; ``glyph`` names a field of `Glyphs`, ``style`` a style.

    ``key`` and what it does, where there is one, stand at its end and are never cut.
    """

    text: str
    glyph: str = "alert"
    style: str = "alarm"
    key: str = ""
    does: str = ""


class Banner(CellWidget):
    """A row for each line; without lines it takes no room."""

    def __init__(self) -> None:
        super().__init__(classes="banner")
        self._lines: tuple[BannerLine, ...] = ()
        self.display = False

    def show(self, lines: tuple[BannerLine, ...]) -> None:
        """Show these lines and no others."""
        if lines == self._lines:
            return
        if len(lines) != len(self._lines):
            self.display = bool(lines)
            self.styles.height = len(lines)
        self._lines = lines
        self.set_class(all(line.style != "alarm" for line in lines), "-calm")
        self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        rows: list[Row] = []
        for text, glyph, style, key, does in self._lines[:height]:
            lead = f" {getattr(self.glyphs, glyph)} "
            hint = (Span(f"  {key}", "key"), Span(f" {does}", "dim")) if key else ()
            left = width - len(lead) - sum(len(span.text) for span in hint)
            words = cut(text, left, self.glyphs.ellipsis)
            rows.append((Span(lead, style), Span(words, style), *hint))
        return rows
