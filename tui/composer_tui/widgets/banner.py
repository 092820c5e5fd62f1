"""What must not be missed and does not go away by itself: it is on every screen."""

from collections.abc import Sequence

from composer_tui.widgets.cells import Row, Span, cut
from composer_tui.widgets.pane import CellWidget


class Banner(CellWidget):
    """A line for each alarm; without alarms it takes no room."""

    def __init__(self) -> None:
        super().__init__(classes="banner")
        self._alarms: tuple[str, ...] = ()
        self.display = False

    def show(self, alarms: tuple[str, ...]) -> None:
        """Show these alarms and no others."""
        if alarms == self._alarms:
            return
        self._alarms = alarms
        self.display = bool(alarms)
        self.styles.height = len(alarms)
        self.redraw()

    def build(self, width: int, height: int) -> Sequence[Row]:
        lead = f" {self.glyphs.alert} "
        return [
            (
                Span(lead, "alarm"),
                Span(cut(alarm, width - len(lead), self.glyphs.ellipsis), "alarm"),
            )
            for alarm in self._alarms[:height]
        ]
