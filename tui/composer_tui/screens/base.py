"""What the three screens have in common: header, banner, keys, and one tick a frame."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget

from composer_tui.numbers import number
from composer_tui.runs.store import RunSummary
from composer_tui.screens.watch import Watch
from composer_tui.widgets.banner import Banner
from composer_tui.widgets.glyphs import UNICODE, Glyphs
from composer_tui.widgets.header import HeaderFacts, HeaderLine
from composer_tui.widgets.key_bar import KeyBar
from composer_tui.widgets.palette import Palette
from composer_tui.widgets.pane import Pane
from composer_tui.widgets.status import status_of


class Moment(NamedTuple):
    """All that a screen may know of the world outside it, at one moment (unix seconds).

    ``live`` are the ids of the runs on this machine that have not ended, ``stopping`` of those
    that were asked to; ``stop_words`` say how the watched run's stop went.
    """

    now: float
    watch: Watch | None = None
    live: frozenset[str] = frozenset()
    stopping: frozenset[str] = frozenset()
    alarms: tuple[str, ...] = ()
    stop_words: str = ""


def header_facts(moment: Moment) -> HeaderFacts:
    """What the header says at a moment."""
    if moment.watch is None:
        return HeaderFacts(live=len(moment.live))
    state = moment.watch.feed.state
    step = ""
    if state.total_steps:
        step = f"{state.last.step if state.last else 0:,}/{state.total_steps:,}"
    device = state.device
    reward = state.last.reward_mean if state.last else None
    return HeaderFacts(
        status_of(state.life, stopping=moment.watch.run_id in moment.stopping),
        moment.watch.run_id,
        moment.watch.name,
        step,
        number(reward) if reward is not None else "",
        device.kind if device else "",
        len(moment.live),
    )


class BaseScreen(Screen[None]):
    """A screen with a header, and a body that is shown a `Moment` each frame it is on top."""

    mode: ClassVar[str] = ""
    first_focus: ClassVar[str] = ""
    lists_runs: ClassVar[bool] = False
    # As in Screen, but a focus that moves does not paint the whole screen: 30 KiB over ssh.
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)
    ESCAPE_TO_MINIMIZE = False  # it closes a filter first, then the full view: see action_back
    ALLOW_IN_MAXIMIZED_VIEW = ".chrome, .banner, #filter"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "full", "Full", id="pane.full", tooltip="Give the pane the whole screen"),
        Binding("escape", "back", "Back", show=False, id="back"),
    ]

    @property
    def app_glyphs(self) -> Glyphs:
        """The character set of the app."""
        glyphs: Glyphs = getattr(self.app, "glyphs", UNICODE)
        return glyphs

    def __init__(self) -> None:
        super().__init__()
        self._header = HeaderLine(self.mode)
        self._banner = Banner()
        self._composed = False

    @property
    def is_ready(self) -> bool:
        """The body is there to be shown something: it is composed, and not yet being removed."""
        return self._composed and self._header.is_attached and self._header in self.children

    def body(self) -> ComposeResult:
        """The widgets between header and keys."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        yield Palette()
        yield self._header
        yield self._banner
        yield from self.body()
        yield KeyBar()

    def on_mount(self) -> None:
        self._composed = True
        if self.first_focus:
            self.query_one(self.first_focus).focus()

    def tick(self, moment: Moment) -> bool:
        """Show a moment; what did not change is not painted again.

        True when there is more to draw: a screen draws a part at a time, and keys come between.
        """
        self._header.show(header_facts(moment))
        self._banner.show(moment.alarms)
        return False

    def list_runs(self, runs: Sequence[RunSummary]) -> None:
        """For a screen that ``lists_runs``: show these from the next tick on."""

    def refuse(self, title: str, words: str) -> None:
        """Say why what was asked for here was not done."""
        self.notify(words, title=title, severity="error", markup=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """``f`` is there for a pane that has the focus."""
        del parameters
        return isinstance(self.focused, Pane) if action == "full" else True

    def action_full(self) -> None:
        """Give the focused pane the whole screen, or give it back."""
        if self.maximized is not None:
            self.action_back()
        elif isinstance(self.focused, Pane):
            self.fill(self.focused)

    def fill(self, pane: Widget) -> None:
        """Give a pane the whole screen."""
        self.maximize(pane, container=False)
        pane.focus()

    def action_back(self) -> None:
        """Leave the full view."""
        self.minimize()
