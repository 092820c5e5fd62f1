"""The frame of every dialog: a title, rows, and buttons of which the harmless one has the focus."""

import time
from collections.abc import Sequence
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button

from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.glyphs import ASCII
from composer_tui.widgets.lines import Lines
from composer_tui.widgets.palette import Palette

T = TypeVar("T")
_WIDTH, _AROUND, _CHROME = 68, 6, 5  # of the box: cells, cells beside and rows around what it says
# A held key repeats faster than this: what opened the dialog must not also answer it.
REPEAT_SECONDS = 0.3


class Dialog(ModalScreen[T]):
    """A modal box. ``escape`` closes it with None, and so does every harmless button."""

    first_focus: ClassVar[str] = "#buttons Button"  # the harmless one
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Cancel", id="dialog.close"),
        Binding("left", "app.focus_previous", "Previous", show=False, id="dialog.previous"),
        Binding("right", "app.focus_next", "Next", show=False, id="dialog.next"),
        Binding("up", "scroll_rows(-1)", "Up", show=False, id="dialog.up"),
        Binding("down", "scroll_rows(1)", "Down", show=False, id="dialog.down"),
        Binding("pageup", "scroll_rows(-10)", "Up", show=False, id="dialog.page_up"),
        Binding("pagedown", "scroll_rows(10)", "Down", show=False, id="dialog.page_down"),
    ]

    def __init__(self) -> None:
        super().__init__(classes="dialog")
        self._opened_at = time.monotonic()

    def rows(self, width: int) -> Sequence[Row]:
        """What the dialog says."""
        raise NotImplementedError

    def fields(self) -> Sequence[Widget]:
        """What can be chosen or typed."""
        return ()

    def buttons(self) -> Sequence[Button]:
        """The buttons, the harmless one first."""
        return [Button("Close (esc)", id="close", compact=True)]

    def compose(self) -> ComposeResult:
        yield Palette()
        with Vertical(id="box"):
            yield Lines(lambda _: [(Span(self.heading(), "title"),), ()], id="heading")
            with VerticalScroll(id="rows", can_focus=False):
                yield Lines(self.rows, id="said")
            yield from self.fields()
            with Horizontal(id="buttons"):
                yield from self.buttons()

    def heading(self) -> str:
        """The words above."""
        raise NotImplementedError

    def on_mount(self) -> None:
        self.set_class(getattr(self.app, "glyphs", None) is ASCII, "-ascii")
        self.query(self.first_focus).first().focus()

    def show_rows(self) -> None:
        """Show what `heading` and `rows` answer now."""
        self.query_one("#heading", Lines).redraw()
        self.query_one("#said", Lines).show(self.rows)
        self._fit()

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        """As high as what is said, or as the screen has room for: the rest scrolls."""
        box = self.query_one("#box")
        width = min(_WIDTH, self.size.width * 94 // 100) - _AROUND
        said = len(self.rows(max(8, width)))
        box.styles.height = min(said + _CHROME + 2 * len(self.fields()), self.size.height - 2)

    def action_scroll_rows(self, move: int) -> None:
        """Scroll what is said."""
        self.query_one("#rows", VerticalScroll).scroll_relative(y=move, animate=False)

    @property
    def is_settled(self) -> bool:
        """Whether a key pressed now was pressed for this dialog."""
        return time.monotonic() - self._opened_at >= REPEAT_SECONDS

    def action_close(self) -> None:
        """Close and do nothing."""
        self.dismiss(None)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "close":
            self.action_close()
        elif self.is_settled:
            self.answer(event.button.id or "")

    def answer(self, button: str) -> None:
        """A button other than the harmless one was pressed."""
        del button
