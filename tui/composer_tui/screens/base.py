"""What the screens have in common: header, banner, keys, and one tick a frame."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget

from composer_engine.config import ConfigProblem
from composer_tui.cloud.wire import Apps, StopProgress
from composer_tui.numbers import number
from composer_tui.runs.store import RunSummary
from composer_tui.screens.kill_banner import alarm_text, banner_lines
from composer_tui.screens.watch import Watch
from composer_tui.widgets.banner import Banner
from composer_tui.widgets.burn import burn_words, orphans, stale_words
from composer_tui.widgets.cells import cut
from composer_tui.widgets.glyphs import UNICODE, Glyphs
from composer_tui.widgets.header import HeaderFacts, HeaderLine
from composer_tui.widgets.key_bar import KeyBar
from composer_tui.widgets.palette import Palette
from composer_tui.widgets.pane import Pane
from composer_tui.widgets.status import status_of

if TYPE_CHECKING:
    from composer_tui.pricing.rates import Rates  # not before a price is asked for


class Moment(NamedTuple):
    """All that a screen may know of the world outside it, at one moment (unix seconds).

    ``live`` are the ids of the runs on this machine that have not ended, ``stopping`` of those
    that were asked to; ``stop_words`` say how the watched run's stop went. ``apps`` is None until
    Modal was asked; ``kills`` has the stops of apps by their ids, those that are over for as long
    as a person should see it. ``rates`` is None where only the shipped prices are known. With
    ``readonly`` nothing may be launched, stopped or prolonged.
    """

    now: float
    watch: Watch | None = None
    live: frozenset[str] = frozenset()
    stopping: frozenset[str] = frozenset()
    alarms: tuple[str, ...] = ()
    stop_words: str = ""
    apps: Apps | None = None
    kills: Mapping[str, StopProgress] = MappingProxyType({})
    readonly: bool = False
    rates: "Rates | None" = None


_COPIED_CELLS = 40  # of what was copied are shown
ACTS = frozenset({"launch", "stop", "kill", "lease", "mark", "mark_orphans"})
"""The actions that a read-only app does not have."""


def header_facts(moment: Moment) -> HeaderFacts:
    """What the header says at a moment."""
    money = HeaderFacts(
        live=len(moment.live),
        burn=burn_words(moment.apps),
        orphans=len(orphans(moment.apps)),
        stale=stale_words(moment.apps, moment.now),
    )
    watch = moment.watch
    if watch is None:
        return money
    state = watch.feed.state
    step = ""
    if state.total_steps:
        step = f"{state.last.step if state.last else 0:,}/{state.total_steps:,}"
    reward = state.last.reward_mean if state.last else None
    return money._replace(
        status=status_of(
            state.life,
            stopping=watch.run_id in moment.stopping,
            ended_by=state.ended_by,
        ),
        name=watch.run_id,
        short_name=watch.name,
        step=step,
        reward=number(reward) if reward is not None else "",
        device=watch.place or (state.device.kind if state.device else ""),
    )


class BaseScreen(Screen[None]):
    """A screen with a header, and a body that is shown a `Moment` each frame it is on top."""

    mode: ClassVar[str] = ""
    first_focus: ClassVar[str] = ""
    lists_runs: ClassVar[bool] = False
    lists_apps: ClassVar[bool] = False
    # As in Screen, but a focus that moves does not paint the whole screen: 30 KiB over ssh.
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)
    ESCAPE_TO_MINIMIZE = False  # it closes a filter first, then the full view: see action_back
    ALLOW_IN_MAXIMIZED_VIEW = ".chrome, .banner, #filter"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "full", "Full", id="pane.full", tooltip="Give the pane the whole screen"),
        Binding(
            "c",
            "copy",
            "Copy",
            show=False,
            id="copy",
            tooltip="Copy the ids of the alarm, or of the app",
        ),
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
        self.alarm_text = ""

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
        self._banner.show(banner_lines(moment.alarms, moment.kills))
        alarm = alarm_text(moment.kills)
        if alarm != self.alarm_text:
            self.alarm_text = alarm
            self.refresh_bindings()
        return False

    def list_runs(self, runs: Sequence[RunSummary]) -> None:
        """For a screen that ``lists_runs``: show these from the next tick on."""

    def refuse(self, title: str, words: str) -> None:
        """Say why what was asked for here was not done."""
        self.notify(words, title=title, severity="error", markup=False)

    def blame(self, problems: Sequence[ConfigProblem]) -> None:
        """For a screen with a form: mark the fields for which it was not done."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """``f`` is there for a pane that has the focus, ``c`` for what there is to copy.

        None, which is "not now", for what a read-only app does not do: its help still lists it.
        """
        del parameters
        if action in ACTS and getattr(self.app, "readonly", False):
            return None
        if action == "copy":
            return bool(self.copy_text())
        return isinstance(self.focused, Pane) if action == "full" else True

    def copy_text(self) -> str:
        """What ``c`` copies: the ids of what does not end, while there is such an alarm."""
        return self.alarm_text

    def action_copy(self) -> None:
        """Copy to the clipboard of the terminal, which has to allow it."""
        text = self.copy_text()
        self.app.copy_to_clipboard(text)
        self.notify(f"copied {cut(text, _COPIED_CELLS)}", markup=False)

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
