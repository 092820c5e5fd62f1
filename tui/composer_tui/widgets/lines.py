"""Rows that somebody else made."""

from collections.abc import Callable, Sequence

from textual.geometry import Size

from composer_tui.widgets.cells import Row
from composer_tui.widgets.pane import CellWidget

RowMaker = Callable[[int], Sequence[Row]]


class Lines(CellWidget):
    """Shows what a function answers for a width, in as much height as that takes."""

    def __init__(self, make: RowMaker, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._make = make

    def show(self, make: RowMaker) -> None:
        """Show other rows."""
        self._make = make
        self.refresh(layout=True)
        self.redraw()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        del container, viewport
        return len(self._make(width))

    def build(self, width: int, height: int) -> Sequence[Row]:
        del height
        return self._make(width)
