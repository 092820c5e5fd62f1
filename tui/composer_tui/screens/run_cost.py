"""What the watched run costs, from the newest that is known of it."""

from decimal import Decimal

import msgspec

from composer_engine.cloud_spec import app_name
from composer_tui.cloud.ledger import CloudRef
from composer_tui.cloud.wire import App, Apps
from composer_tui.numbers import age, dollars
from composer_tui.runs.cost import spent_words
from composer_tui.runs.state import RunState
from composer_tui.screens.watch import Watch

_SECONDS_PER_HOUR = 3600


def spent_usd(ref: CloudRef, state: RunState, now: float) -> Decimal | None:
    """One container from its launch to the run's end, or to now: an estimate from above.

    None where the price is not known, or nothing was launched yet.
    """
    if not ref.usd_per_hour or not ref.launched_at:
        return None
    end = state.ended_at if state.ended and state.ended_at is not None else now
    seconds = max(0.0, end - ref.launched_at)
    return Decimal(ref.usd_per_hour) * Decimal(str(seconds)) / _SECONDS_PER_HOUR


def app_of(run_id: str, apps: Apps | None) -> App | None:
    """The live app of a run."""
    wanted = {run_id, app_name(run_id)}
    return next((app for app in apps.apps if app.run_id in wanted), None) if apps else None


def as_watched(app: App, watch: Watch | None) -> App:
    """The app with what its run has said since it was listed, where it is the watched one."""
    if watch is None or app.run_id not in (watch.run_id, app_name(watch.run_id)):
        return app
    state = watch.feed.state
    last, saved = state.last, state.checkpoint
    if last is None or last.step <= app.step:
        return app
    return msgspec.structs.replace(
        app,
        step=last.step,
        total_steps=state.total_steps or app.total_steps,
        last_step_at=last.time,
        checkpoint_step=saved.step if saved else app.checkpoint_step,
    )


def cost_parts(watch: Watch, apps: Apps | None, now: float) -> tuple[str, ...]:
    """Where the run is and what it costs; nothing for one on this machine."""
    if watch.target == "rehearsal":
        return ("rehearsal on this machine: $0.00",)
    if watch.target != "modal":
        return ()
    state, ref, app = watch.feed.state, watch.ref, app_of(watch.run_id, apps)
    parts = [watch.place]
    if state.ended and watch.costs:
        return (watch.place, spent_words(watch.costs))
    if ref is not None:
        spent = spent_usd(ref, state, now)
        if spent is not None:
            words = dollars(spent)
            about = words if words.startswith("<") else f"about {words}"
            parts.append(about if state.ended else f"{about} so far")
        if not state.ended:
            parts += _rate_parts(ref, app, now)
    return tuple(parts)


def _rate_parts(ref: CloudRef, app: App | None, now: float) -> list[str]:
    parts: list[str] = []
    if app is not None and app.burn_usd_per_hour is not None:
        parts.append(f"{dollars(app.burn_usd_per_hour)}/h")
    elif ref.usd_per_hour:
        parts.append(f"{dollars(Decimal(ref.usd_per_hour))}/h")
    if ref.cap_usd:
        parts.append(f"cap {dollars(Decimal(ref.cap_usd))}")
    until = app.lease_until if app is not None and app.lease_until else ref.lease_until
    if until:
        parts.append(f"lease {age(until - now)}" if until > now else "lease over")
    return parts
