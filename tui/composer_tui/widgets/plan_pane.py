"""Panes beside the launch form: what will happen, the field at hand, and why it cannot start."""

from collections.abc import Sequence

from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.lines import RowMaker
from composer_tui.widgets.pane import Pane


class RowsPane(Pane, can_focus=False):
    """A box around rows that somebody else made."""

    def __init__(self, title: str, *, style: str = "title", id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._title, self._title_style = title, style
        self.frame_style = "bad" if style == "bad" else ""
        self._make: RowMaker = lambda _: ()

    def show(self, make: RowMaker, title: str | None = None) -> None:
        """Show other rows, under another title if there is one."""
        self._make = make
        self._title = self._title if title is None else title
        self.redraw()

    def heading(self) -> Row:
        return (Span(self._title, self._title_style),)

    def content(self, width: int, height: int) -> Sequence[Row]:
        return self._make(width - 1)[:height]
