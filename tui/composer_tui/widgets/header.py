"""The line on top of every screen: where you are, and the run that matters."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from textual import events

from composer_tui.widgets.cells import Row, Span, apart, as_many_as_fit, cut, row_cells
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import CellWidget
from composer_tui.widgets.status import Status, status_row

TABS = (("launch", "1 Launch"), ("monitor", "2 Monitor"), ("runs", "3 Runs"))
_NAME = "composer"
_NAME_CELLS = 36


class HeaderFacts(NamedTuple):
    """What the header says of the watched run; ``live`` counts the runs on this machine."""

    status: Status | None = None
    name: str = ""
    short_name: str = ""
    step: str = ""
    reward: str = ""
    device: str = ""
    live: int = 0


def header_row(mode: str, facts: HeaderFacts, width: int, glyphs: Glyphs) -> Row:
    """Name and tabs on the left; of the run what fits on the right, the most important first."""
    left: list[Span] = [Span(f" {_NAME} ", "title")]
    for name, label in TABS:
        chosen = name == mode
        left.append(Span(glyphs.divider, "accent" if chosen else "axis"))
        left.append(Span(f"{label} ", "selected" if chosen else "dim"))
    if facts.status is None:
        right: Row = (Span("no live run", "dim"),)
    else:
        right = _run_row(facts, width - row_cells(tuple(left)) - 2, glyphs)
    return apart(tuple(left), (*right, Span(" ")), width)


def _run_row(facts: HeaderFacts, room: int, glyphs: Glyphs) -> Row:
    if facts.status is None:
        return ()
    parts: list[Row] = [status_row(facts.status, glyphs)]
    if facts.step:
        parts.append((Span(facts.step, "text"),))
    if facts.live > 1:
        parts.append((Span(f"{facts.live} live", "accent"),))
    taken = sum(row_cells(part) + 2 for part in parts)
    name = facts.name if taken + cell_len(facts.name) <= room else facts.short_name
    parts.append((Span(cut(name, _NAME_CELLS, glyphs.ellipsis), "strong"),))
    if facts.reward:
        parts.append((Span("reward ", "dim"), Span(facts.reward)))
    if facts.device:
        parts.append((Span(facts.device, "dim"),))
    return as_many_as_fit(parts, Span("  "), room)


def tab_at(x: int) -> str | None:
    """The screen whose tab is at a column of the header."""
    start = len(_NAME) + 2
    for name, label in TABS:
        stop = start + len(label) + 2
        if start <= x < stop:
            return name
        start = stop
    return None


class HeaderLine(CellWidget):
    """The header of one screen."""

    def __init__(self, mode: str) -> None:
        super().__init__(classes="chrome")
        self._mode = mode
        self._facts = HeaderFacts()

    def show(self, facts: HeaderFacts) -> None:
        """Show the watched run."""
        if facts != self._facts:
            self._facts = facts
            self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        return [header_row(self._mode, self._facts, width, self.glyphs)] if height else []

    async def on_click(self, event: events.Click) -> None:
        mode = tab_at(event.x)
        if mode is not None:
            await self.run_action(f"app.go('{mode}')")
