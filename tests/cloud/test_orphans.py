"""When an app is nobody's: each class at its boundary, and what never makes an orphan."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.cloud_spec import ControlBeat
from composer_tui.cloud import orphans
from composer_tui.cloud.orphans import Facts, Verdict, classify, is_left_over, is_to_mark
from composer_tui.cloud.wire import App, OrphanClass

START = 1_000_000.0
HOUR = 3600.0


def training(**changes: Any) -> Facts:
    """A run of ours in its first attempt: started at START, its last step an hour later."""
    beat = ControlBeat(
        time=START + HOUR,
        run_id="run",
        attempt_started_at=START,
        last_step_at=START + HOUR,
        step=100,
    )
    facts = Facts(
        state="detached",
        created_at=START,
        is_ours=True,
        newest_start=START,
        ledger="live",
        has_beats=True,
        beat=beat,
    )
    return facts._replace(**changes)


def speaking_at(facts: Facts, now: float) -> Facts:
    """The same, with a container that speaks still."""
    assert facts.beat is not None
    return facts._replace(beat=msgspec.structs.replace(facts.beat, time=now))


@given(quiet=st.floats(0, 5 * HOUR), step_seconds=st.floats(0, 600), stall=st.floats(0, HOUR))
def test_no_metrics_is_judged_by_how_slow_its_steps_are(
    quiet: float, step_seconds: float, stall: float
) -> None:
    now = START + HOUR + quiet
    facts = training(step_seconds=step_seconds, stall_seconds=stall)
    verdict = classify(speaking_at(facts, now), now)
    limit = max(600.0, 20 * step_seconds, stall)
    assert verdict.orphan == ("NO_HEARTBEAT" if now - (START + HOUR) >= limit else "")
    assert bool(verdict.why) == bool(verdict.orphan)


def test_a_silent_container_is_told_in_a_few_words() -> None:
    now = START + HOUR + 6 * HOUR + 52 * 60
    assert classify(training(), now) == Verdict("NO_HEARTBEAT", "no metrics for 6h52m")


@given(waited=st.floats(0, 3 * HOUR), setup=st.floats(600, 2 * HOUR))
def test_setting_up_has_its_own_limit(waited: float, setup: float) -> None:
    beat = ControlBeat(time=START + waited, run_id="run", attempt_started_at=START)
    facts = training(beat=beat, setup_seconds=setup)
    now = START + waited
    assert classify(facts, now).orphan == ("NO_HEARTBEAT" if now - START >= setup else "")
    silent = classify(facts._replace(beat=None), now)
    assert silent.orphan == ("NO_HEARTBEAT" if now - START >= setup else "")


def test_a_new_container_after_a_preemption_has_time_to_set_up_again() -> None:
    now = START + 3 * HOUR
    restarted = training(newest_start=now - 60)  # its last word is of the container before
    assert classify(restarted, now) == Verdict()


@given(st.floats(-HOUR, 2 * HOUR))
def test_a_lease_that_ended_is_an_orphan_after_its_slack(over: float) -> None:
    now = START + HOUR
    facts = speaking_at(training(lease_until=now - over), now)
    expired = now - facts.lease_until >= 60
    assert classify(facts, now).orphan == ("LEASE_EXPIRED" if expired else "")


@given(st.floats(0, 600))
def test_a_stop_is_stuck_after_two_minutes_whoever_s_app_it_is(waited: float) -> None:
    facts = Facts(state="stopping", created_at=START, is_ours=False, stopping_since=START)
    now = START + waited
    assert classify(facts, now).orphan == ("STUCK_STOPPING" if now - START >= 120 else "")


@given(idle=st.floats(0, 3 * HOUR), burn=st.decimals("0", "5", places=2))
def test_a_deployed_app_is_idle_after_an_hour_if_it_costs(idle: float, burn: Decimal) -> None:
    facts = Facts(
        state="deployed", created_at=START, is_ours=False, idle_since=START, burn_usd_per_hour=burn
    )
    now = START + idle
    is_idle = now - START >= HOUR and burn > Decimal("0.10")
    assert classify(facts, now).orphan == ("DEPLOYED_IDLE" if is_idle else "UNTAGGED")


@pytest.mark.parametrize(
    ("changes", "orphan"),
    [
        ({"ledger": "over", "over_since": START}, "OWNER_GONE"),
        ({"ledger": "unlaunched"}, "OWNER_GONE"),
        ({"ledger": "none", "is_launched_here": True}, ""),  # it may wait for a GPU, for $0
        ({"ledger": "none", "is_launched_here": False}, ""),  # another machine's
        ({"ledger": "live"}, ""),
        ({"ledger": "over", "over_since": START, "has_beats": False}, ""),
    ],
)
def test_an_app_that_nobody_follows_is_gone_from_its_owner(
    changes: dict[str, Any], orphan: OrphanClass
) -> None:
    waiting = training(beat=None, newest_start=None, **changes)
    assert classify(waiting, START + HOUR).orphan == orphan
    assert classify(waiting, START + 599).orphan == ""


def test_an_app_of_this_machine_that_no_run_knows_may_wait_a_day_for_its_gpu() -> None:
    waiting = training(
        beat=None, newest_start=None, ledger="none", is_launched_here=True, lease_until=0.0
    )
    assert classify(waiting, START + 23 * HOUR).orphan == ""
    assert classify(waiting, START + 24 * HOUR).orphan == "OWNER_GONE"


def test_a_run_that_works_is_no_orphan_though_nobody_here_knows_it() -> None:
    now = START + HOUR + 60
    facts = training(ledger="none", is_launched_here=True)
    assert classify(speaking_at(facts, now), now) == Verdict()


@given(st.floats(0, 1e7))
def test_what_could_not_be_read_makes_no_orphan(seconds: float) -> None:
    facts = training(is_ours=None, has_beats=False, beat=None)
    assert classify(facts, START + seconds) == Verdict()


def test_what_is_merely_not_ours_is_never_marked() -> None:
    verdict = classify(Facts(state="deployed", created_at=START, is_ours=False), START + HOUR)
    assert verdict.orphan == "UNTAGGED"
    untagged = App(app_id="ap", name="x", state="deployed", created_at=0, orphan="UNTAGGED")
    assert not is_to_mark(untagged)
    assert not is_left_over(untagged)


@pytest.mark.parametrize("orphan", ["NO_HEARTBEAT", "DEPLOYED_IDLE", "STUCK_STOPPING"])
def test_only_expired_leases_and_ended_runs_are_collected_unseen(orphan: OrphanClass) -> None:
    app = App(app_id="ap", name="x", state="detached", created_at=0, orphan=orphan)
    assert is_to_mark(app)
    assert not is_left_over(app)


def test_limits_are_as_they_are_told() -> None:
    assert orphans.QUIET_SECONDS == 600
    assert orphans.STUCK_SECONDS == 120
