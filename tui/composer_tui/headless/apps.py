"""`apps`: what lives on Modal, what it costs, and what nobody watches."""

import sys
import time

import msgspec

from composer_tui.cloud.orphans import is_to_mark
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.rates_cache import KnownRates, kept_rates
from composer_tui.cloud.wire import App, Apps
from composer_tui.headless.troubles import asking_modal, print_problem, status_of
from composer_tui.numbers import DASH, dollars, duration
from composer_tui.runs.store import RunStore


def print_apps(store: RunStore, *, as_json: bool, every: bool) -> int:
    """0 when the list is Modal's own of now; the problem's status when it is not."""
    now = time.time()
    apps = ask_for_apps(store, now, quietly=as_json)
    shown = [app for app in apps.apps if every or matters(app)]
    if as_json:
        answer = msgspec.structs.replace(apps, apps=tuple(shown))
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    elif is_current(apps, now):
        if shown:
            _print_table(shown, now)
        _print_footer(apps, len(shown), now, kept_rates(now))
    else:
        print("what lives on Modal is NOT known", file=sys.stderr)
    if apps.problem is not None:
        print_problem(apps.problem)
    return 0 if is_current(apps, now) else status_of(apps.problem)


def ask_for_apps(
    store: RunStore, now: float, *, quietly: bool = False, to_all: bool = False
) -> Apps:
    """The list of now, or what is in the way of it."""
    from composer_tui.cloud.apps import list_apps

    try:
        with asking_modal(quietly=quietly, to_all=to_all):
            return list_apps(store, now)
    except CloudProblem as failure:
        return Apps(problem=failure.problem)


def matters(app: App) -> bool:
    """Ours, or spending, or suspicious: not what others deployed and nobody uses."""
    return bool(app.run_id or app.containers or is_to_mark(app))


def is_current(apps: Apps, now: float) -> bool:
    """It was read now, and is not a memory."""
    return apps.as_of == now


def _print_table(apps: list[App], now: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("APP", "NAME", "STATE"):
        table.add_column(heading, no_wrap=True)
    for heading in ("CTR", "GPU", "UP", "$/H", "SPENT", "STEP", "LEASE"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("OWNER")
    table.add_column("NOTE")
    for app in apps:
        style = "dim" if app.orphan == "UNTAGGED" else ""
        table.add_row(*(Text(cell, style) for cell in _cells(app, now)))
    # A pipe has no width to fit: nothing is cut there.
    console = Console() if sys.stdout.isatty() else Console(width=250)
    console.print(table)


def _cells(app: App, now: float) -> list[str]:
    starts = [box.started_at for box in app.containers if box.started_at is not None]
    lease = duration(app.lease_until - now) if app.lease_until > now else "ended"
    return [
        app.app_id,
        app.name,
        app.state,
        str(len(app.containers)),
        app.gpu or DASH,
        duration(max(0.0, now - min(starts))) if starts else DASH,
        dollars(app.burn_usd_per_hour),
        dollars(app.spent_usd),
        f"{app.step}/{app.total_steps}" if app.total_steps else DASH,
        lease if app.lease_until else DASH,
        app.owner or DASH,
        f"{app.orphan}: {app.orphan_why}" if app.orphan else "",
    ]


def _print_footer(apps: Apps, shown: int, now: float, rates: KnownRates) -> None:
    orphans = sum(map(is_to_mark, apps.apps))
    hidden = len(apps.apps) - shown
    parts = [
        f"environment {apps.environment or 'main'}",
        f"{len(apps.apps)} live",
        f"{orphans} {'orphan' if orphans == 1 else 'orphans'}",
        f"burn {dollars(apps.burn_usd_per_hour)}/h",
        _rates_words(apps, now),
    ]
    if hidden:
        parts.append(f"{hidden} not shown that spend nothing: --all")
    print("  ".join(parts))
    if unpriced := [app.app_id for app in apps.apps if app.usd_per_hour is None and app.containers]:
        print(f"not in the burn, for their price is not known: {' '.join(unpriced)}")
    if apps.rates_source != "snapshot" and (gpus := _gpu_keys(rates.missing)):
        print(f"Modal names no price for: {' '.join(gpus)}")


def _gpu_keys(keys: tuple[str, ...]) -> list[str]:
    return [key.removeprefix("gpu_hour_cost_") for key in keys if key.startswith("gpu_")]


def _rates_words(apps: Apps, now: float) -> str:
    from composer_tui.cloud.rates_cache import STALE_SECONDS
    from composer_tui.pricing.catalog import catalog

    if apps.rates_source == "snapshot":
        return f"prices: snapshot of {catalog().as_of}, not Modal's own"
    old = now - apps.rates_as_of
    return f"prices from Modal, {duration(old)} old{' (STALE)' if old > STALE_SECONDS else ''}"
