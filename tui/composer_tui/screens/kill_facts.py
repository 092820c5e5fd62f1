"""What a person should know before apps on Modal are stopped, and what is asked of them."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

from composer_engine.cloud_spec import app_name
from composer_engine.config import ModalConfig, RunConfig
from composer_tui.cloud.ledger import CloudRef
from composer_tui.cloud.wire import App, Apps
from composer_tui.numbers import dollars
from composer_tui.pricing.catalog import catalog
from composer_tui.runs.state import RunState
from composer_tui.runs.stop_mode import StopMode
from composer_tui.screens.app_facts import (
    UNLISTED,
    checkpoint_words,
    containers_words,
    cost_words,
    is_rehearsed,
    pair_rows,
    rate_usd_per_hour,
    step_words,
)
from composer_tui.screens.end_dialog import GRACEFUL, NOW, what_is_saved
from composer_tui.screens.fleet import StopFacts
from composer_tui.widgets.burn import is_orphan, stale_words
from composer_tui.widgets.cells import Row, Span, wrap

EVERYTHING = "STOP"


class KillAnswer(NamedTuple):
    """What to stop, and how. ``run_ids`` are engines on this machine."""

    app_ids: tuple[str, ...]
    run_ids: tuple[str, ...]
    mode: StopMode
    grace_seconds: float


class KillSheet(NamedTuple):
    """All that is known, at the moment ``now``, of what may be stopped.

    ``apps`` has the apps that are still live. With ``everything``, ``runs`` are the engines on this
    machine, and ``foreign`` counts the apps that are left alone. ``stale`` is
    "" or how old the news is; ``grace_seconds`` and ``volumes`` are of the runs' own settings.
    """

    now: float
    apps: tuple[App, ...]
    grace_seconds: float
    volumes: tuple[str, ...] = ()
    runs: tuple[StopFacts, ...] = ()
    foreign: int = 0
    stale: str = ""
    everything: bool = False

    @property
    def things(self) -> int:
        """How many there are to stop."""
        return len(self.apps) + len(self.runs)


ConfigOf = Callable[[App], RunConfig | None]


def kill_sheet(
    apps: Apps | None,
    app_ids: Sequence[str] | None,
    now: float,
    config_of: ConfigOf = lambda _: None,
    runs: Sequence[StopFacts] = (),
    mine: str = "",
) -> KillSheet:
    """Of these apps, or with None of all that ``mine`` (an owner) launched, what is known.

    ``config_of`` answers the configuration of an app's run when its folder is on this machine.
    """
    live = apps.apps if apps is not None else ()
    foreign = 0
    if app_ids is None:
        chosen = [app for app in live if app.orphan != "UNTAGGED" and app.owner in ("", mine)]
        foreign = len(live) - len(chosen)
    else:
        chosen = [app for app in live if app.app_id in app_ids]
    configs = [found.modal for app in chosen if (found := config_of(app)) is not None]
    known = configs or [ModalConfig()]
    volumes = dict.fromkeys(name for c in known for name in (c.runs_volume, c.cache_volume))
    return KillSheet(
        now,
        tuple(chosen),
        max(config.stop_grace_seconds for config in known),
        tuple(volumes) if any(is_ours(app) for app in chosen) else (),
        tuple(runs),
        foreign,
        stale_words(apps, now),
        app_ids is None,
    )


def app_of_ref(ref: CloudRef, run_id: str, config: RunConfig, state: RunState) -> App:
    """A run on Modal that no list of apps names (yet), from what its folder says.

    Whether it has containers is not known. Before it has an id its name stands for it. A rehearsal
    costs nothing.
    """
    free = Decimal(0) if ref.connection else None
    return App(
        app_id=ref.app_id or ref.app_name,
        name=ref.app_name,
        state=UNLISTED,
        created_at=ref.launched_at,
        gpu=config.modal.gpu[0] if config.modal.gpu else "",
        usd_per_hour=Decimal(ref.usd_per_hour) if free is None and ref.usd_per_hour else free,
        spent_usd=free,
        run_id=app_name(run_id),
        lease_until=ref.lease_until,
        cap_usd=Decimal(ref.cap_usd) if ref.cap_usd else None,
        step=state.last.step if state.last else 0,
        total_steps=state.total_steps,
        last_step_at=state.last.time if state.last else 0.0,
        checkpoint_step=state.checkpoint.step if state.checkpoint else 0,
    )


def is_ours(app: App) -> bool:
    """This program launched it: it listens to what it is asked."""
    return bool(app.run_id) and app.orphan != "UNTAGGED"


def is_healthy(app: App) -> bool:
    """Somebody watches over it, and it can save."""
    return is_ours(app) and not is_orphan(app)


def usual_mode(sheet: KillSheet) -> StopMode:
    """Graceful when something may be lost that could be saved; now for orphans and strangers."""
    return GRACEFUL if sheet.runs or any(map(is_healthy, sheet.apps)) else NOW


def to_type(sheet: KillSheet) -> str:
    """What has to be typed: STOP for everything, or how many."""
    return EVERYTHING if sheet.everything else str(sheet.things)


def saved_words(app: App, mode: StopMode, grace_seconds: float) -> str:
    """What a stop of the app keeps and what it loses."""
    if not is_ours(app):
        return "Ends at once. It cannot be asked to save: this program did not launch it."
    if mode == GRACEFUL and app.orphan in {"NO_HEARTBEAT", "STUCK_STOPPING"}:
        return "Is asked to save, but does not answer: it is likely to be ended by force."
    return what_is_saved(app.step, app.checkpoint_step, mode, grace_seconds)


def money_words(sheet: KillSheet) -> str:
    """What the stop saves an hour, and what was spent."""
    burns = [rate_usd_per_hour(app) for app in sheet.apps]
    saves = sum((burn for burn in burns if burn is not None), Decimal(0))
    spent = [app.spent_usd for app in sheet.apps if app.spent_usd is not None]
    more = " and more, for some prices are not known" if None in burns else ""
    if not sheet.apps:
        return "Runs on this machine cost nothing."
    if all(map(is_rehearsed, sheet.apps)):
        return "A rehearsal costs nothing."
    unlisted = [app for app in sheet.apps if app.state == UNLISTED]
    idle = [app for app in sheet.apps if not app.containers and app.usd_per_hour]
    if idle and not unlisted and not any(app.containers for app in sheet.apps):
        later = sum((app.usd_per_hour or Decimal(0) for app in idle), Decimal(0))
        return f"Costs nothing by the hour now; {dollars(later)}/h once containers are there."
    if None in burns and not saves:
        return "What it saves is not known: the price is not."
    most = "up to " if unlisted and saves else ""
    so_far = f" Spent so far: {dollars(sum(spent, Decimal(0)))}." if spent else ""
    return f"Saves {most}{dollars(saves)}/h{more}.{so_far}"


def volume_words(sheet: KillSheet) -> str:
    """What goes on costing."""
    price = catalog().rates["volume_storage_gib_month_cost"]
    if sheet.apps and all(map(is_rehearsed, sheet.apps)):
        return "Volumes stay on this machine, and cost nothing."
    if not sheet.volumes:
        return f"Volumes stay, and cost {dollars(price)} per GiB and month."
    names = ", ".join(sheet.volumes)
    return f"Volumes stay ({names}), and cost {dollars(price)} per GiB and month."


def sheet_rows(sheet: KillSheet, mode: StopMode, width: int) -> list[Row]:
    """The whole sheet; what is true of all of it comes first."""
    if not sheet.things:
        return [(Span("Nothing of it is live any more.", "strong"),), ()]
    rows: list[Row] = []
    if sheet.stale:
        rows += _lines(f"What is known is of {sheet.stale}: newer could not be had.", width, "bad")
        rows.append(())
    alone = len(sheet.apps) == 1 and not sheet.everything
    if alone:
        rows += [*_one_rows(sheet, mode, width), ()]
    rows += _lines(money_words(sheet), width, "strong")
    if sheet.apps:
        rows += _lines(volume_words(sheet), width, "dim")
    if sheet.foreign:
        one = sheet.foreign == 1
        words = f"{sheet.foreign} app{'' if one else 's'} that you did not launch from here "
        rows += _lines(f"{words}{'is' if one else 'are'} left alone.", width, "dim")
    rows.append(())
    if alone:
        return rows
    for app in sheet.apps:
        rows += [*_short_rows(app, sheet, mode, width), ()]
    for run in sheet.runs:
        rows += [*_run_rows(run, mode, width), ()]
    return rows


def _lines(words: str, width: int, style: str) -> list[Row]:
    return [(Span(line, style),) for line in wrap(words, max(8, width))]


def _one_rows(sheet: KillSheet, mode: StopMode, width: int) -> list[Row]:
    (app,) = sheet.apps
    whose = f", of {app.owner}" if app.owner and is_ours(app) else ""
    pairs = [
        ("app", app.name, "strong"),
        ("id", f"{app.app_id or 'not known yet'}{whose}", "text"),
        ("gpu", f"{app.gpu or 'none'}, {containers_words(app, sheet.now)}", "text"),
        ("cost", cost_words(app), "text"),
        ("last step", step_words(app, sheet.now), "text"),
        ("checkpoint", checkpoint_words(app), "text"),
    ]
    if app.orphan == "UNTAGGED":
        pairs.append(("not ours", app.orphan_why, "bad"))
    elif app.orphan:
        pairs.append(("orphan", f"{app.orphan}: {app.orphan_why}".removesuffix(": "), "bad"))
    rows = [*pair_rows(pairs, width), ()]
    return rows + _lines(saved_words(app, mode, sheet.grace_seconds), width, "warn")


def _short_rows(app: App, sheet: KillSheet, mode: StopMode, width: int) -> list[Row]:
    """One of several: the same facts in fewer lines."""
    what = f"{app.gpu or 'no GPU'}, {containers_words(app, sheet.now)}"
    ours = is_ours(app)
    rows: list[Row] = [(Span(app.name, "strong"), Span(f"  {app.app_id}", "dim"))]
    rows += _inset(f"{what}; {cost_words(app)}", width, "text")
    owners = {one.owner for one in sheet.apps if is_ours(one)}
    if ours and app.owner and len(owners) > 1:
        rows += _inset(f"of {app.owner}", width, "text")
    if ours:
        steps = f"last step {step_words(app, sheet.now)}; checkpoint {checkpoint_words(app)}"
        rows += _inset(steps, width, "text")
    if app.orphan and ours:
        rows += _inset(f"{app.orphan}: {app.orphan_why}".rstrip(": "), width, "bad")
    return rows + _inset(lost_words(app, mode), width, "warn")


def lost_words(app: App, mode: StopMode) -> str:
    """What a stop of the app loses, in few words."""
    if not is_ours(app):
        return "not launched by this program: ends at once, unsaved"
    if mode == GRACEFUL:
        return "saves first" if is_healthy(app) else "is asked to save, and may not answer"
    lost = max(0, app.step - app.checkpoint_step)
    return f"loses {lost:,} step{'s' if lost != 1 else ''}" if lost else "loses nothing"


def _run_rows(run: StopFacts, mode: StopMode, width: int) -> list[Row]:
    done = run.state.last.step if run.state.last else 0
    saved = run.state.checkpoint.step if run.state.checkpoint else 0
    rows: list[Row] = [(Span(run.run_id, "strong"), Span("  this machine", "dim"))]
    rows += _inset(f"step {done:,} of {run.total_steps:,}; $0.00", width, "text")
    return rows + _inset(what_is_saved(done, saved, mode, run.grace_seconds), width, "warn")


def _inset(words: str, width: int, style: str) -> list[Row]:
    return [(Span("  "), *row) for row in _lines(words, width - 2, style)]
