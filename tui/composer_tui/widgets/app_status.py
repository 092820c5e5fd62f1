"""The state of an app, or of its stop, as a glyph, a word and a colour."""

from collections.abc import Mapping
from types import MappingProxyType

from composer_tui.cloud.kill_rules import ACCEPTED
from composer_tui.cloud.wire import App, OrphanClass, StopProgress, StopStage
from composer_tui.widgets.burn import is_orphan
from composer_tui.widgets.status import Status

STOPS: Mapping[StopStage, Status] = MappingProxyType(
    {
        "asked": Status("saving", "saving", "warn"),
        "stopping": Status("saving", "stopping", "warn"),
        "second_path": Status("saving", "2nd way", "warn"),
        "escalated": Status("alert", "escalated", "bad"),
        "alarm": Status("alert", "NOT GONE", "alarm"),
        "gone": Status("done", "gone", "good"),
        "failed": Status("failed", "not asked", "alarm"),
    }
)
ORPHANS: Mapping[OrphanClass, str] = MappingProxyType(
    {
        "": "",
        "NO_HEARTBEAT": "no beat",
        "OWNER_GONE": "no owner",
        "LEASE_EXPIRED": "lease over",
        "DEPLOYED_IDLE": "idle",
        "STUCK_STOPPING": "stuck",
        "UNTAGGED": "not ours",
    }
)
UNDER_WAY: frozenset[StopStage] = frozenset({"asked", "stopping", "second_path", "escalated"})
ENDING: frozenset[StopStage] = frozenset({"stopping", "second_path", "escalated", "alarm"})
"""What asking once more would add nothing to."""
ALARMS: frozenset[StopStage] = frozenset({"alarm", "failed"})


def app_status(app: App, stop: StopProgress | None = None, *, with_class: bool = True) -> Status:
    """A stop comes before an orphan's class, that before Modal's own word.

    Without ``with_class`` the word is Modal's, for where the class has a column of its own.
    """
    if stop is not None:
        return STOPS[stop.stage]
    if is_orphan(app):
        return Status("alert", ORPHANS[app.orphan] if with_class else app.state, "bad")
    if app.orphan == "UNTAGGED":
        return Status("dot", app.state, "dim")
    if app.state == "stopping":
        return Status("saving", app.state, "warn")
    if app.containers:
        return Status("live", app.state, "good")
    return Status("waiting", "starting" if app.state == "initializing" else app.state, "busy")


def stop_words(stop: StopProgress) -> str:
    """Where a stop is, in a sentence that never says more than is known."""
    count = len(stop.containers)
    containers = f"{count} container{'s' if count != 1 else ''}"
    left = f", {containers} still there" if count else ""
    return {
        "asked": "asked to save and end",
        "stopping": f"{_so_far(stop)}{left}",
        "second_path": f"the first way hung; asked through the modal command{left}",
        "escalated": (
            f"stopping its {containers} one by one"
            if count
            else "no container is seen any more, Modal does not call it over yet"
        ),
        "alarm": f"STILL THERE: {containers if count else 'its containers are not known'}",
        "gone": "gone, no container is left",
        "failed": f"could not be asked to stop: {stop.message}",
    }[stop.stage]


def _so_far(stop: StopProgress) -> str:
    """Before Modal's lists were read nothing is known of containers: none would be wrong."""
    if stop.message and not stop.message.startswith(ACCEPTED):
        return stop.message
    return "stop accepted" if stop.containers else "stop accepted, looking what is left"


def dashboard_url(app_id: str) -> str:
    """Where Modal shows an app."""
    return f"https://modal.com/id/{app_id}"
