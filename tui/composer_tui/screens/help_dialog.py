"""What the focused pane is, and every key that works here."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from textual.binding import ActiveBinding

from composer_tui.screens.dialog import Dialog
from composer_tui.widgets.cells import Row, Span, wrap
from composer_tui.widgets.key_bar import key_name
from composer_tui.widgets.pane import Pane

_KEY_CELLS = 16


class KeyHelp(NamedTuple):
    """Keys, and what they do; ``acts`` is False for what this app may not do."""

    keys: str
    words: str
    acts: bool


def key_groups(active: Iterable[ActiveBinding]) -> dict[str, list[KeyHelp]]:
    """Keys and what they do, by where they come from; one line for each action."""
    found: dict[str, dict[str, tuple[list[str], str, bool]]] = {}
    for namespace, binding, enabled, _ in active:
        if binding.system or not binding.description:
            continue
        where = "this pane" if isinstance(namespace, Pane) else "everywhere"
        words = binding.tooltip or binding.description
        keys, _words, _acts = found.setdefault(where, {}).setdefault(
            binding.action, ([], words, enabled)
        )
        keys.append(key_name(binding.key))
    return {
        where: [KeyHelp("  ".join(keys), words, acts) for keys, words, acts in actions.values()]
        for where, actions in found.items()
    }


class HelpDialog(Dialog[None]):
    """Help for the pane that had the focus, then the keys that work everywhere."""

    def __init__(self, pane: Pane | None, active: Iterable[ActiveBinding]) -> None:
        super().__init__()
        self._pane = pane
        self._groups = key_groups(active)

    def heading(self) -> str:
        return f"Help: {self._pane.title}" if self._pane and self._pane.title else "Help"

    def rows(self, width: int) -> Sequence[Row]:
        rows: list[Row] = []
        if self._pane is not None and self._pane.help_text:
            rows += [*((Span(line),) for line in wrap(self._pane.help_text, width)), ()]
        for where, keys in self._groups.items():
            rows.append((Span(where, "accent"),))
            for key, words, acts in keys:
                said = words if acts else f"{words} (not while read-only)"
                style = "text" if acts else "dim"
                first, *rest = wrap(said, max(8, width - _KEY_CELLS))
                rows.append(
                    (Span(f"{key:<{_KEY_CELLS}}", "key" if acts else "dim"), Span(first, style))
                )
                rows += [(Span(" " * _KEY_CELLS + line, style),) for line in rest]
            rows.append(())
        return rows
