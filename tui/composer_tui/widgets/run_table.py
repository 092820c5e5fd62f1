"""The runs of a folder, newest first."""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from composer_tui.numbers import age, duration, number
from composer_tui.runs.store import RunSummary
from composer_tui.widgets.cells import Row, Span, cut, fit, fit_right
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.listing import Listing, in_the_middle
from composer_tui.widgets.status import status_of

_STATE_CELLS = 11
_STEPS_CELLS = 13
_REWARD_CELLS = 8
_AGE_CELLS = 5
_TOOK_CELLS = 8
_TARGET_CELLS = 10
_WIDE = 100

EMPTY = (
    "No run yet.",
    "",
    "Press 1 for the launch form, then F5: the smoke preset trains a tiny model",
    "on this machine in a minute or two, with no GPU, no network and no account.",
)


def matching(runs: Sequence[RunSummary], needle: str) -> list[RunSummary]:
    """The runs whose id, model, state or target contains every word of ``needle``."""
    words = needle.lower().split()
    return [
        run
        for run in runs
        if all(
            any(word in text.lower() for text in (run.run_id, run.model, run.life, run.target))
            for word in words
        )
    ]


def _columns(width: int, name: str, model: str, glyphs: Glyphs) -> tuple[str, str]:
    """The two columns that share what the fixed ones leave."""
    fixed = 2 + _STATE_CELLS + _STEPS_CELLS + _REWARD_CELLS + _AGE_CELLS + 4
    if width >= _WIDE:
        fixed += _TOOK_CELLS + _TARGET_CELLS
        room = max(0, width - fixed)
        model_cells = room * 2 // 5
        name_cells = room - model_cells - 1
        return fit(name, name_cells, glyphs.ellipsis), fit(model, model_cells, glyphs.ellipsis)
    return fit(name, max(0, width - fixed), glyphs.ellipsis), ""


def head_row(width: int, glyphs: Glyphs) -> Row:
    """The names of the columns."""
    name, model = _columns(width, "RUN", "MODEL", glyphs)
    text = (
        f"  {name} {'STATE':<{_STATE_CELLS}} {'STEPS':>{_STEPS_CELLS}} {'REWARD':>{_REWARD_CELLS}}"
    )
    if model:
        text += f" {'TOOK':>{_TOOK_CELLS - 1}} {'TARGET':<{_TARGET_CELLS - 1}} {model}"
    return (Span(f"{text} {'AGE':>{_AGE_CELLS}}", "dim"),)


def run_row(
    run: RunSummary, now: float, width: int, glyphs: Glyphs, *, at_cursor: bool, stopping: bool
) -> Row:
    """One run in one row."""
    status = status_of(run.life, stopping=stopping, ended_by=run.ended_by)
    name, model = _columns(width, run.run_id, run.model, glyphs)
    steps = f"{run.steps:,}/{run.total_steps:,}" if run.total_steps else f"{run.steps:,}"
    words = "strong" if at_cursor else "text"
    row: list[Span] = [
        Span(f"{glyphs.cursor if at_cursor else ' '} ", "accent"),
        Span(name, words),
        Span(
            " " + fit(f"{getattr(glyphs, status.glyph)} {status.word}", _STATE_CELLS), status.style
        ),
        Span(" " + fit_right(steps, _STEPS_CELLS, glyphs.ellipsis)),
        Span(" " + fit_right(number(run.reward_mean, glyphs.missing), _REWARD_CELLS)),
    ]
    if model:
        end = run.ended_at if run.ended_at is not None else now
        took = duration(max(0.0, end - run.created_at))
        row += [
            Span(f" {took:>{_TOOK_CELLS - 1}}", "dim"),
            Span(" " + fit(run.target, _TARGET_CELLS - 1), "dim"),
            Span(f" {model}", "dim"),
        ]
    row.append(Span(f" {age(max(0.0, now - run.created_at)):>{_AGE_CELLS}}", "dim"))
    return tuple(row)


class RunTable(Listing[RunSummary]):
    """The list of runs, with a cursor that stays on its run while the list changes."""

    title = "runs"
    help_text = (
        "Every run in the runs folder, newest first. Enter opens one in the monitor, live or "
        "finished: both read the same file. R replays a finished run at a speed of your choice. "
        "K asks before it stops a live one."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", id="runs.open", tooltip="Show the run in the monitor"),
        Binding("up,k", "move(-1)", "Newer", show=False, id="runs.up"),
        Binding("down,j", "move(1)", "Older", show=False, id="runs.down"),
        Binding("pageup", "page(-1)", "Newer page", show=False, id="runs.page_up"),
        Binding("pagedown", "page(1)", "Older page", show=False, id="runs.page_down"),
        Binding("home,g", "move(-1000000)", "Newest", show=False, id="runs.first"),
        Binding("end,G", "move(1000000)", "Oldest", show=False, id="runs.last"),
    ]

    class Opened(Message):
        """A person wants to see a run."""

        def __init__(self, run: RunSummary) -> None:
            super().__init__()
            self.run = run

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._all: Sequence[RunSummary] | None = None
        self._stopping: frozenset[str] = frozenset()
        self._now = 0.0

    def show(self, runs: Sequence[RunSummary], stopping: frozenset[str], now: float) -> None:
        """Show these runs at the moment ``now`` (unix seconds)."""
        self._all, self._stopping, self._now = runs, stopping, now
        self.choose()

    def matching(self) -> list[RunSummary]:
        return matching(self._all or (), self._needle)

    def key_of(self, item: RunSummary) -> str:
        return item.run_id

    def opened(self, item: RunSummary) -> Message:
        return self.Opened(item)

    def heading_right(self) -> Row:
        found = f"{len(self._items):,} of " if self._needle else ""
        needle: Row = (Span(f"/{self._needle}  ", "accent"),) if self._needle else ()
        runs = len(self._all or ())
        return (*needle, Span(f"{found}{runs:,} run{'s' if runs != 1 else ''}", "dim"))

    def note(self) -> Row:
        """What is the matter with the chosen run."""
        run = self.selected
        words = (run.damage or run.failure) if run is not None else ""
        room = self.content_size.width - 6
        return (Span(cut(words, room, self.glyphs.ellipsis), "bad"),) if words else ()

    def content(self, width: int, height: int) -> Sequence[Row]:
        if not self._items:
            return self._nothing(width, height)
        room = max(1, height - 1)
        self._top = min(self._top, self._cursor, max(0, len(self._items) - room))
        self._top = max(self._top, self._cursor - room + 1)
        rows = [head_row(width, self.glyphs)]
        for index in range(self._top, min(len(self._items), self._top + room)):
            run = self._items[index]
            rows.append(
                run_row(
                    run,
                    self._now,
                    width,
                    self.glyphs,
                    at_cursor=index == self._cursor,
                    stopping=run.run_id in self._stopping,
                )
            )
        return rows

    def _nothing(self, width: int, height: int) -> Sequence[Row]:
        lines: Sequence[str] = EMPTY
        if self._all is None:
            lines = ("reading the runs folder",)
        elif self._needle:
            lines = (f"No run matches {self._needle}.", "", "esc shows them all again.")
        first, *others = lines
        styled = [(first, "strong"), *((line, "dim") for line in others)]
        return in_the_middle(styled, width, height)

    def on_click(self, event: events.Click) -> None:
        row = self._top + event.y - 2
        if 0 <= row < len(self._items):
            self._cursor = row
            self.redraw()
            if event.chain == 2:  # noqa: PLR2004 - a double click
                self.action_open()
