"""How a run failed: what happened, what to do, and the evidence."""

from collections.abc import Sequence

from composer_engine.protocol import RunFailed
from composer_tui.widgets.cells import Row, Span, wrap
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import Pane


def failure_rows(failure: RunFailed, width: int, height: int, glyphs: Glyphs) -> list[Row]:
    """The message and the hint whole; of the detail its last lines, for the error is at its end."""
    rows: list[Row] = []
    for index, line in enumerate(wrap(failure.message, max(1, width - 2))):
        lead = f"{glyphs.failed} " if index == 0 else "  "
        rows.append((Span(lead, "bad"), Span(line, "bad")))
    if failure.hint:
        for index, line in enumerate(wrap(failure.hint, max(1, width - 2))):
            lead = f"{glyphs.cursor} " if index == 0 else "  "
            rows.append((Span(lead, "accent"), Span(line, "strong")))
    detail = [line for text in failure.detail.split("\n") for line in wrap(text, max(1, width - 2))]
    room = height - len(rows)
    if failure.detail and room > 0:
        rows += [(Span("  "), Span(line, "dim")) for line in detail[-room:]]
    return rows[:height]


_MOST_ROWS, _MOST_ROWS_WHEN_SHORT = 7, 5
_SHORT = 32


class FailurePanel(Pane):
    """The failure pane: shown for a failed run only."""

    title = "failed"
    frame_style = "bad"
    help_text = (
        "The run's own last word: what kind of failure, what happened, what to do about it, and "
        "the end of what the engine printed."
    )

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._failure: RunFailed | None = None
        self.display = False

    def show(self, failure: RunFailed | None) -> None:
        """Show a failure; None hides the pane."""
        if failure is self._failure:
            return
        self._failure = failure
        self.display = failure is not None
        self._fit()
        self.redraw()

    def _fit(self) -> None:
        """As high as the failure has words, and no higher than leaves room for the charts."""
        if self._failure is not None:
            width = max(20, self.content_size.width - 2)
            most = _MOST_ROWS if self.app.size.height >= _SHORT else _MOST_ROWS_WHEN_SHORT
            needed = len(failure_rows(self._failure, width, most, self.glyphs)) + 2
            self.styles.height = needed

    def on_resize(self) -> None:
        self._fit()

    def heading(self) -> Row:
        kind = self._failure.kind if self._failure else ""
        return (Span(f"{self.glyphs.failed} failed", "bad"), Span(f"  {kind}", "dim"))

    def content(self, width: int, height: int) -> Sequence[Row]:
        if self._failure is None:
            return []
        return failure_rows(self._failure, width, height, self.glyphs)
