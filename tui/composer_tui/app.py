"""The application: four screens, one frame timer, and the runs between them.

The app owns what outlives a screen: the runs that are live, the run that is watched, alarms. Each
frame it reads what the watched run wrote, in slices that let keys through, and shows the screen on
top one `Moment`. Nothing happens per event, and a screen that is not on top costs nothing.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec
from textual import on, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from composer_engine.config import ConfigError
from composer_tui.cloud.accounts import Accounts, has_own_account
from composer_tui.cloud.wire import Apps
from composer_tui.messages import (
    AppsListed,
    AppsRefreshAsked,
    AppsStopAsked,
    AppStopTold,
    CloudLaunched,
    KillAsked,
    LaunchAsked,
    LaunchRefused,
    LeaseAsked,
    LeaseExtended,
    ReplayAsked,
    RunsListed,
    StopAsked,
    StopEnded,
    WatchAsked,
)
from composer_tui.presets import Presets
from composer_tui.runners.base import RunHandle
from composer_tui.runners.local import EngineMissing, LaunchFailed, LocalRunner
from composer_tui.runners.replay import ReplayRunner
from composer_tui.runners.stop import Stop
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.sanitise import clean
from composer_tui.runs.store import RunStore
from composer_tui.screens.base import BaseScreen, Moment
from composer_tui.screens.cloud_desk import (
    GLANCE_SECONDS,
    LOOK_SECONDS,
    AppsStop,
    CloudDesk,
    refusal,
)
from composer_tui.screens.fleet import Fleet
from composer_tui.screens.monitor import MonitorScreen
from composer_tui.screens.stopping import Stopping
from composer_tui.screens.themes import DARK, LIGHT, chart_colours
from composer_tui.screens.watch import Watch
from composer_tui.widgets.glyphs import glyphs_for
from composer_tui.widgets.pane import Pane
from composer_tui.widgets.stopped_apps import with_stops

if TYPE_CHECKING:
    from composer_tui.pricing.rates import Rates

FRAMES_PER_SECOND = 10
SLOW_FRAMES_PER_SECOND = 4  # over ssh, and while another window has the focus
_INGEST_SECONDS = 0.02  # of a frame
_CATCH_UP_SECONDS = 0.2  # of a frame, while a long run is read from its beginning
_SLICE_BYTES = 1 << 16  # so few that a key never waits for more than some milliseconds
_CATCH_UP_SLICE_BYTES = 1 << 18  # a breath a slice would else be half of the time
_BREATH_SECONDS = 0.001  # between slices: enough for a key to be read and answered
_SETTLE_SECONDS = 0.5
_LIST_SECONDS = 1.0
_TWICE_SECONDS = 2.0
_GONE_SECONDS = 30.0  # so long the end of a stop is on show
_WIDTHS = [(0, "-slim"), (72, "-narrow"), (100, "-normal"), (160, "-wide")]
_HEIGHTS = [(0, "-tiny"), (20, "-short"), (32, "-normal-height"), (50, "-tall")]


class ComposerApp(App[None]):
    """Launch, watch and stop runs."""

    TITLE = "composer-tui"
    CSS_PATH = "app.tcss"
    HORIZONTAL_BREAKPOINTS = _WIDTHS
    VERTICAL_BREAKPOINTS = _HEIGHTS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "go('launch')", "Launch", show=False, id="go.launch"),
        Binding("2", "go('monitor')", "Monitor", show=False, id="go.monitor"),
        Binding("3", "go('runs')", "Runs", show=False, id="go.runs"),
        Binding("4", "go('apps')", "Apps", show=False, id="go.apps"),
        Binding("question_mark,f1", "help", "Help", id="help", tooltip="What is this, which keys"),
        Binding("colon", "command_palette", "Commands", show=False, id="palette"),
        Binding("q", "quit", "Quit", id="quit", tooltip="Quit; asks while runs are live"),
        Binding("ctrl+q", "quit", "Quit", show=False, system=True, id="quit.alias"),
        Binding(
            "ctrl+c", "interrupt", "Quit", show=False, system=True, priority=True, id="interrupt"
        ),
    ]

    def __init__(
        self,
        store: RunStore,
        *,
        runner: LocalRunner,
        start: str = "launch",
        run: RunFolder | None = None,
        replay_speed: float | None = None,
        presets_dir: Path | None = None,
        accounts: Accounts | None = None,
        readonly: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """``start`` is the first screen, unless ``run`` or a live run opens in the monitor.

        With ``replay_speed`` it is a replay of ``run`` that opens there. ``accounts`` are the ways
        to Modal. With ``readonly`` nothing can be launched, stopped or prolonged.
        """
        super().__init__()
        self.readonly = readonly
        self.glyphs = glyphs_for(environ)
        self._store = store
        self._runner = runner
        self._start, self._first_run, self._replay_speed = start, run, replay_speed
        self._presets = Presets(presets_dir)
        self._remote = bool(environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"))
        self._desk = CloudDesk(
            store,
            accounts or Accounts(store),
            self.post_message,
            has_account=has_own_account(environ),
        )
        self._fleet = Fleet(runner, self._desk.accounts)
        self._watch: Watch | None = None
        self._alarms: dict[str, str] = {}
        self._stop_words = ""
        self._apps: Apps | None = None
        self._rates: Rates | None = None
        self._stopping = Stopping(
            self,
            store,
            self._fleet,
            self._desk,
            self._alarms,
            watched=lambda: self._watch,
            listed=lambda: self._apps,
            readonly=readonly,
        )
        self._listing = False
        self._styled_by: object = None
        self._settled_at = self._listed_at = self._interrupted_at = 0.0
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.add_mode("launch", self._launch_screen)
        self.add_mode("monitor", MonitorScreen)
        self.add_mode("runs", self._runs_screen)
        self.add_mode("apps", self._apps_screen)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return chart_colours(dark=self.current_theme.dark)

    # What is not on the first screen is imported when it is first shown: the monitor of a run that
    # is live should not wait for the form that launches one.

    def _launch_screen(self) -> BaseScreen:
        from composer_tui.screens.launch import LaunchScreen

        return LaunchScreen(self._presets, self._store.root)

    def _runs_screen(self) -> BaseScreen:
        from composer_tui.screens.runs import RunsScreen

        return RunsScreen()

    def _apps_screen(self) -> BaseScreen:
        from composer_tui.screens.apps import AppsScreen

        return AppsScreen()

    def refresh_css(self, animate: bool = True) -> None:
        """Style everything anew, if there is something new to style it by.

        Textual asks for it at each first showing of a screen, and then parses all sheets again:
        at the start twice in vain.
        """
        seen = (self.get_css_variables(), tuple(self.stylesheet.source))
        if seen != self._styled_by:
            self._styled_by = seen
            super().refresh_css(animate=animate)

    # ---- start and frames ----

    def on_mount(self) -> None:
        live = self._fleet.find_running()
        if self._first_run is not None and self._replay_speed is not None:
            self.post_message(ReplayAsked(self._first_run.run_id, self._replay_speed))
        elif self._first_run is not None:
            self._open(self._first_run)
        elif live:
            self._open(RunFolder(self._store.root / live[0]))
        if self._watch is not None and self._start == "launch":
            self.switch_mode("monitor")
        else:
            self.switch_mode(self._start)
        self._frames()
        self.call_after_refresh(self._list_runs, time.time())

    @property
    def watched(self) -> Watch | None:
        """The run that is looked at."""
        return self._watch

    @property
    def _top(self) -> Screen[object] | None:
        """The screen on top; None while the app closes, when workers may still have news."""
        return next(reversed(self.screen_stack), None)

    def stops_under_way(self) -> list[Stop | AppsStop]:
        """The stops whose outcome nobody has been shown."""
        return self._stopping.under_way()

    def let_cloud_go(self) -> None:
        """Nothing more is asked of Modal. Runs go on."""
        self._desk.close()

    @property
    def live(self) -> frozenset[str]:
        """The ids of the runs on this machine that have not ended."""
        return self._fleet.live

    @work(name="frames")
    async def _frames(self) -> None:
        while True:
            began = time.perf_counter()
            await self._ingest()
            more = True
            while more:
                more = self._tick()
                await asyncio.sleep(_BREATH_SECONDS)
            spent = time.perf_counter() - began
            await asyncio.sleep(max(_BREATH_SECONDS, 1 / self._frames_per_second() - spent))

    def _frames_per_second(self) -> int:
        slow = self._remote or not self.app_focus
        return SLOW_FRAMES_PER_SECOND if slow else FRAMES_PER_SECOND

    async def _ingest(self) -> None:
        """Read what the watched run wrote; keys get their turn after every slice."""
        behind = self._watch is not None and not self._watch.feed.caught_up
        budget = _CATCH_UP_SECONDS if behind else _INGEST_SECONDS
        deadline = time.perf_counter() + budget
        for run_id, reason in self._fleet.pump(time.time()).items():
            self._alarm(run_id, f"the replay {run_id} cannot be written: {reason}")
        watch = self._watch
        while watch is not None and watch is self._watch:
            watch.feed.poll(_CATCH_UP_SLICE_BYTES if behind else _SLICE_BYTES)
            await asyncio.sleep(_BREATH_SECONDS)
            if watch.feed.caught_up or time.perf_counter() >= deadline:
                break

    def _tick(self) -> bool:
        """Show the screen on top this moment; True when it has more to draw."""
        now = time.time()
        if now - self._settled_at >= _SETTLE_SECONDS:
            self._settled_at = now
            self._settle()
        screen = self._top
        on_show = getattr(screen, "lists_apps", False)
        self._desk.look(now, LOOK_SECONDS if on_show else GLANCE_SECONDS)
        if isinstance(screen, BaseScreen) and screen.is_ready:
            if screen.lists_runs:
                self._list_runs(now)
            return screen.tick(self._moment(now))
        return False

    def _moment(self, now: float) -> Moment:
        return Moment(
            now,
            self._watch,
            self._fleet.live,
            self._stopping.runs,
            tuple(self._alarms.values()),
            self._stop_words,
            with_stops(self._apps, self._stopping.apps),
            self._stopping.apps,
            self.readonly,
            self._rates,
        )

    def _settle(self) -> None:
        if self._watch is not None:
            self._watch.renew()
        for run_id in self._fleet.settle():
            self._stopping.is_over(run_id)
        if self._stopping.then_quit and not self._fleet.outliving():
            self._leave()

    # ---- runs ----

    def _open(self, folder: RunFolder, handle: RunHandle | None = None) -> None:
        """Watch a run from its first byte."""
        if handle is not None:
            self._fleet.add(handle)
        if self._watch is not None:
            if self._watch.run_id == folder.run_id:
                return
            self._watch.close()
        self._stop_words = ""
        self._watch = Watch.of(folder, time.time())

    @on(LaunchAsked)
    def _launch(self, message: LaunchAsked) -> None:
        if message.target in ("modal", "rehearsal"):
            self.notify(f"asking {message.target}...", markup=False)
            self._desk.launch(message.config, message.target)
            return
        # In the main thread: the engine asks to be told when the thread that spawned it ends.
        try:
            handle = self._runner.start(message.config)
        except ConfigError as error:
            self._launch_refused(refusal(error))
            return
        except EngineMissing as error:
            self._refuse("the engine is not installed", str(error))
            return
        except LaunchFailed as error:
            self._refuse("the engine did not start", clean(str(error)))
            return
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            self._refuse("no run folder", clean(f"{where}{error.strerror}"))
            return
        self._open(handle.folder, handle)
        self.action_go("monitor")

    @on(CloudLaunched)
    def _cloud_launched(self, message: CloudLaunched) -> None:
        self._open(message.handle.folder, message.handle)
        self.action_go("monitor")
        self._desk.look_now(time.time())

    @on(LaunchRefused)
    def _launch_refused(self, message: LaunchRefused) -> None:
        self._refuse(message.title, message.words)
        if isinstance(self._top, BaseScreen):
            self._top.blame(message.problems)

    def _refuse(self, title: str, words: str) -> None:
        if isinstance(self._top, BaseScreen):
            self._top.refuse(title, words)
        else:
            self.notify(words, title=title, severity="error", markup=False)

    @on(WatchAsked)
    def _watch_asked(self, message: WatchAsked) -> None:
        self._open(RunFolder(self._store.root / message.run_id))
        self.action_go("monitor")

    @on(ReplayAsked)
    def _replay(self, message: ReplayAsked) -> None:
        source = RunFolder(self._store.root / message.run_id)
        try:
            replay = ReplayRunner(self._store, source, message.speed).start()
        except (DamagedFolder, OSError) as error:
            self.notify(clean(str(error)), severity="error", markup=False)
            return
        self._open(replay.folder, replay)
        self.action_go("monitor")

    def _list_runs(self, now: float) -> None:
        if self._listing or now - self._listed_at < _LIST_SECONDS:
            return
        self._listing, self._listed_at = True, now
        self._read_runs()

    @work(thread=True, group="runs")
    def _read_runs(self) -> None:
        self.post_message(RunsListed(self._store.summaries()))

    @on(RunsListed)
    def _runs_listed(self, message: RunsListed) -> None:
        self._listing = False
        found = self._fleet.find(message.runs)
        if found and self._watch is None:
            self._open(RunFolder(self._store.root / found[0]))
        if isinstance(self._top, BaseScreen):
            self._top.list_runs(message.runs)

    # ---- stopping ----

    @on(StopAsked)
    def _stop_asked(self, message: StopAsked) -> None:
        self._stopping.ask_for_run(message.run_id)

    @on(KillAsked)
    def _kill_asked(self, message: KillAsked) -> None:
        self._stopping.ask_for_apps(message.app_ids)

    @on(AppsStopAsked)
    def _apps_stop_asked(self, message: AppsStopAsked) -> None:
        self._stopping.stop_apps(message)

    @on(StopEnded)
    def _stop_ended(self, message: StopEnded) -> None:
        stop = message.ended
        self._stopping.ended(stop)
        if stop.ended:
            is_watched = self._watch is not None and self._watch.run_id == stop.run_id
            if is_watched and isinstance(self._top, MonitorScreen):
                self._stop_words = stop.words  # it has a line for the run that it shows
            else:
                self.notify(f"{stop.run_id} {stop.words}", markup=False)
        self._settle()

    @on(AppStopTold)
    def _app_stop_told(self, message: AppStopTold) -> None:
        stop = message.progress
        self._stopping.told(stop)
        if stop.stage == "gone" and self._apps is not None:  # the list is older than this
            left = tuple(app for app in self._apps.apps if app.app_id != stop.app_id)
            self._apps = msgspec.structs.replace(self._apps, apps=left)

    # ---- apps on Modal ----

    @on(AppsListed)
    def _apps_listed(self, message: AppsListed) -> None:
        self._apps = message.apps
        self._rates = self._desk.rates(time.time())

    @on(AppsRefreshAsked)
    def _apps_refresh_asked(self) -> None:
        self._desk.look_now(time.time())

    @on(LeaseAsked)
    def _lease_asked(self, message: LeaseAsked) -> None:
        self._desk.extend(message.app_id, message.minutes)

    @on(LeaseExtended)
    def _lease_extended(self, message: LeaseExtended) -> None:
        if message.until is None:
            self._refuse("the lease was not extended", message.words)
        self._desk.look_now(time.time())

    def _alarm(self, key: str, words: str) -> None:
        self._alarms[key] = words

    # ---- keys ----

    def action_go(self, mode: str) -> None:
        """Show a screen, at once as it is now."""
        self.switch_mode(mode)
        self.call_after_refresh(self._tick)

    def action_help(self) -> None:
        """Explain the focused pane and the keys."""
        from composer_tui.screens.help_dialog import HelpDialog

        focused = self.screen.focused
        pane = focused if isinstance(focused, Pane) else None
        self.push_screen(HelpDialog(pane, self.screen.active_bindings.values()))

    async def action_quit(self) -> None:
        """Quit; while runs are live, ask what becomes of them."""
        self._stopping.ask_before_quitting(self._leave)

    def action_interrupt(self) -> None:
        """Quit at the second ctrl+c; the runs go on."""
        now = time.monotonic()
        if now - self._interrupted_at <= _TWICE_SECONDS:
            self._leave()
            return
        self._interrupted_at = now
        live = " (runs go on)" if self._fleet.outliving() else ""
        self.notify(f"ctrl+c again quits{live}", timeout=_TWICE_SECONDS, markup=False)

    def _leave(self) -> None:
        for replay in list(self._fleet.replays()):
            replay.stop("now")
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self.exit()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        yield SystemCommand("Launch", "The launch form (1)", lambda: self.action_go("launch"))
        yield SystemCommand("Monitor", "The watched run (2)", lambda: self.action_go("monitor"))
        yield SystemCommand("Runs", "All runs (3)", lambda: self.action_go("runs"))
        yield SystemCommand("Apps", "All that is live, and its cost (4)", self._go_to_apps)
        watch = self._watch
        if not self.readonly and watch is not None and watch.run_id in self._fleet.live:
            run_id = watch.run_id
            yield SystemCommand(
                "Stop run",
                f"Ask whether to stop {run_id} (K)",
                lambda: self.post_message(StopAsked(run_id)),
            )
        if not self.readonly:
            yield SystemCommand(
                "Stop everything (panic)",
                "Ask whether to stop all that this program launched, on Modal and here",
                lambda: self._stopping.ask_for_apps(None),
            )
        yield SystemCommand("Help", "The focused pane, and the keys (?)", self.action_help)
        yield SystemCommand("Theme", "Other colours", self.action_change_theme)
        yield SystemCommand("Screenshot", "Save the screen as SVG", self.deliver_screenshot_here)
        yield SystemCommand("Quit", "Asks while runs are live (q)", self.action_quit)
        del screen

    def _go_to_apps(self) -> None:
        self.action_go("apps")

    def deliver_screenshot_here(self) -> None:
        """Save the screen as an SVG file."""
        self.deliver_screenshot()
