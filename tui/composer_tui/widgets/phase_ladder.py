"""The time before step 1, so that it is never a dead screen."""

from collections.abc import Sequence

from composer_tui.numbers import duration
from composer_tui.runs.state import RunState
from composer_tui.widgets.cells import Row, Span, cut
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import Pane

# The rungs, each with what happens there, in the order of a run's life.
_RUNGS = (
    ("launching", "starting the engine"),
    ("loading", "importing torch and trl, loading model and data"),
    ("training", "the first step: rollouts, rewards, one update"),
)
_ELSEWHERE = {
    "building": "uploading, and building the image: minutes, the first time",
    "queued": "waiting for a container with its GPU",
}


def rung_of(state: RunState) -> int:
    """The rung a run stands on before its first step."""
    return {"launching": 0, "loading": 1}.get(state.life, 2)


def ladder_rows(
    state: RunState, waited: float, here: float, last_words: str, width: int, glyphs: Glyphs
) -> list[Row]:
    """``waited``: seconds since the launch; ``here``: seconds on this rung."""
    standing = rung_of(state)
    rows: list[Row] = [()]
    for index, (name, what) in enumerate(_RUNGS):
        now = _ELSEWHERE.get(state.phase or "", what) if index == 0 else what
        if index < standing:
            row: Row = (Span(f"  {glyphs.done} ", "good"), Span(f"{name:<10}"))
        elif index == standing:
            row = (
                Span(f"  {glyphs.live} ", "busy"),
                Span(f"{name:<10}", "strong"),
                Span(f"{duration(here):>7}  "),
                Span(now, "dim"),
            )
        else:
            row = (Span(f"  {glyphs.dot} ", "axis"), Span(f"{name:<10}", "dim"))
        rows.append(row)
    phase = f", phase: {state.phase}" if state.phase else ""
    rows += [(), (Span(f"  {duration(waited)} since the launch{phase}", "dim"),)]
    if last_words:
        rows.append((Span("  "), Span(cut(last_words, max(0, width - 4), glyphs.ellipsis), "dim")))
    return rows


class PhaseLadder(Pane):
    """Launching, loading, training: which of them, and for how long."""

    title = "before step 1"
    help_text = (
        "What the engine is busy with before its first step. Importing torch and trl takes some "
        "seconds on most machines; a model from disk takes longer. Charts replace this at step 1."
    )

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._state = RunState()
        self._rung = -1
        self._rung_since = 0.0
        self._launched_at = 0.0
        self._now = 0.0
        self._last_words = ""

    def show(self, state: RunState, launched_at: float, now: float, last_words: str) -> None:
        """Show where the run stands at ``now``; ``last_words`` is the newest line of its log."""
        rung = rung_of(state)
        if rung != self._rung or launched_at != self._launched_at:
            self._rung_since = launched_at if rung == 0 else now
            self._rung = rung
        self._state, self._launched_at, self._now = state, launched_at, now
        self._last_words = last_words
        self.redraw()

    def content(self, width: int, height: int) -> Sequence[Row]:
        waited = self._now - self._launched_at
        here = self._now - self._rung_since
        rows = ladder_rows(self._state, waited, here, self._last_words, width, self.glyphs)
        return rows[:height]
