"""Two dialogs about one app: all that is known of it, and more time for it."""

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Button

from composer_tui.cloud.wire import App, Apps
from composer_tui.screens.app_facts import fact_pairs, lease_rows, pair_rows
from composer_tui.screens.dialog import Dialog
from composer_tui.widgets.cells import Row


class AppDialog(Dialog[None]):
    """Every fact of an app, as of when it was opened."""

    def __init__(self, app: App, apps: Apps, now: float) -> None:
        super().__init__()
        self._pairs = fact_pairs(app, apps, now)

    def heading(self) -> str:
        return "App"

    def rows(self, width: int) -> Sequence[Row]:
        return [*pair_rows(self._pairs, width), ()]


class LeaseDialog(Dialog[float]):
    """Answers by how many minutes a lease is extended, or None. Cancel has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "Extend", id="lease.confirm", tooltip="Extend the lease"),
    ]

    def __init__(self, app: App, minutes: float, now: float) -> None:
        super().__init__()
        self._app, self._minutes, self._now = app, minutes, now

    def heading(self) -> str:
        return f"Extend the lease by {self._minutes:g} minutes?"

    def rows(self, width: int) -> Sequence[Row]:
        return lease_rows(self._app, self._minutes, self._now, width)

    def buttons(self) -> Sequence[Button]:
        return [
            Button("Cancel (esc)", id="close", compact=True),
            Button("Extend (y)", id="extend", variant="primary", compact=True),
        ]

    def action_confirm(self) -> None:
        """Extend."""
        if self.is_settled:
            self.dismiss(self._minutes)

    def answer(self, button: str) -> None:
        if button == "extend":
            self.action_confirm()
