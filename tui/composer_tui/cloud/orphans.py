"""Which apps spend money that nobody watches: pure rules, the clock is an argument.

A run that is being set up (its image, its model, its first compilation) is nobody's orphan until
its own limits are over. What could not be read counts in an app's favour: unknown is not orphaned.
"""

from decimal import Decimal
from typing import Literal, NamedTuple

from composer_engine.cloud_spec import ControlBeat
from composer_tui.cloud.wire import App, OrphanClass
from composer_tui.numbers import duration

QUIET_SECONDS = 600.0  # the least that counts as no metrics
STEPS_OF_QUIET = 20
SETUP_SECONDS = 1800.0  # from a container's start to its first step, where no more is known
STARTING_SECONDS = 600.0  # from an app's creation to its first container
LEASE_SLACK_SECONDS = 60.0  # it saves when its lease ends
STUCK_SECONDS = 120.0
IDLE_SECONDS = 3600.0
WAITING_SECONDS = 24 * 3600.0  # nobody waits longer for a GPU
IDLE_USD_PER_HOUR = Decimal("0.10")

_LIVE_UNDEPLOYED = frozenset({"ephemeral", "detached", "initializing"})


class Verdict(NamedTuple):
    """An orphan's class, and why in a few words; both "" for what is in order."""

    orphan: OrphanClass = ""
    why: str = ""


class Facts(NamedTuple):
    """What is known of one live app. Times are unix seconds, 0 for never or not known.

    ``is_ours`` is None where its tags could not be read, ``newest_start`` where no container has
    started. ``ledger`` is what this machine's run folders say: that they know no such run ("none"),
    that it goes on, that its launch was cut short, or that it is over (``over_since``). ``beat`` is
    only meant where ``has_beats`` says that beats could be read. ``step_seconds`` is a slow step's.
    """

    state: str
    created_at: float
    is_ours: bool | None = None
    newest_start: float | None = None
    is_launched_here: bool = False
    ledger: Literal["none", "live", "unlaunched", "over"] = "none"
    over_since: float = 0.0
    has_beats: bool = False
    beat: ControlBeat | None = None
    step_seconds: float = 0.0
    stall_seconds: float = 0.0
    setup_seconds: float = SETUP_SECONDS
    lease_until: float = 0.0
    stopping_since: float = 0.0
    idle_since: float = 0.0
    burn_usd_per_hour: Decimal | None = None


def classify(facts: Facts, now: float) -> Verdict:
    """The class that tells most, where several fit."""
    if facts.state == "stopping":
        return _stuck(facts, now)
    rules = (_lease_expired, _no_heartbeat, _owner_gone, _deployed_idle, _untagged)
    return next((verdict for rule in rules if (verdict := rule(facts, now)).orphan), Verdict())


def is_to_mark(app: App) -> bool:
    """What ``*`` and ``--orphans`` mean. Never an app that is merely not ours."""
    return app.orphan not in ("", "UNTAGGED")


def is_left_over(app: App) -> bool:
    """What may be ended without anybody looking: leases that ended, and runs that are over."""
    return app.orphan in ("LEASE_EXPIRED", "OWNER_GONE")


def _stuck(facts: Facts, now: float) -> Verdict:
    waited = now - facts.stopping_since
    if facts.stopping_since and waited >= STUCK_SECONDS:
        return Verdict("STUCK_STOPPING", f"stopping for {duration(waited)}")
    return Verdict()


def _lease_expired(facts: Facts, now: float) -> Verdict:
    over = now - facts.lease_until
    if facts.lease_until and over >= LEASE_SLACK_SECONDS:
        return Verdict("LEASE_EXPIRED", f"its lease ended {duration(over)} ago")
    return Verdict()


def _no_heartbeat(facts: Facts, now: float) -> Verdict:
    if not facts.is_ours or not facts.has_beats or facts.newest_start is None:
        return Verdict()
    beat = facts.beat
    if beat is None or beat.time < facts.newest_start:
        silent = now - facts.newest_start
        if silent >= max(QUIET_SECONDS, facts.setup_seconds):
            return Verdict("NO_HEARTBEAT", f"no word since it started {duration(silent)} ago")
        return Verdict()
    silent = now - beat.time
    if silent >= QUIET_SECONDS:
        since = now - beat.last_step_at if beat.last_step_at else silent
        return Verdict("NO_HEARTBEAT", f"no metrics for {duration(since)}")
    return _no_steps(facts, beat, now)


def _no_steps(facts: Facts, beat: ControlBeat, now: float) -> Verdict:
    """Its container speaks, and its engine does nothing."""
    began = max(beat.attempt_started_at, facts.newest_start or 0.0)
    if beat.last_step_at <= began:  # no step in this attempt yet
        waited = now - began
        if waited >= max(facts.setup_seconds, facts.stall_seconds):
            return Verdict("NO_HEARTBEAT", f"no step {duration(waited)} after its start")
        return Verdict()
    waited = now - beat.last_step_at
    slow = STEPS_OF_QUIET * facts.step_seconds
    if waited >= max(QUIET_SECONDS, slow, facts.stall_seconds):
        return Verdict("NO_HEARTBEAT", f"no metrics for {duration(waited)}")
    return Verdict()


def _owner_gone(facts: Facts, now: float) -> Verdict:
    if not facts.is_ours or not facts.has_beats or facts.state not in _LIVE_UNDEPLOYED:
        return Verdict()
    if facts.beat is not None and now - facts.beat.time < QUIET_SECONDS:
        return Verdict()  # it works, and guards its own lease and cap
    age = now - facts.created_at
    if facts.ledger == "over" and facts.over_since and now - facts.over_since >= QUIET_SECONDS:
        return Verdict("OWNER_GONE", f"its run was over {duration(now - facts.over_since)} ago")
    if age < max(STARTING_SECONDS, facts.setup_seconds):
        return Verdict()
    if facts.ledger == "unlaunched":
        return Verdict("OWNER_GONE", f"its launch was cut short {duration(age)} ago")
    # It has no container, so it costs nothing: it may be waiting for its GPU, and another folder
    # of runs on this machine may know it.
    if facts.ledger == "none" and facts.is_launched_here and age >= WAITING_SECONDS:
        return Verdict("OWNER_GONE", "launched from this machine, and no run here knows it")
    return Verdict()


def _deployed_idle(facts: Facts, now: float) -> Verdict:
    if facts.state != "deployed" or not facts.idle_since or facts.burn_usd_per_hour is None:
        return Verdict()
    idle = now - facts.idle_since
    if idle >= IDLE_SECONDS and facts.burn_usd_per_hour > IDLE_USD_PER_HOUR:
        return Verdict("DEPLOYED_IDLE", f"deployed, 0 inputs for {duration(idle)}")
    return Verdict()


def _untagged(facts: Facts, _now: float) -> Verdict:
    if facts.is_ours is False:
        return Verdict("UNTAGGED", "not launched by this program")
    return Verdict()
