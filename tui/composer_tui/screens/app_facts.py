"""All that is known of one app, in words."""

import time
from decimal import Decimal

from composer_tui.cloud.wire import App, Apps
from composer_tui.numbers import clock, dollars, duration
from composer_tui.pricing.catalog import catalog
from composer_tui.pricing.rates import SNAPSHOT
from composer_tui.widgets.app_status import dashboard_url
from composer_tui.widgets.burn import age_words, is_orphan
from composer_tui.widgets.cells import Row, Span, wrap

UNLISTED = "not listed"
"""As an app's state: Modal has not named it (yet), and nothing is known of its containers."""

_LABEL_CELLS = 12
_SECONDS_PER_MINUTE = 60


def is_rehearsed(app: App) -> bool:
    """An app of a rehearsal, which no list of Modal's names, and which costs nothing."""
    return app.state == UNLISTED and app.usd_per_hour == 0


def stop_command(app: App, environment: str) -> str:
    """What stops the app without this program."""
    where = f" -e {environment}" if environment else ""
    return f"modal app stop -y {app.app_id}{where}"


def rates_words(source: str, as_of: float) -> str:
    """Whose prices, and of when: what is old or a snapshot is called so."""
    if source == SNAPSHOT or not as_of:
        return f"a snapshot of {catalog().as_of}"
    return f"Modal's of {_day(as_of)} {clock(as_of)[:5]}"


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))


def _moment(moment: float) -> str:
    return f"{_day(moment)} {clock(moment)}" if moment else "not known"


def containers_words(app: App, now: float) -> str:
    """``2 containers, up 18m03s``; the oldest says how long."""
    count = len(app.containers)
    if not count:
        if is_rehearsed(app):
            return "rehearsed on this machine"
        if app.state == UNLISTED:
            return "running, by its own word" if app.step else "not listed by Modal yet"
        return "no container"
    started = [c.started_at for c in app.containers if c.started_at is not None]
    up = f", up {duration(max(0.0, now - min(started)))}" if started else ", not started yet"
    return f"{count} container{'s' if count > 1 else ''}{up}"


def step_words(app: App, now: float) -> str:
    """``612 of 1,200, 4s ago``."""
    if not app.step:
        return "none yet" if app.run_id else "not known"
    total = f" of {app.total_steps:,}" if app.total_steps else ""
    since = f", {age_words(now - app.last_step_at)}" if app.last_step_at else ""
    return f"{app.step:,}{total}{since}"


def checkpoint_words(app: App) -> str:
    """``step 600``."""
    if app.checkpoint_step:
        return f"step {app.checkpoint_step:,}"
    return "none yet" if app.run_id else "not known"


def lease_words(app: App, now: float) -> str:
    """``until 17:12:07, in 42m10s``."""
    if not app.lease_until:
        return "none"
    left = app.lease_until - now
    when = f"in {duration(left)}" if left > 0 else f"{duration(-left)} ago"
    return f"until {clock(app.lease_until)}, {when}"


def rate_usd_per_hour(app: App) -> Decimal | None:
    """What its containers cost; of an app that is not listed, what one would."""
    return app.usd_per_hour if app.state == UNLISTED else app.burn_usd_per_hour


def cost_words(app: App) -> str:
    """``$4.12/h, $1.20 so far``."""
    burn = rate_usd_per_hour(app)
    rate = "price not known" if burn is None else f"{dollars(burn)}/h"
    return rate if app.spent_usd is None else f"{rate}, {dollars(app.spent_usd)} so far"


def pair_rows(pairs: list[tuple[str, str, str]], width: int) -> list[Row]:
    """A label and its words (in a style), which wrap beside it."""
    rows: list[Row] = []
    for label, words, style in pairs:
        lines = wrap(words, max(8, width - _LABEL_CELLS))
        for index, line in enumerate(lines):
            lead = label if index == 0 else ""
            rows.append((Span(f"{lead:<{_LABEL_CELLS}}", "dim"), Span(line, style)))
    return rows


def fact_pairs(app: App, apps: Apps, now: float) -> list[tuple[str, str, str]]:
    """Every fact, the ones that matter first."""
    pairs = [("app", app.name, "strong"), ("id", app.app_id, "text")]
    if app.orphan:
        label, style = ("orphan", "bad") if is_orphan(app) else ("not ours", "dim")
        pairs.append((label, f"{app.orphan}: {app.orphan_why}".removesuffix(": "), style))
    pairs += [
        ("state", f"{app.state}, {containers_words(app, now)}", "text"),
        ("gpu", app.gpu or "none", "text"),
        ("cost", cost_words(app), "text"),
        ("prices", rates_words(apps.rates_source, apps.rates_as_of), "dim"),
    ]
    if app.run_id:
        cap = dollars(app.cap_usd) if app.cap_usd is not None else "none"
        pairs += [
            ("cap", cap, "text"),
            ("lease", lease_words(app, now), "text"),
            ("step", step_words(app, now), "text"),
            ("checkpoint", checkpoint_words(app), "text"),
            ("run", app.run_id, "text"),
            ("owner", app.owner or "not known", "text"),
        ]
    pairs += [
        ("created", _moment(app.created_at), "text"),
        ("dashboard", dashboard_url(app.app_id), "text"),
        ("by hand", stop_command(app, apps.environment), "text"),
    ]
    pairs += [("container", c.container_id, "dim") for c in app.containers]
    return pairs


def lease_cost(app: App, minutes: float) -> Decimal | None:
    """What the extension can cost at most; None when the price is not known."""
    if app.usd_per_hour is None:
        return None
    containers = max(1, len(app.containers))
    return app.usd_per_hour * containers * Decimal(str(minutes)) / _SECONDS_PER_MINUTE


def lease_rows(app: App, minutes: float, now: float, width: int) -> list[Row]:
    """What an extension means, and what bounds it."""
    then = max(app.lease_until, now) + minutes * _SECONDS_PER_MINUTE
    cost = lease_cost(app, minutes)
    most = "not known: its price is not" if cost is None else f"up to {dollars(cost)} more"
    rows = pair_rows(
        [
            ("app", app.name, "strong"),
            ("id", app.app_id, "text"),
            ("lease", lease_words(app, now), "text"),
            ("then", f"until {clock(then)}, in {duration(then - now)}", "text"),
            ("costs", f"{most} ({cost_words(app)})", "warn"),
            ("step", step_words(app, now), "text"),
        ],
        width,
    )
    if app.cap_usd is not None:
        words = f"Its cap of {dollars(app.cap_usd)} still ends it."
        rows += [(), *((Span(line, "dim"),) for line in wrap(words, width))]
    return [*rows, ()]
