"""The line at the bottom: the keys that do something here and now."""

from collections.abc import Sequence
from typing import NamedTuple

from textual import events
from textual.screen import Screen

from composer_tui.widgets.cells import Row, Span, row_cells
from composer_tui.widgets.pane import CellWidget

_SYMBOLS = {
    "question_mark": "?",
    "slash": "/",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "escape": "esc",
    "plus": "+",
    "equals_sign": "=",
    "minus": "-",
    "asterisk": "*",
    "colon": ":",
}
_ALWAYS = frozenset({"help", "quit"})


class KeyHint(NamedTuple):
    """A key as people name it, what it does, and the action behind it."""

    key: str
    words: str
    action: str


def key_name(key: str) -> str:
    """``f5`` is F5, ``question_mark`` is ?; a letter stays as it is."""
    if key in _SYMBOLS:
        return _SYMBOLS[key]
    return key.upper() if len(key) > 1 and key[0] == "f" and key[1:].isdigit() else key


def key_row(hints: Sequence[KeyHint], width: int) -> tuple[Row, list[tuple[int, str]]]:
    """The hints that fit whole, and where each one's action ends.

    Help and quit are the last to be left out: with them a person finds everything else.
    """
    first = [hint for hint in hints if hint.action not in _ALWAYS]
    last = [hint for hint in hints if hint.action in _ALWAYS]
    room = width - sum(row_cells(_hint_row(hint)) for hint in last)
    shown: list[KeyHint] = []
    for hint in first:
        room -= row_cells(_hint_row(hint))
        if room < 0:
            break
        shown.append(hint)
    row: Row = ()
    ends: list[tuple[int, str]] = []
    for hint in [*shown, *last]:
        row = (*row, *_hint_row(hint))
        ends.append((row_cells(row), hint.action))
    return row, ends


def _hint_row(hint: KeyHint) -> Row:
    return (Span(f" {hint.key}", "key"), Span(f" {hint.words} ", "dim"))


def active_hints(screen: Screen[object]) -> list[KeyHint]:
    """The shown bindings that would act now, nearest to the focus first, one for each action."""
    focused = screen.focused
    hints: dict[str, KeyHint] = {}
    for key, active in screen.active_bindings.items():
        binding = active.binding
        typed = len(key) == 1 or key in {"slash", "question_mark"}
        if not (binding.show and active.enabled) or binding.action in hints:
            continue
        if typed and focused is not None and focused.check_consume_key(key, key):
            continue
        hints[binding.action] = KeyHint(key_name(key), binding.description, binding.action)
    return list(hints.values())


class KeyBar(CellWidget):
    """The footer of one screen."""

    def __init__(self) -> None:
        super().__init__(classes="chrome")
        self._ends: list[tuple[int, str]] = []

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def _bindings_changed(self, _: Screen[object]) -> None:
        self.call_after_refresh(self.redraw)

    def build(self, width: int, height: int) -> Sequence[Row]:
        if not height:
            return []
        row, self._ends = key_row(active_hints(self.screen), width)
        return [row]

    async def on_click(self, event: events.Click) -> None:
        action = next((action for end, action in self._ends if event.x < end), None)
        if action is not None:
            target = self.screen.focused or self.screen
            await self.app.run_action(action, default_namespace=target)
