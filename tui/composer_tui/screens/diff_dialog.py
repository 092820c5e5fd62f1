"""How a draft differs from its preset."""

from collections.abc import Sequence

from composer_tui.screens.dialog import Dialog
from composer_tui.widgets.cells import Row, Span, wrap


class DiffDialog(Dialog[None]):
    """The changed fields, each with the preset's value and the draft's."""

    def __init__(self, preset: str, changes: Sequence[tuple[str, str, str]]) -> None:
        super().__init__()
        self._preset = preset
        self._changes = changes

    def heading(self) -> str:
        return f"Changes to preset {self._preset}"

    def rows(self, width: int) -> Sequence[Row]:
        if not self._changes:
            return [(Span("none: the form is as the preset", "dim"),), ()]
        rows: list[Row] = []
        for path, old, new in self._changes:
            rows.append((Span(path, "strong"),))
            for sign, text, style in (("-", old, "bad"), ("+", new, "good")):
                for index, line in enumerate(wrap(text or "(empty)", max(8, width - 4))):
                    lead = f"  {sign} " if index == 0 else "    "
                    rows.append((Span(lead, style), Span(line, style)))
        return [*rows, ()]
