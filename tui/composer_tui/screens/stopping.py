"""Ending what is live: what a person is asked, what they answer, and how far its end is."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textual.app import App

from composer_engine.cloud_spec import app_name
from composer_engine.config import RunConfig
from composer_tui.cloud.ledger import known_ref
from composer_tui.cloud.owner import owner_tag
from composer_tui.cloud.wire import App as CloudApp
from composer_tui.cloud.wire import Apps, StopProgress
from composer_tui.messages import AppsStopAsked, StopEnded
from composer_tui.runners.stop import Stop
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.state import RunState
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunStore
from composer_tui.screens.cloud_desk import AppsStop, CloudDesk
from composer_tui.screens.fleet import Fleet, StopFacts
from composer_tui.screens.run_cost import app_of, as_watched
from composer_tui.screens.watch import Watch

if TYPE_CHECKING:
    from composer_tui.screens.kill_facts import KillSheet

_GONE_SECONDS = 30.0  # so long the end of a stop is on show


class Stopping:
    """``app`` is where the questions are put; ``watched`` and ``listed`` say what it knows now.

    Nothing is stopped without an answer. What a stop came to is posted: `StopEnded` for a run, and
    what the desk posts for an app. ``alarms`` gets, by run id, what was not ended.
    """

    def __init__(
        self,
        app: App[Any],
        store: RunStore,
        fleet: Fleet,
        desk: CloudDesk,
        alarms: dict[str, str],
        *,
        watched: Callable[[], Watch | None],
        listed: Callable[[], Apps | None],
        readonly: bool,
    ) -> None:
        self._app, self._store, self._fleet, self._desk = app, store, fleet, desk
        self._alarms = alarms
        self._watched, self._listed, self._readonly = watched, listed, readonly
        self._owner = owner_tag()
        self._stops: list[Stop] = []
        self._runs: set[str] = set()
        self._apps: dict[str, StopProgress] = {}
        self.then_quit = False
        """Once all that was asked to end has ended, nothing keeps the program open."""

    @property
    def runs(self) -> frozenset[str]:
        """The ids of the runs that are being stopped."""
        return frozenset(self._runs)

    @property
    def apps(self) -> Mapping[str, StopProgress]:
        """By id, where the stop of an app is; for a while also of one that is gone."""
        return self._apps

    def under_way(self) -> list[Stop | AppsStop]:
        """The stops whose outcome nobody has been shown."""
        return [*(stop for stop in self._stops if not stop.shown), *self._desk.stops_under_way()]

    # ---- what is asked ----

    def ask_for_run(self, run_id: str) -> None:
        """Ask whether, and how, to stop a run."""
        if self._cloud_app(run_id) is None:
            self._ask_for_runs_here([run_id])
        else:
            self.ask_for_apps([], [run_id])

    def ask_before_quitting(self, leave: Callable[[], None]) -> None:
        """Ask what becomes of the runs that are live, and leave unless the answer is no."""
        from composer_tui.screens.quit_dialog import QuitAnswer, QuitDialog

        found = [
            self._fleet.live_run(run, self._known_state(run)) for run in self._fleet.outliving()
        ]
        runs = [run for run in found if run is not None]
        if not runs:
            leave()
            return

        def answered(answer: QuitAnswer | None) -> None:
            if answer == "leave":
                leave()
            elif answer == "stop":
                ids = [run.run_id for run in runs]
                if any(self._cloud_app(run) is not None for run in ids):
                    self.ask_for_apps([], ids, then_quit=True)
                else:
                    self._ask_for_runs_here(ids, then_quit=True)

        if not isinstance(self._app.screen, QuitDialog):
            self._app.push_screen(QuitDialog(runs, readonly=self._readonly), answered)

    def ask_for_apps(
        self, app_ids: Sequence[str] | None, run_ids: Sequence[str] = (), *, then_quit: bool = False
    ) -> None:
        """Ask whether to stop apps and runs, with None everything that this program launched.

        The app of a run on Modal need not be listed.
        """
        from composer_tui.screens.end_dialog import EndDialog
        from composer_tui.screens.kill_dialog import KillDialog
        from composer_tui.screens.kill_facts import KillAnswer

        def answered(answer: KillAnswer | None) -> None:
            if answer is None:
                return
            self.then_quit = then_quit
            if answer.app_ids:
                asked = AppsStopAsked(answer.app_ids, answer.mode, answer.grace_seconds)
                self._app.post_message(asked)
            for run in answer.run_ids:
                self._stop_run(run, answer.mode)

        if isinstance(self._app.screen, EndDialog):
            return  # the key came twice, before the first dialog was there
        if self._readonly:
            self._app.notify("this program is read-only: it stops nothing", markup=False)
        elif not self._sheet(app_ids, run_ids).things:
            self._app.notify("there is nothing to stop", markup=False)
        else:
            self._app.push_screen(KillDialog(lambda: self._sheet(app_ids, run_ids)), answered)

    def _ask_for_runs_here(self, run_ids: Sequence[str], *, then_quit: bool = False) -> None:
        from composer_tui.screens.stop_dialog import StopDialog

        def answered(mode: StopMode | None) -> None:
            if mode is not None:
                self.then_quit = then_quit
                for facts in self._facts(run_ids):
                    self._stop_run(facts.run_id, mode)

        if not self._facts(run_ids):
            self._app.notify("this run has ended: there is nothing to stop", markup=False)
        else:
            self._app.push_screen(StopDialog(lambda: self._facts(run_ids)), answered)

    # ---- what is known ----

    def _known_state(self, run_id: str) -> RunState | None:
        """What the watch knows of a run; None when another one is watched."""
        watch = self._watched()
        return watch.feed.state if watch is not None and watch.run_id == run_id else None

    def _facts(self, run_ids: Sequence[str]) -> list[StopFacts]:
        found = [self._fleet.stop_facts(run, self._known_state(run)) for run in run_ids]
        return [facts for facts in found if facts is not None]

    def _sheet(self, app_ids: Sequence[str] | None, run_ids: Sequence[str]) -> "KillSheet":
        from composer_tui.screens.kill_facts import kill_sheet

        apps = self._listed() or Apps()
        wanted = self._fleet.outliving() if app_ids is None else run_ids
        own = {run: app for run in wanted if (app := self._cloud_app(run)) is not None}
        unlisted = tuple(app for app in own.values() if app not in apps.apps)
        live = tuple(as_watched(app, self._watched()) for app in (*apps.apps, *unlisted))
        apps = Apps(apps=live, as_of=apps.as_of, problem=apps.problem)
        here = self._facts([run for run in wanted if run not in own])
        ids = None if app_ids is None else [*app_ids, *(app.app_id for app in own.values())]
        return kill_sheet(apps, ids, time.time(), self._config_of, here, self._owner)

    def _cloud_app(self, run_id: str) -> CloudApp | None:
        """The app of a run on Modal, as it is listed or as its folder knows it; None for others."""
        from composer_tui.screens.kill_facts import app_of_ref

        listed = app_of(run_id, self._listed())
        folder = RunFolder(self._store.root / run_id)
        if listed is not None or not folder.cloud_path.exists():
            return listed
        try:
            ref, config = known_ref(folder), folder.read_record().config
        except DamagedFolder:
            return None
        state = self._known_state(run_id) or RunState()
        return None if ref.ended else app_of_ref(ref, run_id, config, state)

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

    # ---- what is done ----

    def stop_apps(self, asked: AppsStopAsked) -> None:
        """Stop apps: a person has confirmed it."""
        apps = []
        for app in asked.app_ids:
            run = self._fleet.cloud_run(app)
            if run is not None and run.ref is not None and not run.ref.app_id:
                self._stop_run(run.folder.run_id, asked.mode)  # it is still being launched
            else:
                apps.append(app)
        if apps:
            self._desk.stop(apps, asked.mode, asked.grace_seconds)

    def _stop_run(self, run_id: str, mode: StopMode) -> None:
        handle = self._fleet.get(run_id)
        if handle is None:
            return
        self._runs.add(run_id)
        self._alarms.pop(run_id, None)
        stop = Stop(handle, mode, lambda ended: self._app.post_message(StopEnded(ended)))
        self._stops.append(stop)
        stop.start()

    # ---- how it went ----

    def ended(self, stop: Stop) -> None:
        """The stop of a run was carried through, well or not."""
        stop.shown = True
        self._runs.discard(stop.run_id)
        if not stop.ended:
            self.then_quit = False
            self._alarms[stop.run_id] = stop.words

    def is_over(self, run_id: str) -> None:
        """A run has ended, by a stop or by itself."""
        self._runs.discard(run_id)
        self._alarms.pop(run_id, None)

    def told(self, progress: StopProgress) -> None:
        """Where the stop of an app is."""
        self._apps[progress.app_id] = progress
        if progress.stage == "gone":
            self._app.set_timer(_GONE_SECONDS, lambda: self._forget(progress))

    def _forget(self, progress: StopProgress) -> None:
        if self._apps.get(progress.app_id) is progress:
            del self._apps[progress.app_id]
