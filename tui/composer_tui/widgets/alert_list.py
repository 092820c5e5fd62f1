"""What a person should know of the run, the newest first."""

from collections.abc import Sequence

from composer_engine.protocol import AlertRaised
from composer_tui.numbers import clock
from composer_tui.widgets.cells import Row, Span, cut
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import Pane

_STYLES = {"debug": "dim", "info": "text", "warning": "warn", "error": "bad"}


def alert_rows(alerts: Sequence[AlertRaised], width: int, height: int, glyphs: Glyphs) -> list[Row]:
    """A row for each of the newest alerts."""
    if not alerts:
        return [(Span(f"{glyphs.done} none", "dim"),)]
    rows: list[Row] = []
    for alert in list(reversed(alerts))[:height]:
        style = _STYLES[alert.level]
        glyph = glyphs.failed if alert.level == "error" else glyphs.alert
        step = f"@{alert.step} " if alert.step is not None else ""
        lead = f"{clock(alert.time)} "
        text = cut(f"{step}{alert.message}", max(0, width - len(lead) - 2), glyphs.ellipsis)
        rows.append((Span(lead, "axis"), Span(f"{glyph} ", style), Span(text, style)))
    return rows


class AlertList(Pane):
    """The alerts pane."""

    title = "alerts"
    help_text = (
        "What the engine raised: numbers that are not finite, steps that taught nothing, a disk "
        "that is full. The newest is on top; f gives the pane the whole screen."
    )

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._alerts: Sequence[AlertRaised] = ()
        self._count = 0

    def show(self, alerts: Sequence[AlertRaised], count: int) -> None:
        """Show the newest alerts of ``count``."""
        self._alerts, self._count = alerts, count
        self.redraw()

    def heading_right(self) -> Row:
        if not self._count:
            return ()
        return (Span(f"{self._count:,}", "warn"),)

    def content(self, width: int, height: int) -> Sequence[Row]:
        return alert_rows(self._alerts, width, height, self.glyphs)
