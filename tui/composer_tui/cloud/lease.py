"""Leases: until when a run may spend. Extending one is an explicit act; ending them is `gc`'s."""

import msgspec

from composer_engine.cloud_spec import app_name
from composer_engine.contract import TAG_LEASE_UNTIL, TAG_RUN
from composer_tui.cloud.kill_rules import OVER
from composer_tui.cloud.ledger import CloudRef, cloud_runs, write_ref
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.orphans import is_left_over
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.seen import SEEN, Seen
from composer_tui.cloud.wire import App, Apps
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore

_CALL_SECONDS = 8.0
_MINUTE_SECONDS = 60.0
MOST_MINUTES = 60.0 * 24 * 30


def extend(store: RunStore, app_id: str, minutes: float, now: float, *, seen: Seen = SEEN) -> float:
    """The lease's new end, unix seconds: so many minutes after the old one, or after now.

    Its container is told first, since that is where the lease ends the run; then its tag, for those
    who look from elsewhere, and this machine's ledger. Raises `CloudProblem`, or OSError for the
    ledger.
    """
    from composer_tui.cloud import modal_api

    if not 0 < minutes <= MOST_MINUTES:
        raise CloudProblem(
            problem("refused", f"a lease is extended by up to {MOST_MINUTES:g} minutes")
        )
    found = within(_CALL_SECONDS, modal_api.find_app(app_id))
    if found.state in OVER:
        raise CloudProblem(
            problem("refused", f"{found.name or app_id} has ended: no lease to extend")
        )
    tags = within(_CALL_SECONDS, modal_api.read_tags(app_id))
    ledger = _ledger(store, app_id, found.name)
    if TAG_RUN not in tags and ledger is None:
        raise CloudProblem(
            problem(
                "refused",
                f"{found.name or app_id} was not launched by this program: it has no lease",
            )
        )
    known = [_seconds(tags.get(TAG_LEASE_UNTIL, ""))]
    if ledger is not None:
        known.append(ledger[1].lease_until)
    if app_id in seen.apps:
        known.append(seen.apps[app_id].lease_until)
    modal_now = now - seen.clock_ahead_seconds
    until = max(modal_now, *known) + minutes * _MINUTE_SECONDS
    within(_CALL_SECONDS, modal_api.put_lease(found.name, until))
    within(_CALL_SECONDS, modal_api.change_tags(app_id, {TAG_LEASE_UNTIL: f"{until:.0f}"}))
    seen.details.pop(app_id, None)  # its tags are to be read anew
    if ledger is not None:
        folder, ref = ledger
        write_ref(folder, msgspec.structs.replace(ref, lease_until=until))
    return until


def left_over(apps: Apps) -> list[App]:
    """What `gc` ends: expired leases, and what is left of runs that are over."""
    return [app for app in apps.apps if is_left_over(app)]


def _ledger(store: RunStore, app_id: str, name: str) -> tuple[RunFolder, CloudRef] | None:
    for folder, ref in cloud_runs(store):
        if ref.app_id == app_id or (ref.app_name or app_name(folder.run_id)) == name:
            return folder, ref
    return None


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0
