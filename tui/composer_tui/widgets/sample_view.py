"""The last rollouts: what the model was asked, what it wrote, what that earned."""

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType

from composer_engine.protocol import SampleGenerated
from composer_tui.numbers import number
from composer_tui.widgets.cells import Row, Span, wrap
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.pane import Pane


def sample_rows(sample: SampleGenerated, width: int, glyphs: Glyphs) -> list[Row]:
    """One rollout in as many rows as it takes."""
    reward = number(sample.reward, glyphs.missing)
    rows: list[Row] = [
        (Span(f"step {sample.step:,}", "strong"), Span("  reward ", "dim"), Span(reward, "good"))
    ]
    for name, text, style in (
        ("ask ", sample.prompt, "dim"),
        ("said", sample.completion, "text"),
    ):
        for index, line in enumerate(wrap(text, max(1, width - 5))):
            lead = name if index == 0 else " " * len(name)
            rows.append((Span(f"{lead} ", "axis"), Span(line, style)))
    return rows


class SampleView(Pane):
    """The rollouts pane: the newest, or an older one that a person chose."""

    title = "rollouts"
    help_text = (
        "Rollouts as the engine sampled them: the prompt, the completion, the reward. Up and down "
        "go to older and newer ones; the newest is shown as it comes until then."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "older(1)", "Older rollout", show=False, id="samples.older"),
        Binding("down,j", "older(-1)", "Newer rollout", show=False, id="samples.newer"),
        Binding("end,G", "newest", "Newest", show=False, id="samples.newest"),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._samples: Sequence[SampleGenerated] = ()
        self._chosen: SampleGenerated | None = None

    def show(self, samples: Sequence[SampleGenerated]) -> None:
        """Show the newest of the samples, or the chosen one while it is still among them."""
        self._samples = samples
        if self._chosen is not None and self._chosen not in samples:
            self._chosen = None
        self.redraw()

    def heading_right(self) -> Row:
        if not self._samples:
            return ()
        return (Span(f"{self._place() + 1} of {len(self._samples)}", "dim"),)

    def content(self, width: int, height: int) -> Sequence[Row]:
        if not self._samples:
            return [(Span("no rollout shown yet", "dim"),)]
        rows: list[Row] = []
        for place in range(self._place(), -1, -1):
            if len(rows) >= height:
                break
            rows += [*sample_rows(self._samples[place], width, self.glyphs), ()]
        return rows[:height]

    def _place(self) -> int:
        if self._chosen is None:
            return len(self._samples) - 1
        return list(self._samples).index(self._chosen)

    def action_older(self, back: int) -> None:
        """Choose the rollout ``back`` before the one on show."""
        if not self._samples:
            return
        place = min(len(self._samples) - 1, max(0, self._place() - back))
        newest = place == len(self._samples) - 1
        self._chosen = None if newest else self._samples[place]
        self.redraw()

    def action_newest(self) -> None:
        """Show the newest as it comes."""
        self._chosen = None
        self.redraw()
