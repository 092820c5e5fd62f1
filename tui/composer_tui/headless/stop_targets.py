"""What `stop` was asked to stop: names become handles of this machine's runs, and apps on Modal."""

import contextlib
import re
import time
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from composer_tui.cloud.cloud import Cloud
from composer_tui.cloud.ledger import CloudRef, cloud_runs, known_ref
from composer_tui.cloud.orphans import is_to_mark
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.wire import App, Apps
from composer_tui.headless.apps import ask_for_apps, is_current
from composer_tui.headless.troubles import print_problem
from composer_tui.numbers import dollars, duration
from composer_tui.runners.attach import attach
from composer_tui.runners.base import RunHandle
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.sanitise import clean
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import LAST, AmbiguousRun, RunNotFound, RunStore

OWN_ACCOUNT = ""
GRACE_SECONDS = 60.0
_APP_ID = re.compile(r"ap-[A-Za-z0-9]{22}")


class CannotStop(ValueError):  # noqa: N818  # says what the matter is
    """What was named cannot be found, or is not to be stopped so; one line."""


class Request(NamedTuple):
    """What was asked for on the command line. ``grace_seconds`` None: as each run has it."""

    names: tuple[str, ...]
    orphans: bool = False
    every: bool = False
    mode: StopMode = "graceful"
    grace_seconds: float | None = None
    yes: bool = False
    as_json: bool = False


class CloudTarget(NamedTuple):
    """One app, and the account that it is in (its rehearsal's connection, or "").

    ``folder`` is its run's on this machine, where it has one.
    """

    app_id: str
    name: str
    connection: str = OWN_ACCOUNT
    app: App | None = None
    grace_seconds: float = GRACE_SECONDS
    folder: RunFolder | None = None
    ref_usd_per_hour: str = ""

    @property
    def run_id(self) -> str:
        """Its run's, "" where this machine has none."""
        return self.folder.run_id if self.folder is not None else ""

    @property
    def usd_per_hour(self) -> Decimal | None:
        """What one container of it costs, None where that is not known."""
        if self.app is not None and self.app.usd_per_hour is not None:
            return self.app.usd_per_hour
        return Decimal(self.ref_usd_per_hour) if self.ref_usd_per_hour else None


class Targets(NamedTuple):
    """All that is to be stopped; ``over`` are runs of which there is nothing left to stop."""

    local: list[RunHandle]
    cloud: list[CloudTarget]
    over: list[str]

    @property
    def number(self) -> int:
        return len(self.local) + len(self.cloud)


def find_targets(store: RunStore, request: Request) -> Targets:
    """Everything named, once. Raises `CannotStop`, or `CloudProblem` where Modal must be asked."""
    targets = Targets([], [], [])
    if request.orphans or request.every:
        apps = _listed(store)
        chosen = [app for app in apps.apps if request.every or is_to_mark(app)]
        folders = {ref.app_id or ref.app_name: folder for folder, ref in cloud_runs(store)}
        targets.cloud.extend(
            CloudTarget(
                app.app_id,
                app.name,
                app=app,
                folder=folders.get(app.app_id) or folders.get(app.name),
            )
            for app in chosen
        )
        return targets
    runner = LocalRunner(store)
    known = {ref.app_id: (folder, ref) for folder, ref in cloud_runs(store) if ref.app_id}
    for name in request.names:
        if _APP_ID.fullmatch(name):
            folder, ref = known.get(name, (None, CloudRef(app_name="")))
            price = ref.usd_per_hour
            found = CloudTarget(
                name, ref.app_name, ref.connection, folder=folder, ref_usd_per_hour=price
            )
            _add(targets, found)
            continue
        try:
            folder = store.find(name)
        except RunNotFound as no_run:
            _add(targets, *_apps_called(store, name, str(no_run)))
            continue
        except AmbiguousRun as several:
            raise CannotStop(str(several)) from None
        if folder.run_id in {handle.folder.run_id for handle in targets.local}:
            continue
        if _is_on_modal(folder):
            _add_cloud_run(store, targets, folder)
        else:
            targets.local.append(attach(runner, folder))
    if not request.yes and any(target.connection == OWN_ACCOUNT for target in targets.cloud):
        return targets._replace(cloud=_with_facts(store, targets.cloud))
    return targets


def _add(targets: Targets, *found: CloudTarget) -> None:
    known = {target.app_id for target in targets.cloud}
    targets.cloud.extend(target for target in found if target.app_id not in known)


def _is_on_modal(folder: RunFolder) -> bool:
    try:
        return folder.read_record().target in ("modal", "rehearsal")
    except DamagedFolder:
        return folder.cloud_path.exists()


def _add_cloud_run(store: RunStore, targets: Targets, folder: RunFolder) -> None:
    from composer_tui.cloud.accounts import for_commands
    from composer_tui.rehearsal import process

    try:
        ref = known_ref(folder)
    except DamagedFolder as damage:
        raise CannotStop(
            f"{folder.run_id}: {damage}; `composer-tui apps` shows its app, to stop by id"
        ) from None
    if ref.ended or (ref.connection and process.find(Path(ref.connection)) is None):
        targets.over.append(folder.run_id)  # a rehearsal's containers end with it
        return
    # Its launch goes on, or was cut short, or its file is damaged: it has no app that is known.
    if ref.rebuilt or not (ref.launched_at or ref.call_id):
        targets.local.append(attach(LocalRunner(store), folder, for_commands(store)))
        return
    grace = GRACE_SECONDS
    with contextlib.suppress(DamagedFolder):
        grace = folder.read_record().config.modal.stop_grace_seconds
    found = CloudTarget(
        ref.app_id,
        ref.app_name,
        ref.connection,
        grace_seconds=grace,
        folder=folder,
        ref_usd_per_hour=ref.usd_per_hour,
    )
    _add(targets, found)


def _apps_called(store: RunStore, name: str, no_run: str) -> Iterable[CloudTarget]:
    """The app of that name, where no run has it. Raises `CannotStop`."""
    if name == LAST:
        raise CannotStop(no_run)
    try:
        apps = _listed(store)
    except CloudProblem as failure:
        missing = failure.problem
        if missing.kind != "no_token" or name.startswith("ap-"):
            raise
        unasked = f"{missing.message}, so Modal was not asked for an app of that name"
        raise CannotStop(f"{no_run}; {unasked} (try: {missing.hint})") from None
    found = [app for app in apps.apps if app.name == name]
    if not found:
        raise CannotStop(f"neither a run nor an app on Modal is called {clean(name)!r}")
    if len(found) > 1:
        ids = " ".join(app.app_id for app in found)
        raise CannotStop(f"{len(found)} apps are called {clean(name)!r}: {ids}")
    return [CloudTarget(app.app_id, app.name, app=app) for app in found]


def _listed(store: RunStore) -> Apps:
    """The list of now. Raises `CloudProblem` when it cannot be had."""
    from composer_tui.cloud.problems import problem

    now = time.time()
    apps = ask_for_apps(store, now, to_all=True)
    if not is_current(apps, now):
        raise CloudProblem(apps.problem or problem("server"))
    if apps.problem is not None:
        print_problem(apps.problem)
    return apps


def _with_facts(store: RunStore, targets: list[CloudTarget]) -> list[CloudTarget]:
    """What a person is to read before consenting; without it they are asked all the same."""
    try:
        by_id = {app.app_id: app for app in _listed(store).apps}
    except CloudProblem as failure:
        print_problem(failure.problem)
        return targets
    return [target._replace(app=by_id.get(target.app_id)) for target in targets]


def describe(targets: Targets, mode: StopMode) -> list[str]:
    """What a person reads before they consent."""
    lines = [f"  {handle.folder.run_id}  on this machine" for handle in targets.local]
    burns = (target.app.burn_usd_per_hour for target in targets.cloud if target.app is not None)
    saved_per_hour = sum((burn for burn in burns if burn is not None), Decimal(0))
    lines.extend(f"  {_facts(target)}" for target in targets.cloud)
    if targets.cloud:
        how = "asked to save first, where they can" if mode == "graceful" else "ended at once"
        lines.append(f"saves about {dollars(saved_per_hour)}/h; {how}; volumes stay")
    return [f"stop {targets.number}:", *lines]


def _facts(target: CloudTarget) -> str:
    app = target.app
    if app is None:
        return f"{target.name or 'an app'}  {target.app_id}"
    parts = [
        app.name,
        app.app_id,
        f"{len(app.containers)}x{app.gpu or 'CPU'}",
        f"{dollars(app.burn_usd_per_hour)}/h",
        f"spent {dollars(app.spent_usd)}",
    ]
    if app.last_step_at:
        parts.append(f"step {app.step}, {duration(time.time() - app.last_step_at)} ago")
    if app.step:
        kept = f"step {app.checkpoint_step}" if app.checkpoint_step else "none"
        parts.append(f"last checkpoint: {kept}")
    parts.append(app.orphan_why)
    return "  ".join(part for part in parts if part)


def account(store: RunStore, connection: str) -> Cloud:
    """Another account than this process's own, through a helper process."""
    from composer_tui.cloud.accounts import for_commands

    return for_commands(store)(connection)
