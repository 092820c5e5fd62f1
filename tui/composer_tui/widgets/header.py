"""The line on top of every screen: where you are, what it costs, and the run that matters."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from textual import events

from composer_tui.widgets.cells import Row, Span, apart, as_many_as_fit, cut, row_cells
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import CellWidget
from composer_tui.widgets.status import Status, status_row

TABS = (("launch", "1 Launch"), ("monitor", "2 Monitor"), ("runs", "3 Runs"), ("apps", "4 Apps"))
_NAME = "composer"
_NAME_CELLS = 36
_NAMED = 100  # from this width on the program's name stands before the tabs
_LABELLED = 62  # below it only the chosen tab has its word


class HeaderFacts(NamedTuple):
    """What the header says of the watched run and of money.

    ``live`` counts the runs on this machine; ``burn`` is what everything live costs ("" without an
    account), ``orphans`` counts the apps that nobody watches over, ``stale`` says how old that is
    when it is not of now.
    """

    status: Status | None = None
    name: str = ""
    short_name: str = ""
    step: str = ""
    reward: str = ""
    device: str = ""
    live: int = 0
    burn: str = ""
    orphans: int = 0
    stale: str = ""


def _tabs(mode: str, width: int) -> Iterator[tuple[str, str]]:
    """The screens and what their tabs say, which is less where there is little room."""
    for name, label in TABS:
        yield name, label if width >= _LABELLED or name == mode else label[:1]


def header_row(mode: str, facts: HeaderFacts, width: int, glyphs: Glyphs) -> Row:
    """Tabs on the left; on the right what fits, the most important first, money before names."""
    left: list[Span] = [Span(f" {_NAME} ", "title")] if width >= _NAMED else []
    for name, label in _tabs(mode, width):
        chosen = name == mode
        left.append(Span(glyphs.divider, "accent" if chosen else "axis"))
        left.append(Span(f"{label} ", "selected" if chosen else "dim"))
    right = _run_row(facts, width - row_cells(tuple(left)) - 2, glyphs)
    return apart(tuple(left), (*right, Span(" ")), width)


def _run_row(facts: HeaderFacts, room: int, glyphs: Glyphs) -> Row:
    money = _money_row(facts, glyphs)
    if facts.status is None:
        return as_many_as_fit([money, (Span("no run open", "dim"),)], Span("  "), room)
    status = status_row(facts.status, glyphs)
    if row_cells(status) + row_cells(money) + 2 > room:
        status = (Span(getattr(glyphs, facts.status.glyph), facts.status.style),)
    parts: list[Row] = [status, *([money] if money else [])]
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


def _money_row(facts: HeaderFacts, glyphs: Glyphs) -> Row:
    """``$4.12/h ⚠2 3m ago``."""
    if not facts.burn:
        return ()
    row: list[Span] = [Span(facts.burn, "warn" if facts.stale else "strong")]
    if facts.orphans:
        row.append(Span(f" {glyphs.alert}{facts.orphans}", "bad"))
    if facts.stale:
        row.append(Span(f" {facts.stale}", "warn"))
    return tuple(row)


def tab_at(x: int, mode: str, width: int) -> str | None:
    """The screen whose tab is at a column of a header of that width on the screen ``mode``."""
    start = len(_NAME) + 2 if width >= _NAMED else 0
    for name, label in _tabs(mode, width):
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
        """Show the watched run, and what everything costs."""
        if facts != self._facts:
            self._facts = facts
            self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        return [header_row(self._mode, self._facts, width, self.glyphs)] if height else []

    async def on_click(self, event: events.Click) -> None:
        mode = tab_at(event.x, self._mode, self.size.width)
        if mode is not None:
            await self.run_action(f"app.go('{mode}')")
