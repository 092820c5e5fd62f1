"""The rule that ends a run in a container, at every edge of money and time."""

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.cloud_spec import CloudSpec
from composer_engine.config import RunConfig, load
from composer_engine.spending import Spending
from composer_engine.watchdog import (
    Facts,
    cost_usd,
    left_seconds,
    saving_seconds,
    spent_usd,
    timeout_is_cap,
    timeout_seconds,
    verdict,
    warning,
)

START = 1_700_000_000.0
# Four dollars an hour, a cap of two: half an hour, of which a minute is for saving.
FACTS = Facts(
    started_at=START,
    usd_per_hour=Decimal(4),
    cap_usd=Decimal(2),
    grace_seconds=60,
    startup_seconds=300,
    stall_seconds=120,
    last_step_at=START + 10_000,  # steps come: nothing but what a test is about ends it
)


def facts(**changes: object) -> Facts:
    return msgspec.structs.replace(FACTS, **changes)


def reason(facts: Facts, seconds: float) -> str:
    found = verdict(facts, START + seconds)
    return found.reason if found else ""


def test_saving_begins_so_that_the_cap_still_pays_for_it() -> None:
    assert reason(FACTS, 29 * 60 - 1) == ""
    assert reason(FACTS, 29 * 60) == (
        "the cap of $2.00 is reached: $1.93 spent, the rest is kept for saving"
    )
    assert reason(facts(ending_seconds=30), 28 * 60 + 30).startswith("the cap")
    assert reason(facts(ending_seconds=30), 28 * 60 + 29) == ""


def test_what_earlier_attempts_cost_counts() -> None:
    later = facts(earlier_usd=Decimal("1.5"))
    assert reason(later, 60) == ""
    assert "cap" in reason(later, 7 * 60)
    assert "cap" in reason(facts(earlier_usd=Decimal(2)), 0)


def test_a_grace_that_costs_more_than_the_cap_leaves_half_of_it() -> None:
    slow = facts(grace_seconds=3600.0)
    assert reason(slow, 15 * 60 - 1) == ""
    assert "cap" in reason(slow, 15 * 60)


def test_what_costs_nothing_never_reaches_its_cap() -> None:
    free = facts(usd_per_hour=Decimal(0), stall_seconds=float("inf"))
    assert reason(free, 1e9) == ""


def test_a_lease_ends_and_can_be_extended() -> None:
    assert reason(facts(lease_until=START + 100), 99) == ""
    assert "lease" in reason(facts(lease_until=START + 100), 100)
    assert reason(facts(lease_until=START + 200), 100) == ""
    assert reason(facts(lease_until=0.0), 100) == ""


def test_a_run_saves_before_modal_ends_its_attempt() -> None:
    limited = facts(limit_seconds=600.0)
    assert reason(limited, 539) == ""
    assert reason(limited, 540) == "the attempt's time of 10 min is up"
    assert reason(facts(limit_seconds=60.0), 30) == "the attempt's time of 1 min is up"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45.0, "45 s"), (0.6, "0.6 s"), (194, "3 min 14 s"), (3600, "1 h"), (7500.4, "2 h 5 min")],
)
def test_a_time_is_told_as_people_say_it(seconds: float, words: str) -> None:
    limited = facts(limit_seconds=seconds, cap_usd=Decimal(1000))
    assert reason(limited, 9000) == f"the attempt's time of {words} is up"


def test_a_limit_that_the_cap_made_is_told_as_the_cap() -> None:
    # Whole seconds: Modal's limit is a moment before the cap itself.
    limited = facts(limit_seconds=1799.0, limit_is_cap=True)
    found = verdict(limited, START + 1739)
    assert found is not None
    assert found.kind == "budget"
    assert found.reason.startswith("the cap of $2.00 is reached: $1.93 spent")
    asked = spec("4", "modal.cap_usd=2", "modal.timeout_seconds=600")
    assert not timeout_is_cap(asked)
    assert timeout_is_cap(spec("4", "modal.cap_usd=2", "modal.timeout_seconds=7200"))


def test_before_its_first_step_only_the_time_to_come_up_counts() -> None:
    new = facts(last_step_at=0.0)
    assert reason(new, 299) == ""
    assert reason(new, 300) == "stalled: no step in the first 5 min"


def test_a_run_without_a_new_step_is_stalled() -> None:
    stuck = facts(last_step_at=START + 100)
    assert reason(stuck, 219) == ""
    assert reason(stuck, 220) == "stalled: no new step for 2 min"


def test_a_person_comes_before_everything() -> None:
    found = verdict(facts(asked="asked by someone", lease_until=1.0), START)
    assert found == ("killed", "asked by someone")


def test_four_fifths_of_the_cap_are_worth_a_warning() -> None:
    assert warning(FACTS, START + 24 * 60 - 1) == ""
    assert warning(FACTS, START + 24 * 60) == "$1.60 of the cap of $2.00 are spent"


def test_small_sums_are_not_rounded_to_nothing() -> None:
    tiny = facts(cap_usd=Decimal("0.005"), usd_per_hour=Decimal("0.5"), grace_seconds=0.0)
    assert warning(tiny, START + 30) == "$0.0042 of the cap of $0.0050 are spent"


@given(
    st.decimals("0.01", "100", places=4),
    st.decimals("0.01", "1000", places=2),
    st.decimals("0", "1000", places=2),
    st.floats(0, 600),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
)
def test_once_ended_it_stays_ended_and_the_cap_is_never_passed(
    rate: Decimal, cap: Decimal, earlier: Decimal, grace: float, seconds: float, more: float
) -> None:
    given_facts = facts(
        usd_per_hour=rate, cap_usd=cap, earlier_usd=earlier, grace_seconds=grace,
        last_step_at=START + 1e9, lease_until=0.0,
    )  # fmt: skip
    if verdict(given_facts, START + seconds):
        assert verdict(given_facts, START + seconds + more)
    else:
        assert spent_usd(given_facts, START + seconds) < cap


@given(
    st.decimals("0.01", "100", places=4),
    st.floats(0.05, 100),
    st.floats(0, 600),
    st.floats(0, 1),
    st.sampled_from([float("inf"), 86400.0, 600.0]),
)
def test_an_engine_that_never_obeys_is_gone_before_the_cap_is_spent(
    rate: Decimal, cap: float, grace: float, part: float, limit: float
) -> None:
    """At the latest moment that it may be told to end, and at any earlier one."""
    given_facts = facts(
        usd_per_hour=rate, cap_usd=Decimal(str(cap)), grace_seconds=grace, ending_seconds=30.0,
        stall_seconds=float("inf"), limit_seconds=limit,
    )  # fmt: skip
    until_cap = cap * 3600 / float(rate)
    last = max(until_cap - grace - 30, until_cap / 2)
    told = START + min(last, max(limit - grace - 30, limit / 2)) * part
    saved = told + saving_seconds(given_facts, told)
    assert told <= saved <= told + grace + 1e-6
    left = left_seconds(given_facts, saved)
    assert left >= min(30.0, (until_cap - last) / 2, (limit - (told - START)) / 2) - 1e-3
    assert float(spent_usd(given_facts, saved + left)) <= cap + 1e-6  # a clock has so many digits
    assert saved + left <= START + limit + 1e-3


@given(st.floats(-1e6, 0))
def test_a_clock_that_goes_backwards_earns_nothing(seconds: float) -> None:
    assert cost_usd(Decimal(4), seconds) == 0


# ---------------------------------------------------------------- Modal's own limit


def spec(rate: str, *settings: str) -> CloudSpec:
    return CloudSpec(run_id="r", config=load("smoke", settings=settings), usd_per_hour=rate)


@pytest.mark.parametrize(
    ("rate", "cap", "timeout", "seconds"),
    [
        ("4", "2", "86400", 1800),
        ("4", "2", "600", 600),
        ("0", "2", "86400", 86400),
        ("1000000", "0.0001", "600", 1),
        ("3.95", "5", "86400", 4556),
    ],
)
def test_the_timeout_is_no_longer_than_the_cap_affords(
    rate: str, cap: str, timeout: str, seconds: int
) -> None:
    asked = spec(rate, f"modal.cap_usd={cap}", f"modal.timeout_seconds={timeout}")
    assert timeout_seconds(asked) == seconds


@given(st.decimals("0.01", "100", places=4), st.floats(0.01, 1e6))
def test_no_attempt_can_cost_more_than_the_cap(rate: Decimal, cap: float) -> None:
    config = RunConfig()
    modal = msgspec.structs.replace(config.modal, cap_usd=cap, timeout_seconds=86400)
    asked = CloudSpec(
        run_id="r",
        config=msgspec.structs.replace(config, modal=modal),
        usd_per_hour=str(rate),
    )
    seconds = timeout_seconds(asked)
    assert seconds == 1 or cost_usd(rate, seconds) <= Decimal(str(cap))


# ---------------------------------------------------------------- the book


def test_a_book_is_carried_from_attempt_to_attempt(tmp_path: Path) -> None:
    first = Spending(tmp_path, 1000.0, "36")
    assert first.earlier_usd == 0
    first.note(1100.0, taken_away=True)
    second = Spending(tmp_path, 2000.0, "72")
    assert second.was_taken_away
    assert second.earlier_usd == 1
    second.note(2100.0)
    third = Spending(tmp_path, 3000.0, "36")
    assert third.earlier_usd == 3
    assert not third.was_taken_away


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff", b'[{"started_at":1}]'])
def test_a_damaged_book_is_said_and_begun_anew(
    damage: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spending.json").write_bytes(damage)
    book = Spending(tmp_path, 1000.0, "36")
    assert book.earlier == ()
    assert "earlier attempts are not counted" in capsys.readouterr().err
    book.note(1100.0)
    assert Spending(tmp_path, 2000.0, "36").earlier_usd == 1
