"""A list with a cursor that stays on its item while the list changes under it."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from textual.message import Message

from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.pane import Pane

T = TypeVar("T")


class Listing(Pane, Generic[T]):
    """What is said of an item, and how it is drawn, is its subclass's."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._items: list[T] = []  # on show
        self._needle = ""
        self._cursor = 0
        self._top = 0

    def matching(self) -> list[T]:
        """The items that match what is searched for."""
        raise NotImplementedError

    def key_of(self, item: T) -> str:
        """What an item keeps while all else of it changes."""
        raise NotImplementedError

    def opened(self, item: T) -> Message:
        """What is posted when a person opens an item."""
        raise NotImplementedError

    def search(self, needle: str) -> None:
        """Show only what matches."""
        self._needle = needle
        self.choose()

    def choose(self) -> None:
        """Show what there is now."""
        at = self.selected
        self._items = self.matching()
        keys = [self.key_of(item) for item in self._items]
        if at is not None and self.key_of(at) in keys:
            self._cursor = keys.index(self.key_of(at))
        self._cursor = max(0, min(self._cursor, len(keys) - 1))
        self.redraw()

    @property
    def selected(self) -> T | None:
        """The item under the cursor."""
        return self._items[self._cursor] if self._cursor < len(self._items) else None

    def action_move(self, move: int) -> None:
        """Move the cursor."""
        self._cursor = max(0, min(self._cursor + move, len(self._items) - 1))
        self.redraw()

    def action_page(self, move: int) -> None:
        """Move the cursor by a page."""
        self.action_move(move * max(1, self.content_size.height - 4))

    def action_open(self) -> None:
        """Open the item under the cursor."""
        if self.selected is not None:
            self.post_message(self.opened(self.selected))

    def on_mouse_scroll_up(self) -> None:
        self.action_move(-1)

    def on_mouse_scroll_down(self) -> None:
        self.action_move(1)


def in_the_middle(lines: Sequence[tuple[str, str]], width: int, height: int) -> list[Row]:
    """Lines, each with its style, in a pane that has nothing else."""
    lead = " " * max(2, (width - max(len(line) for line, _ in lines)) // 2)
    above = max(0, (height - len(lines)) // 3)
    return [*([()] * above), *((Span(lead), Span(line, style)) for line, style in lines)]
