"""Screen 4: everything that is live, what it costs, and the way to end it."""

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from composer_engine.cloud_spec import app_name
from composer_tui.cloud.wire import Apps
from composer_tui.messages import AppsRefreshAsked, KillAsked, LeaseAsked, StopAsked, WatchAsked
from composer_tui.runs.store import RunSummary
from composer_tui.screens.app_dialogs import AppDialog, LeaseDialog
from composer_tui.screens.app_facts import fact_pairs, pair_rows
from composer_tui.screens.base import BaseScreen, Moment
from composer_tui.screens.run_cost import as_watched
from composer_tui.widgets.app_items import Item, live_items
from composer_tui.widgets.app_status import ENDING
from composer_tui.widgets.app_table import AppTable
from composer_tui.widgets.burn import orphans
from composer_tui.widgets.cells import Row
from composer_tui.widgets.plan_pane import RowsPane
from composer_tui.widgets.text_input import TextInput

LEASE_MINUTES = 30.0
_ROOMY = 32  # rows from which on there is room for the details under the table


class AppsScreen(BaseScreen):
    """The live apps of the account, and the live runs of this machine."""

    mode = "apps"
    lists_runs = True
    lists_apps = True
    first_focus = "#apps"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "K", "kill", "Stop", id="kill", tooltip="Ask whether to stop what is marked, or this"
        ),
        Binding("space", "mark", "Mark", id="mark", tooltip="Mark this app, for K"),
        Binding(
            "asterisk",
            "mark_orphans",
            "Orphans",
            id="mark.orphans",
            tooltip="Mark every orphan; never apps of others",
        ),
        Binding(
            "plus", "lease", "Lease", id="lease", tooltip="Ask whether the run gets 30 minutes more"
        ),
        Binding("slash", "filter", "Filter", id="filter", tooltip="Show only what matches"),
        Binding("i", "details", "Details", id="apps.details", tooltip="All facts of this app"),
        Binding("r", "refresh", "Refresh", id="refresh", tooltip="Ask Modal now"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._runs: Sequence[RunSummary] = ()
        self._moment: Moment | None = None
        self._shown: tuple[object, ...] = ()

    def body(self) -> ComposeResult:
        yield AppTable(id="apps")
        yield RowsPane("details", id="app-facts")
        yield TextInput(placeholder="name, id, state, GPU or owner", id="filter", compact=True)

    def on_mount(self) -> None:
        self.query_one("#filter").display = False
        self.query_one("#app-facts").display = False

    def list_runs(self, runs: Sequence[RunSummary]) -> None:
        """Show those of these runs that are live from the next tick on."""
        self._runs = runs

    def tick(self, moment: Moment) -> bool:
        more = super().tick(moment)
        if moment.apps is not None:  # the same that a question about them goes by
            apps = tuple(as_watched(app, moment.watch) for app in moment.apps.apps)
            moment = moment._replace(apps=msgspec.structs.replace(moment.apps, apps=apps))
        self._moment = moment
        kills = tuple(moment.kills.values())
        shown = (moment.apps, kills, self._runs, moment.live, moment.stopping, int(moment.now))
        if shown != self._shown:
            self._shown = shown
            items = live_items(moment.apps, moment.kills, self._runs, moment.live)
            self._table.show(
                moment.apps, items, moment.now, moment.stopping, readonly=moment.readonly
            )
            self._show_facts()
        return more

    @property
    def _table(self) -> AppTable:
        return self.query_one("#apps", AppTable)

    @on(AppTable.Moved)
    def _show_facts(self) -> None:
        """Where there is room, every fact of the app under the cursor."""
        pane = self.query_one("#app-facts", RowsPane)
        item, moment = self._table.selected, self._moment
        has_room = self.size.height >= _ROOMY
        pane.display = item is not None and item.app is not None and has_room
        self.refresh_bindings()
        if item is None or item.app is None or moment is None:
            return
        pairs = fact_pairs(item.app, moment.apps or Apps(), moment.now)
        height = min(len(pairs) + 2, self.size.height // 2)
        if pane.size.height != height:
            pane.styles.height = height

        def rows(width: int) -> list[Row]:
            return pair_rows(pairs, width)

        pane.show(rows)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what is live can be stopped, only a run of ours has a lease."""
        allowed = super().check_action(action, parameters)
        if not allowed or not self.is_ready:
            return allowed
        table = self._table
        item = table.selected
        if action == "kill":
            return bool(table.marked) or (item is not None and self._can_stop(item))
        if action == "mark_orphans":
            return bool(self._moment and orphans(self._moment.apps))
        if action == "filter":
            return table.has_rows
        if action in {"mark", "details"}:
            return item is not None and item.app is not None
        if action == "lease":
            return item is not None and item.app is not None and bool(item.app.lease_until)
        return allowed

    def _can_stop(self, item: Item) -> bool:
        if item.app is not None:
            return True
        live = self._moment.live if self._moment else frozenset()
        return item.run is not None and item.run.run_id in live

    # ---- keys ----

    @on(AppTable.Opened)
    def _opened(self, event: AppTable.Opened) -> None:
        run_id = self._run_here(event.item)
        if run_id:
            self.post_message(WatchAsked(run_id))
        else:
            self.action_details()

    def _run_here(self, item: Item) -> str:
        """The id of an item's run when its folder is on this machine; "" otherwise."""
        if item.run is not None:
            return item.run.run_id
        wanted = item.app.run_id if item.app is not None else ""
        if not wanted:
            return ""
        here = (run.run_id for run in self._runs if wanted in {run.run_id, app_name(run.run_id)})
        return next(here, "")

    def action_details(self) -> None:
        """Show every fact of the app under the cursor."""
        item, moment = self._table.selected, self._moment
        if item is not None and item.app is not None and moment is not None:
            self.app.push_screen(AppDialog(item.app, moment.apps or Apps(), moment.now))

    def action_mark(self) -> None:
        """Mark the app under the cursor."""
        self._table.mark()
        self.refresh_bindings()

    def action_mark_orphans(self) -> None:
        """Mark every orphan."""
        self._table.mark_orphans()
        self.refresh_bindings()

    def action_kill(self) -> None:
        """Ask whether to stop the marked apps, or what is under the cursor."""
        marked, item = self._table.marked, self._table.selected
        if marked:
            self.post_message(KillAsked(marked))
        elif item is not None and item.stop is not None and item.stop.stage in ENDING:
            self.notify(f"{item.name} is being stopped already", markup=False)
        elif item is not None and item.app is not None:
            self.post_message(KillAsked([item.app.app_id]))
        elif item is not None and item.run is not None:
            self.post_message(StopAsked(item.run.run_id))

    def action_lease(self) -> None:
        """Ask whether the run under the cursor gets more time."""
        item, moment = self._table.selected, self._moment
        if item is None or item.app is None or moment is None:
            return
        app_id = item.app.app_id

        def extend(minutes: float | None) -> None:
            if minutes is not None:
                self.post_message(LeaseAsked(app_id, minutes))

        self.app.push_screen(LeaseDialog(item.app, LEASE_MINUTES, moment.now), extend)

    def action_refresh(self) -> None:
        """Ask Modal now."""
        self.post_message(AppsRefreshAsked())
        self.notify("asking Modal", timeout=1.5, markup=False)

    def copy_text(self) -> str:
        """The alarm that is on; else the id under the cursor."""
        item = self._table.selected if self.is_ready else None
        return super().copy_text() or (item.key if item is not None else "")

    def action_filter(self) -> None:
        """Type what apps must match."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_back(self) -> None:
        """Close the filter, then the full view, then forget the marks."""
        box = self.query_one("#filter", Input)
        if box.display or box.value:
            box.display = False
            box.value = ""
            self._table.focus()
        elif self.maximized is not None:
            super().action_back()
        else:
            self._table.clear_marks()
            self.refresh_bindings()

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        self._table.search(event.value)

    @on(Input.Submitted, "#filter")
    def _filter_kept(self) -> None:
        self.query_one("#filter").display = False
        self._table.focus()
