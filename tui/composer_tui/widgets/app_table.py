"""All that is live: what burns most first, what costs nothing below."""

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from composer_tui.cloud.wire import Apps
from composer_tui.numbers import duration
from composer_tui.widgets.app_items import (
    HERE,
    Item,
    head_row,
    item_row,
    matching,
    nothing_words,
    problem_words,
)
from composer_tui.widgets.app_status import ALARMS, stop_words
from composer_tui.widgets.burn import (
    age_words,
    as_of_words,
    burn_words,
    is_orphan,
    orphans,
    stale_words,
)
from composer_tui.widgets.cells import Row, Span, cut, wrap
from composer_tui.widgets.listing import Listing, in_the_middle


def _can_be_marked(item: Item) -> bool:
    """An app that is not being stopped already, or whose stop does not work."""
    return item.app is not None and (item.stop is None or item.stop.stage in ALARMS)


_ROOMY_CELLS = 70  # from which on there is room for words beside the numbers


class AppTable(Listing[Item]):
    """What is live, with a cursor that stays on its app, and marks, while the list changes."""

    title = "live"
    help_text = (
        "Everything that is live: the apps of the Modal account, what burns most first, then what "
        "runs on this machine for $0.00. Prices are estimates from Modal's list; SPENT is what the "
        "containers that are live now have cost. An orphan is a run of this program that nobody "
        "watches over any more. Apps that it did not launch are dim, and only ever stopped when "
        "you mark or choose them yourself. Enter opens a run whose folder is here, or the details."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", id="apps.open", tooltip="Its monitor, or all facts of it"),
        Binding("up,k", "move(-1)", "Up", show=False, id="apps.up"),
        Binding("down,j", "move(1)", "Down", show=False, id="apps.down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="apps.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="apps.page_down"),
        Binding("home,g", "move(-1000000)", "First", show=False, id="apps.first"),
        Binding("end,G", "move(1000000)", "Last", show=False, id="apps.last"),
    ]

    class Opened(Message):
        """A person wants to see more of an item."""

        def __init__(self, item: Item) -> None:
            super().__init__()
            self.item = item

    class Moved(Message):
        """Another item is under the cursor."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._apps: Apps | None = None
        self._all: Sequence[Item] = ()
        self._marks: set[str] = set()
        self._stopping: frozenset[str] = frozenset()
        self._readonly = False
        self._places: list[int | None] = []  # of each row on show, its item
        self._now = 0.0

    def show(
        self,
        apps: Apps | None,
        items: Sequence[Item],
        now: float,
        stopping: frozenset[str] = frozenset(),
        *,
        readonly: bool = False,
    ) -> None:
        """Show what is live at the moment ``now`` (unix seconds)."""
        self._apps, self._all, self._now, self._stopping = apps, items, now, stopping
        self._readonly = readonly
        self._marks &= {item.key for item in items if _can_be_marked(item)}
        self.choose()

    def matching(self) -> list[Item]:
        return matching(self._all, self._needle)

    def key_of(self, item: Item) -> str:
        return item.key

    def opened(self, item: Item) -> Message:
        return self.Opened(item)

    @property
    def has_rows(self) -> bool:
        """Something is live, on show or filtered out."""
        return bool(self._all)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what is there can be opened."""
        del parameters
        return self.selected is not None if action == "open" else True

    @property
    def marked(self) -> list[str]:
        """The ids of the marked apps, in the order of the list; a filter hides none of them."""
        return [item.key for item in self._all if item.key in self._marks]

    def mark(self) -> None:
        """Mark the app under the cursor, or unmark it, and go on to the next."""
        item = self.selected
        if item is not None and _can_be_marked(item):
            self._marks ^= {item.key}
        self.action_move(1)

    def mark_orphans(self) -> None:
        """Mark every orphan that is ours."""
        found = {app.app_id for app in orphans(self._apps)}
        self._marks |= found & {item.key for item in self._all if _can_be_marked(item)}
        self.redraw()

    def clear_marks(self) -> None:
        """Mark nothing."""
        self._marks.clear()
        self.redraw()

    # ---- drawing ----

    def heading(self) -> Row:
        where = f"  {self._apps.environment}" if self._apps and self._apps.environment else ""
        row = [Span(self.title, "title"), Span(where, "dim")]
        if self._readonly:
            row.append(Span("  read-only", "warn"))
        if self._marks:
            row.append(Span(f"  {len(self._marks)} marked", "key"))
        if self._needle:
            row.append(Span(f"  /{self._needle}", "accent"))
        return tuple(row)

    def heading_right(self) -> Row:
        apps = self._apps
        burn = burn_words(apps)
        if apps is None or not burn:
            return ()
        lost = len(orphans(apps))
        count = len(apps.apps)
        row = [Span(f"{count} app{'s' if count != 1 else ''}  ", "dim"), Span(burn, "strong")]
        if lost:
            row.append(Span(f"  {lost} orphan{'s' if lost > 1 else ''}", "bad"))
        stale = stale_words(apps, self._now)
        fresh = age_words(self._now - apps.as_of)
        asking = as_of_words(apps, self._now) if self.content_size.width >= _ROOMY_CELLS else ""
        row.append(Span(f"  {asking or stale or fresh}", "warn" if stale or asking else "dim"))
        return tuple(row)

    def note(self) -> Row:
        """Of the item under the cursor what its row has no room for."""
        item = self.selected
        if item is None:
            return ()
        words, style = "", "warn"
        if item.stop is not None:
            words = f"{stop_words(item.stop)}, {duration(item.stop.seconds)}"
        elif item.app is not None and item.app.orphan:
            words, style = item.app.orphan_why, "bad" if is_orphan(item.app) else "dim"
        elif item.run is not None and (item.run.damage or item.run.failure):
            words = item.run.damage or item.run.failure
        room = self.content_size.width - 6
        return (Span(cut(words, room, self.glyphs.ellipsis), style),) if words else ()

    def content(self, width: int, height: int) -> Sequence[Row]:
        if not self._items:
            self._places = []
            return self._nothing(width, height)
        above = self._problem(width)
        above.append(head_row(width, self.glyphs))
        places = self._all_places()
        room = max(1, height - len(above))
        at = places.index(self._cursor)
        self._top = max(0, min(self._top, at, len(places) - room))
        self._top = max(self._top, at - room + 1)
        shown = places[self._top : self._top + room]
        self._places = [*(None for _ in above), *shown]
        return [*above, *(self._row(place, width) for place in shown)]

    def _problem(self, width: int) -> list[Row]:
        words = problem_words(self._apps)
        lines = [line for part in words for line in wrap(part, max(8, width - 4))]
        lead = f" {self.glyphs.alert} "
        return [
            (Span(lead if y == 0 else " " * len(lead), "warn"), Span(line, "warn"))
            for y, line in enumerate(lines)
        ]

    def _all_places(self) -> list[int | None]:
        """The items in the order of their rows; None is the line above those of this machine."""
        first = next((i for i, item in enumerate(self._items) if item.run is not None), None)
        places: list[int | None] = list(range(len(self._items)))
        if first is not None:
            places.insert(first, None)
        return places

    def _row(self, place: int | None, width: int) -> Row:
        if place is None:
            rule = f" {self.glyphs.rule * 2} {HERE} "
            return (Span(rule + self.glyphs.rule * max(0, width - len(rule) - 1), "axis"),)
        item = self._items[place]
        return item_row(
            item,
            self._now,
            width,
            self.glyphs,
            at_cursor=place == self._cursor,
            is_marked=item.key in self._marks,
            stopping=item.key in self._stopping,
        )

    def _nothing(self, width: int, height: int) -> Sequence[Row]:
        lines = [
            (part, "strong" if index == 0 else "dim")
            for index, line in enumerate(nothing_words(self._apps, self._needle, self._now))
            for part in wrap(line, max(8, width - 4))
        ]
        return in_the_middle(lines, width, height)

    # ---- moving ----

    def action_move(self, move: int) -> None:
        """Move the cursor."""
        super().action_move(move)
        self.post_message(self.Moved())

    def on_click(self, event: events.Click) -> None:
        row = event.y - 1
        place = self._places[row] if 0 <= row < len(self._places) else None
        if place is None:
            return
        self.action_move(place - self._cursor)
        if event.chain == 2:  # noqa: PLR2004 - a double click
            self.action_open()
