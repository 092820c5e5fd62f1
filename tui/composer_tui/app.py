"""The application: four screens, one frame timer, and the runs between them.

The app owns what outlives a screen: the runs that are live, the run that is watched, alarms. Each
frame it reads what the watched run wrote, in slices that let keys through, and shows the screen on
top one `Moment`. Nothing happens per event, and a screen that is not on top costs nothing.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec
from textual import on, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from composer_engine.cloud_spec import app_name
from composer_engine.config import RunConfig
from composer_tui.cloud.accounts import Accounts, has_own_account
from composer_tui.cloud.ledger import known_ref
from composer_tui.cloud.owner import owner_tag
from composer_tui.cloud.wire import App as CloudApp
from composer_tui.cloud.wire import Apps, StopProgress
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
from composer_tui.runs.state import RunState
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore
from composer_tui.screens.base import BaseScreen, Moment
from composer_tui.screens.cloud_desk import GLANCE_SECONDS, LOOK_SECONDS, AppsStop, CloudDesk
from composer_tui.screens.fleet import Fleet, StopFacts
from composer_tui.screens.monitor import MonitorScreen
from composer_tui.screens.run_cost import app_of
from composer_tui.screens.themes import DARK, LIGHT, chart_colours
from composer_tui.screens.watch import Watch
from composer_tui.widgets.glyphs import glyphs_for
from composer_tui.widgets.pane import Pane

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
        self._stopping: set[str] = set()
        self._alarms: dict[str, str] = {}
        self._stop_words = ""
        self._apps: Apps | None = None
        self._kills: dict[str, StopProgress] = {}
        self._owner = owner_tag()
        self._rates: Rates | None = None
        self._quits_when_stopped = False
        self._listing = False
        self._styled_by: object = None
        self._stops: list[Stop] = []
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
        return [
            *(stop for stop in self._stops if not stop.shown),
            *self._desk.stops_under_way(),
        ]

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
            frozenset(self._stopping),
            tuple(self._alarms.values()),
            self._stop_words,
            self._apps,
            self._kills,
            self.readonly,
            self._rates,
        )

    def _settle(self) -> None:
        if self._watch is not None:
            self._watch.renew()
        for run_id in self._fleet.settle():
            self._stopping.discard(run_id)
            self._alarms.pop(run_id, None)
        if self._quits_when_stopped and not self._fleet.outliving():
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

    def _known_state(self, run_id: str) -> RunState | None:
        """What the watch knows of a run; None when another one is watched."""
        watch = self._watch
        return watch.feed.state if watch is not None and watch.run_id == run_id else None

    @on(StopAsked)
    def _stop_asked(self, message: StopAsked) -> None:
        if self._cloud_app(message.run_id) is None:
            self._ask_to_stop([message.run_id])
        else:
            self._ask_to_kill([], [message.run_id])

    # ---- apps on Modal ----

    @on(AppsListed)
    def _apps_listed(self, message: AppsListed) -> None:
        self._apps = message.apps
        self._rates = self._desk.rates(time.time())

    @on(AppsRefreshAsked)
    def _apps_refresh_asked(self) -> None:
        self._desk.look_now(time.time())

    @on(AppsStopAsked)
    def _apps_stop_asked(self, message: AppsStopAsked) -> None:
        apps = []
        for app in message.app_ids:
            run = self._fleet.cloud_run(app)
            if run is not None and run.ref is not None and not run.ref.app_id:
                self._stop(run.folder.run_id, message.mode)  # it is still being launched
            else:
                apps.append(app)
        if apps:
            self._desk.stop(apps, message.mode, message.grace_seconds)

    @on(LeaseAsked)
    def _lease_asked(self, message: LeaseAsked) -> None:
        self._desk.extend(message.app_id, message.minutes)

    @on(LeaseExtended)
    def _lease_extended(self, message: LeaseExtended) -> None:
        if message.until is None:
            self._refuse("the lease was not extended", message.words)
        self._desk.look_now(time.time())

    @on(AppStopTold)
    def _app_stop_told(self, message: AppStopTold) -> None:
        stop = message.progress
        self._kills[stop.app_id] = stop
        if stop.stage == "gone":
            if self._apps is not None:  # the list is older than this
                left = tuple(app for app in self._apps.apps if app.app_id != stop.app_id)
                self._apps = msgspec.structs.replace(self._apps, apps=left)
            self.set_timer(_GONE_SECONDS, partial(self._forget_stop, stop))

    def _forget_stop(self, stop: StopProgress) -> None:
        if self._kills.get(stop.app_id) is stop:
            del self._kills[stop.app_id]

    @on(KillAsked)
    def _kill_asked(self, message: KillAsked) -> None:
        self._ask_to_kill(message.app_ids)

    def _cloud_app(self, run_id: str) -> CloudApp | None:
        """The app of a run on Modal, as it is listed or as its folder knows it; None for others."""
        from composer_tui.screens.kill_facts import app_of_ref

        listed = app_of(run_id, self._apps)
        folder = RunFolder(self._store.root / run_id)
        if listed is not None or not folder.cloud_path.exists():
            return listed
        try:
            ref, config = known_ref(folder), folder.read_record().config
        except DamagedFolder:
            return None
        state = self._known_state(run_id) or RunState()
        return None if ref.ended else app_of_ref(ref, run_id, config, state)

    def _as_watched(self, app: CloudApp) -> CloudApp:
        """The app with what its run has said since it was listed, where it is the watched one."""
        watch = self._watch
        if watch is None or app.run_id not in (watch.run_id, app_name(watch.run_id)):
            return app
        last, saved = watch.feed.state.last, watch.feed.state.checkpoint
        if last is None or last.step <= app.step:
            return app
        return msgspec.structs.replace(
            app,
            step=last.step,
            last_step_at=last.time,
            checkpoint_step=saved.step if saved else app.checkpoint_step,
        )

    def _ask_to_kill(
        self, app_ids: Sequence[str] | None, run_ids: Sequence[str] = (), *, then_quit: bool = False
    ) -> None:
        """Ask whether to stop apps and runs, with None everything that this program launched.

        The app of a run on Modal need not be listed.
        """
        from composer_tui.screens.end_dialog import EndDialog
        from composer_tui.screens.kill_dialog import KillDialog
        from composer_tui.screens.kill_facts import KillAnswer, KillSheet, kill_sheet

        everything = app_ids is None

        def ask() -> KillSheet:
            apps = self._apps or Apps()
            wanted = self._fleet.outliving() if everything else run_ids
            own = {run: app for run in wanted if (app := self._cloud_app(run)) is not None}
            unlisted = tuple(app for app in own.values() if app not in apps.apps)
            live = tuple(self._as_watched(app) for app in (*apps.apps, *unlisted))
            apps = Apps(apps=live, as_of=apps.as_of, problem=apps.problem)
            here = [
                facts
                for run in wanted
                if run not in own
                and (facts := self._fleet.stop_facts(run, self._known_state(run))) is not None
            ]
            ids = None if app_ids is None else [*app_ids, *(app.app_id for app in own.values())]
            return kill_sheet(apps, ids, time.time(), self._config_of, here, self._owner)

        def answered(answer: KillAnswer | None) -> None:
            if answer is None:
                return
            self._quits_when_stopped = then_quit
            if answer.app_ids:
                self.post_message(AppsStopAsked(answer.app_ids, answer.mode, answer.grace_seconds))
            for run in answer.run_ids:
                self._stop(run, answer.mode)

        if isinstance(self.screen, EndDialog):
            return  # the key came twice, before the first dialog was there
        if self.readonly:
            self.notify("this program is read-only: it stops nothing", markup=False)
        elif not ask().things:
            self.notify("there is nothing to stop", markup=False)
        else:
            self.push_screen(KillDialog(ask), answered)

    def _config_of(self, app: CloudApp) -> RunConfig | None:
        """The configuration of an app's run when its folder is here."""
        wanted = app.run_id  # from a tag, which anybody can write: it becomes no path
        here = (run for run in self._store.run_ids() if wanted in {run, app_name(run)})
        run_id = next(here, "") if wanted else ""
        if not run_id:
            return None
        try:
            return RunFolder(self._store.root / run_id).read_record().config
        except DamagedFolder:
            return None

    def _ask_to_stop(self, run_ids: Sequence[str], *, then_quit: bool = False) -> None:
        def ask() -> list[StopFacts]:
            found = [self._fleet.stop_facts(run, self._known_state(run)) for run in run_ids]
            return [facts for facts in found if facts is not None]

        if not ask():
            self.notify("this run has ended: there is nothing to stop", markup=False)
            return

        def stop(mode: StopMode | None) -> None:
            if mode is not None:
                self._quits_when_stopped = then_quit
                for facts in ask():
                    self._stop(facts.run_id, mode)

        from composer_tui.screens.stop_dialog import StopDialog

        self.push_screen(StopDialog(ask), stop)

    def _stop(self, run_id: str, mode: StopMode) -> None:
        handle = self._fleet.get(run_id)
        if handle is None:
            return
        self._stopping.add(run_id)
        self._alarms.pop(run_id, None)
        stop = Stop(handle, mode, lambda ended: self.post_message(StopEnded(ended)))
        self._stops.append(stop)
        stop.start()

    @on(StopEnded)
    def _stop_ended(self, message: StopEnded) -> None:
        stop = message.ended
        stop.shown = True
        self._stopping.discard(stop.run_id)
        if not stop.ended:
            self._quits_when_stopped = False
            self._alarm(stop.run_id, stop.words)
        elif isinstance(self._top, MonitorScreen) and self._known_state(stop.run_id) is not None:
            self._stop_words = stop.words  # the monitor has a line for the run that it shows
        else:
            self.notify(f"{stop.run_id} {stop.words}", markup=False)
        self._settle()

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
        from composer_tui.screens.quit_dialog import QuitAnswer, QuitDialog

        found = [
            self._fleet.live_run(run, self._known_state(run)) for run in self._fleet.outliving()
        ]
        runs = [run for run in found if run is not None]
        if not runs:
            self._leave()
            return

        def answered(answer: QuitAnswer | None) -> None:
            if answer == "leave":
                self._leave()
            elif answer == "stop":
                ids = [run.run_id for run in runs]
                on_modal = any(self._cloud_app(run) is not None for run in ids)
                if on_modal:
                    self._ask_to_kill([], ids, then_quit=True)
                else:
                    self._ask_to_stop(ids, then_quit=True)

        if not isinstance(self.screen, QuitDialog):
            self.push_screen(QuitDialog(runs, readonly=self.readonly), answered)

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
                lambda: self._ask_to_kill(None),
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
