"""What everything live costs an hour, how much of it nobody watches, and how old that news is."""

from composer_tui.cloud.wire import App, Apps
from composer_tui.numbers import age, dollars

STALE_SECONDS = 60.0
FRESH_SECONDS = 6.0
"""So old a list may be of which it is said that it is so now."""


def orphans(apps: Apps | None) -> list[App]:
    """The apps of ours that nobody watches over; other people's apps are none."""
    return [app for app in apps.apps if is_orphan(app)] if apps else []


def is_orphan(app: App) -> bool:
    """UNTAGGED is not ours, and so no orphan of ours."""
    return app.orphan not in {"", "UNTAGGED"}


def burn_words(apps: Apps | None) -> str:
    """``$4.12/h``; "" without an account. ``+?`` when the price of something live is not known."""
    if apps is None or not apps.as_of:
        return ""
    unknown = any(app.usd_per_hour is None and app.containers for app in apps.apps)
    return f"{dollars(apps.burn_usd_per_hour)}{'+?' if unknown else ''}/h"


def stale_words(apps: Apps | None, now: float) -> str:
    """``3m ago`` when that is how old the news is and newer could not be had; else ""."""
    if apps is None or not apps.as_of:
        return ""
    seconds = now - apps.as_of
    if apps.problem is None and seconds < STALE_SECONDS:
        return ""
    return age_words(seconds)


def as_of_words(apps: Apps, now: float) -> str:
    """``as of 25s ago, asking Modal...`` of a list that is too old to be taken for now; else ""."""
    seconds = now - apps.as_of
    if not apps.as_of or apps.problem is not None or seconds < FRESH_SECONDS:
        return ""
    return f"as of {age_words(seconds)}, asking Modal..."


def age_words(seconds: float) -> str:
    """``now``, ``3m ago``."""
    words = age(max(0.0, seconds))
    return words if words == "now" else f"{words} ago"
