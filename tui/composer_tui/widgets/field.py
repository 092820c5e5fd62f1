"""One field of a form: its name, its value, and what is wrong with it."""

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.widgets import Input

from composer_engine.config import FIELDS
from composer_tui.widgets.cells import Row, Span, cut, wrap
from composer_tui.widgets.choice import Choice
from composer_tui.widgets.pane import CellWidget
from composer_tui.widgets.text_input import TextInput


class FieldLabel(CellWidget):
    """The name of a field, marked when the field differs from its preset."""

    def __init__(self, text: str) -> None:
        super().__init__(classes="field-label")
        self._text = text
        self._changed = False
        self._wrong = False

    def mark(self, *, changed: bool, wrong: bool) -> None:
        """Say whether the field differs from its preset, and whether it is wrong."""
        if (changed, wrong) != (self._changed, self._wrong):
            self._changed, self._wrong = changed, wrong
            self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        del height
        glyphs = self.glyphs
        mark = Span("  ")
        if self._wrong:
            mark = Span(f"{glyphs.failed} ", "bad")
        elif self._changed:
            mark = Span(f"{glyphs.changed} ", "accent")
        return [(mark, Span(cut(self._text, width - 2, glyphs.ellipsis), "dim"))]


class FieldError(CellWidget):
    """What is wrong with a field, under it; it takes no room while there is nothing."""

    def __init__(self) -> None:
        super().__init__(classes="field-error")
        self.message = ""
        self.display = False

    def show(self, message: str) -> None:
        """Show a message; an empty one hides the widget."""
        if message == self.message:
            return
        self.message = message
        self.display = bool(message)
        if message:
            self.styles.height = len(self._lines(self.content_size.width or 40))
        self.redraw()

    def _lines(self, width: int) -> list[str]:
        return wrap(self.message, max(8, width - 4))

    def build(self, width: int, height: int) -> Sequence[Row]:
        return [(Span("    "), Span(line, "bad")) for line in self._lines(width)][:height]

    def on_resize(self) -> None:
        if self.message:
            self.styles.height = len(self._lines(self.content_size.width))


class FieldInput(TextInput):
    """A line of text without a frame. Enter and the arrows go to the fields beside it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Previous field", show=False, id="field.previous"),
        Binding("down,enter", "app.focus_next", "Next field", show=False, id="field.next"),
    ]


class Field(Container):
    """A field of `composer_engine.config.FIELDS`."""

    class Changed(Message):
        """A person changed the text of a field."""

        def __init__(self, path: str, text: str) -> None:
            super().__init__()
            self.path = path
            self.text = text

    class Entered(Message):
        """The field has the focus."""

        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

    def __init__(self, path: str, name: str, text: str) -> None:
        super().__init__(classes="field")
        self.path = path
        self._text = text
        self._name = name
        self._label = FieldLabel(name)
        self._error = FieldError()

    def compose(self) -> ComposeResult:
        yield self._label
        choices = FIELDS[self.path].choices
        if choices:
            yield Choice(choices, self._text)
        else:
            yield FieldInput(self._text, compact=True, select_on_focus=False)
        yield self._error

    @property
    def control(self) -> FieldInput | Choice:
        """The widget that holds the value."""
        inputs = self.query(FieldInput)
        return inputs.first() if inputs else self.query_one(Choice)

    def set_text(self, text: str) -> None:
        """Show a text; nobody is told."""
        self._text = text
        if isinstance(self.control, Choice):
            self.control.set_value(text)
        elif self.control.value != text:
            self.control.value = text

    def judge(self, *, changed: bool, error: str) -> None:
        """Show whether the field differs from its preset, and what is wrong with it."""
        self._label.mark(changed=changed, wrong=bool(error))
        self._error.show(error)

    @property
    def error(self) -> str:
        """What is wrong with the field; empty when nothing is."""
        return self._error.message

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if event.value != self._text:
            self._text = event.value
            self.post_message(self.Changed(self.path, event.value))

    @on(Choice.Changed)
    def _chosen(self, event: Choice.Changed) -> None:
        event.stop()
        self._text = event.value
        self.post_message(self.Changed(self.path, event.value))

    def on_descendant_focus(self) -> None:
        self.post_message(self.Entered(self.path))
