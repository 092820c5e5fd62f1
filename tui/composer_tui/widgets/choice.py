"""One of a few words, chosen with left and right."""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from composer_tui.widgets.cells import Row, Span, cut
from composer_tui.widgets.pane import CellWidget


class Choice(CellWidget, can_focus=True):
    """A field whose value is one of its options."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "turn(-1)", "Previous", show=False, id="choice.previous"),
        Binding("space,right", "turn(1)", "Choose", id="choice.next", tooltip="The next option"),
    ]

    class Changed(Message):
        """Another option was chosen."""

        def __init__(self, choice: "Choice", value: str) -> None:
            super().__init__()
            self.choice = choice
            self.value = value

        @property
        def control(self) -> "Choice":
            """The field."""
            return self.choice

    def __init__(
        self,
        options: Sequence[str],
        value: str,
        *,
        id: str | None = None,  # noqa: A002
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._options = list(options)
        self.value = value

    def set_options(self, options: Sequence[str], value: str) -> None:
        """Offer other options, and choose one of them."""
        self._options, self.value = list(options), value
        self.redraw()

    def set_value(self, value: str) -> None:
        """Show a value; nobody is told."""
        self.value = value
        self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        text = cut(self.value, max(1, width - 4), self.glyphs.ellipsis)
        arrows = "accent" if self.has_focus else "axis"
        words = "strong" if self.has_focus else "text"
        row = (
            Span(f"{self.glyphs.left} ", arrows),
            Span(text, words),
            Span(f" {self.glyphs.right}", arrows),
        )
        return [row] if height else []

    def action_turn(self, move: int) -> None:
        """Choose the next (1) or the previous (-1) option."""
        if not self._options:
            return
        place = self._options.index(self.value) if self.value in self._options else -move
        self.value = self._options[(place + move) % len(self._options)]
        self.redraw()
        self.post_message(self.Changed(self, self.value))

    def on_click(self, event: events.Click) -> None:
        self.action_turn(-1 if event.x == 0 else 1)

    def watch_has_focus(self, _has_focus: bool) -> None:
        # Not on_focus, which comes before this is known.
        super().watch_has_focus(_has_focus)
        self.redraw()
