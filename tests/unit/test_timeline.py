"""A run's phases, with the seconds and the dollars of each attempt."""

import itertools
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.cloud_spec import ContainerTime
from composer_engine.config import load
from composer_engine.outcome import is_worth_retrying
from composer_engine.protocol import (
    Channels,
    Device,
    Event,
    Phase,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
)
from composer_engine.spending import Spending
from composer_engine.watchdog import Verdict
from composer_tui.cloud.billing import BilledHour
from composer_tui.cloud.cost_ledger import NEAR_SECONDS, CostLedger
from composer_tui.cloud.cost_report import (
    BEYOND,
    CHEAPER,
    NO_RECORD,
    NOT_BILLED_YET,
    NOT_CLOSED,
    NOTHING_BILLED,
    PLAY_MONEY,
    PRICE,
    STARTUP,
    UNSEEN,
    CloudCosts,
    cost_report,
)
from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.headless.costs import BadPeriod, moment_of
from composer_tui.runs.cost import (
    AttemptCost,
    append_costs,
    costs_path,
    paid_gpu,
    priced,
    read_costs,
    so_far,
    spent,
    spent_words,
)
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.journal import append
from composer_tui.runs.state import RunState
from composer_tui.runs.store import RunStore
from composer_tui.runs.timeline import timeline
from composer_tui.screens.run_cost import cost_parts
from composer_tui.screens.watch import Watch
from tests.strategies import events

HOUR = 3600.0
NOON = 480_000 * HOUR
DEVICE = Device(kind="cuda", name="NVIDIA H100 80GB HBM3", count=1, total_bytes=1)


def attempt(start: float, end: float | None, **facts: object) -> AttemptCost:
    """Times are seconds after noon; a dollar an hour."""
    last = start + 30 if end is None else end
    one = AttemptCost(
        attempt=1,
        container_id=f"ta-{start}",
        gpu="H100",
        gpus=1,
        started_at=NOON + start,
        ended_at=None if end is None else NOON + end,
        seen_at=NOON + last,
        usd_per_hour="1",
    )
    return priced(msgspec.structs.replace(one, **facts))


def phase(name: Phase, time: float) -> PhaseChanged:
    return PhaseChanged(phase=name, time=NOON + time)


def step(time: float, number: int = 1) -> StepCompleted:
    return StepCompleted(step=number, loss=1.0, channels=Channels(), time=NOON + time)


def started(time: float, number: int = 1) -> RunStarted:
    return RunStarted(
        run_id="r",
        attempt=number,
        total_steps=9,
        model="m",
        parameters=1,
        device=DEVICE,
        engine_version="0",
        config_hash="0",
        time=NOON + time,
    )


# ---- phases ----


def test_queued_and_building_are_free_and_from_the_containers_start_everything_costs() -> None:
    told: list[Event] = [
        phase("building", 0),
        phase("queued", 60),
        phase("loading", 110),
        started(150),
        phase("training", 160),
        step(200),
        phase("saving", 400),
        step(410),
        RunFinished(steps=2, time=NOON + 450),
    ]
    rows = timeline(told, [attempt(100, 460)]).phases
    assert [(row.attempt, row.phase, row.seconds) for row in rows] == [
        (0, "building", 60),
        (0, "queued", 40),
        (1, "starting", 10),
        (1, "loading", 50),
        (1, "training", 240),
        (1, "saving", 10),
        (1, "training", 40),
        (1, "ending", 10),
    ]
    assert [row.usd for row in rows[:2]] == [0, 0]
    assert sum(row.usd or 0 for row in rows) == Decimal("0.1")


def test_each_attempt_has_phases_of_its_own_and_the_wait_between_is_free() -> None:
    told: list[Event] = [
        phase("loading", 0),
        started(5),
        step(10),
        RunFailed(kind="preempted", message="m", time=NOON + 20),
        phase("loading", 65),
        started(70, 2),
        step(80),
        RunFinished(steps=1, time=NOON + 90),
    ]
    two = [attempt(0, 22), attempt(60, 92, attempt=2)]
    rows = timeline(told, two).phases
    assert [(row.attempt, row.phase) for row in rows] == [
        (1, "loading"),
        (1, "training"),
        (1, "ending"),
        (0, "waiting"),
        (2, "starting"),
        (2, "loading"),
        (2, "training"),
        (2, "ending"),
    ]
    assert rows[3].seconds == 38
    assert timeline(told, two).gpu_seconds == {"H100": 54}


def test_what_a_follower_learnt_late_does_not_make_the_engine_late() -> None:
    told: list[Event] = [
        phase("queued", 0),
        phase("loading", 300),
        started(20),
        step(30),
        step(310),
    ]
    rows = timeline(told, [attempt(10, 320)]).phases
    assert [(row.phase, row.seconds) for row in rows] == [
        ("queued", 10),
        ("starting", 10),
        ("loading", 10),
        ("training", 290),
    ]


def test_an_end_that_nobody_saw_leaves_the_last_phase_open() -> None:
    told: list[Event] = [phase("loading", 0), started(5), step(10), step(20)]
    rows = timeline(told, [attempt(0, None)]).phases
    assert [row.is_open for row in rows] == [False, True]
    assert rows[-1].seconds == 20  # until the last sign of life, and no longer
    assert sum(row.usd or 0 for row in rows) == attempt(0, None).usd


def test_a_run_on_this_machine_has_phases_and_no_money() -> None:
    told: list[Event] = [
        phase("loading", 0),
        started(5),
        step(10),
        RunFinished(steps=1, time=NOON + 30),
    ]
    rows = timeline(told).phases
    assert [(row.phase, row.seconds, row.usd) for row in rows] == [
        ("loading", 10, None),
        ("training", 20, None),
    ]
    assert timeline([]).phases == ()


@st.composite
def containers(draw: st.DrawFn) -> list[AttemptCost]:
    """One after another, some whose end was not seen, some without a price."""
    found, at = [], draw(st.floats(0, 1e6))
    for number in range(draw(st.integers(0, 4))):
        start = at + draw(st.floats(0, 1e5))
        at = start + draw(st.floats(0, 1e6))
        ends = draw(st.booleans())
        one = attempt(
            start,
            at if ends else None,
            attempt=number + 1,
            container_id=str(number),
            seen_at=NOON + at,
            usd_per_hour=draw(st.sampled_from(["", "0.5904", "31.6", "1e-9"])),
        )
        found.append(one)
    return found


TIME = st.floats(-10, 3e6)
TIMED = st.lists(
    st.one_of(
        st.builds(phase, st.sampled_from(["queued", "building", "loading", "saving"]), TIME),
        st.builds(step, TIME),
        st.builds(lambda time: RunFinished(steps=1, time=NOON + time), TIME),
        st.builds(started, TIME, st.integers(1, 5)),
        events(),
    ),
    max_size=30,
)


@given(TIMED, containers())
def test_the_dollars_of_phases_sum_to_the_attempts_whatever_is_told(
    told: list[Event], attempts: list[AttemptCost]
) -> None:
    rows = timeline(told, attempts).phases
    for one in attempts:
        mine = [row for row in rows if row.attempt == one.attempt]
        assert sum(row.seconds for row in mine) == pytest.approx(one.seconds, abs=1e-3)
        if one.usd is None:
            assert all(row.usd is None for row in mine)
        else:
            assert sum((row.usd or Decimal(0) for row in mine), Decimal(0)) == one.usd
        assert mine[-1].is_open == (one.ended_at is None)
        assert not any(row.is_open for row in mine[:-1])
    if attempts:
        assert all(row.usd is None or row.usd >= 0 for row in rows)
        assert all(row.seconds >= 0 for row in rows)
        assert all(row.usd == 0 for row in rows if not row.attempt)


# ---- attempts ----


def test_the_last_line_of_a_container_wins_and_damage_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_costs(folder) == ()
    append_costs(folder, [attempt(0, None)])
    with costs_path(folder).open("ab") as file:
        file.write(b'not json\n\xff\n{"attempt":1}\n{"attempt":1,"torn')
    append_costs(folder, [attempt(0, 60), attempt(100, 160)])
    first, second = read_costs(folder)
    assert (first.usd, second.attempt) == (attempt(0, 60).usd, 2)
    assert costs_path(folder).read_bytes().endswith(b"\n")


def test_a_present_without_events_makes_nothing_dearer() -> None:
    two = (attempt(0, None), attempt(100, None))
    going = so_far(two, RunState(life="training", updated_at=NOON + 200))
    assert [one.seconds for one in going] == [30, 100]  # the first one's end is not known
    assert so_far(going, RunState(life="training", updated_at=NOON + 200)) == going
    assert so_far(two, RunState(life="finished", updated_at=NOON + 9e9)) == two
    heard = RunState(life="failed", last=step(250), updated_at=NOON + 9e9)
    assert [one.seconds for one in so_far(two, heard)] == [30, 150]  # not to the last word
    ended = (attempt(0, 60),)
    assert so_far(ended, RunState(life="training", updated_at=NOON + 900)) == ended


def test_what_was_spent_is_said_and_marked_where_it_is_not_whole() -> None:
    two = [attempt(0, 756), attempt(1000, 1756)]
    assert spent_words(two) == "spent $0.42 over 2 attempts"
    assert spent_words(two[:1]) == "spent $0.21 over 1 attempt"
    assert spent_words([*two, attempt(2000, None)]) == "spent $0.43+? over 3 attempts"
    assert not spent([attempt(0, 60, usd_per_hour="")]).is_whole


@pytest.mark.parametrize(
    ("asked", "device", "paid"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", ("H100", 1)),
        ("H100:2", "NVIDIA H200", ("H100", 2)),  # an upgrade is free
        ("H100/A100-80GB:4", "NVIDIA A100-SXM4-80GB", ("A100-80GB", 4)),
        ("L40S/L4", "NVIDIA L4", ("L4", 1)),
        ("", "Intel Xeon", ("CPU", 0)),
        ("H1000", "", ("H1000", 1)),
    ],
)
def test_what_is_paid_for_is_what_of_the_list_was_there(
    asked: str, device: str, paid: tuple[str, int]
) -> None:
    assert paid_gpu(asked, device) == paid


def test_the_monitor_says_what_a_run_has_spent_once_it_is_over(tmp_path: Path) -> None:
    folder = RunStore(tmp_path).create(load("smoke", settings=["modal.gpu=H100"]), "modal", NOON)
    write_ref(folder, REF)
    append_costs(folder, [attempt(0, 756), attempt(1000, 1756)])
    watch = Watch.of(folder, NOON)
    watch.feed.poll()
    assert "spent" not in " ".join(cost_parts(watch, None, NOON))
    write_ref(folder, msgspec.structs.replace(REF, ended=True))
    append(folder.events_path, [RunFailed(seq=0, kind="killed", message="m")])
    watch.renew()
    while watch.feed.poll():
        pass
    assert cost_parts(watch, None, NOON) == ("modal H100", "spent $0.42 over 2 attempts")
    watch.close()


# ---- what a follower writes ----

REF = CloudRef(app_name="r", usd_per_hour="3.6", rates_source="modal", rates_as_of=NOON)


def book(*times: ContainerTime) -> bytes:
    return msgspec.json.encode(times)


def container_time(name: str, start: float, seen: float, **facts: object) -> ContainerTime:
    one = ContainerTime(
        started_at=NOON + start, seen_at=NOON + seen, usd_per_hour="3.6", container_id=name
    )
    return msgspec.structs.replace(one, **facts)


def test_a_container_without_a_word_costs_until_its_last_sign_of_life(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ledger = CostLedger(folder, REF)
    ledger.saw("ta-1", NOON + 5)
    ledger.heard("ta-1", started(6))
    ledger.saw("ta-1", NOON + 100)
    ledger.saw("ta-2", NOON + 200)
    mourned = container_time("ta-1", 0, 90, outcome="killed", worth_retrying=True)
    ledger.take_book(book(mourned, container_time("ta-2", 195, 200)))
    first, second = read_costs(folder)
    assert (first.ended_at, first.usd, first.outcome) == (None, Decimal("0.1"), "killed")
    assert (first.device, first.worth_retrying) == (DEVICE.name, True)
    assert (second.attempt, second.outcome) == (2, "")


def test_a_container_lived_at_least_as_long_as_its_events_tell(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    CostLedger(folder, REF).saw("ta-1", NOON)
    again = CostLedger(folder, REF)  # the one before was killed, and wrote nothing more
    again.over(RunState(failure=RunFailed(kind="killed", message="m")), NOON + 9e9, NOON + 268)
    assert read_costs(folder)[0].seconds == 268
    other = CostLedger(folder, REF)
    other.saw("ta-2", NOON + 300)
    other.heard("ta-2", started(350))
    other.write()
    assert read_costs(folder)[1].seconds == 50


def test_the_last_word_of_a_container_is_not_taken_for_that_of_the_next(tmp_path: Path) -> None:
    ledger = CostLedger(RunFolder(tmp_path), REF)
    ledger.saw("ta-2", NOON)
    ledger.heard("ta-2", RunFailed(kind="killed", message="the one before"))
    ledger.heard("ta-2", started(1))
    ledger.over(RunState(finish=RunFinished(steps=1)), NOON + 9)
    (only,) = read_costs(RunFolder(tmp_path))
    assert only.outcome == "finished"


@pytest.mark.parametrize("late", [NEAR_SECONDS - 1, NEAR_SECONDS + 1, -60])
def test_an_end_is_now_only_if_there_was_life_a_moment_ago(tmp_path: Path, late: float) -> None:
    folder = RunFolder(tmp_path)
    ledger = CostLedger(folder, REF)
    ledger.saw("ta-1", NOON)
    ledger.over(RunState(failure=RunFailed(kind="killed", message="stopped")), NOON + late)
    (only,) = read_costs(folder)
    assert only.ended_at == (NOON + late if 0 <= late <= NEAR_SECONDS else None)
    assert only.outcome == "killed"
    CostLedger(folder, REF).take_book(book(container_time("ta-1", 0, 0)))
    assert read_costs(folder)[0].ended_at == only.ended_at  # what was seen once stays


def test_a_preemption_that_nothing_followed_was_somebodys_stop(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ledger = CostLedger(folder, REF)
    ended = container_time("ta-1", 0, 9, ended_at=NOON + 9, outcome="preempted")
    ledger.take_book(book(msgspec.structs.replace(ended, worth_retrying=True)))
    assert read_costs(folder)[0].worth_retrying
    ledger.over(RunState(), NOON + 10)
    assert read_costs(folder)[0].worth_retrying is False


@given(st.binary(max_size=40) | st.sampled_from([b"[]", b"[{}]", b'[{"started_at":null}]']))
def test_a_book_that_cannot_be_read_says_nothing(text: bytes) -> None:
    ledger = CostLedger(RunFolder(Path("/nonexistent")), REF)
    ledger.take_book(text)  # and so nothing is written there


def test_whoever_follows_next_goes_on_with_the_same_lines(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    CostLedger(folder, REF).saw("ta-1", NOON)
    size = costs_path(folder).stat().st_size
    again = CostLedger(folder, REF)
    again.saw("ta-1", NOON)
    again.take_book(book())
    assert costs_path(folder).stat().st_size == size


def test_a_container_writes_its_end_into_the_book_and_the_next_one_mourns_it(
    tmp_path: Path,
) -> None:
    first = Spending(tmp_path, NOON, "3.6", "ta-1")
    first.note(NOON + 60)
    second = Spending(tmp_path, NOON + 100, "3.6", "ta-2")
    second.mourn("killed", "without a word", worth_retrying=True)
    second.end(NOON + 200, "oom", "no memory", worth_retrying=False, taken_away=False)
    third = Spending(tmp_path, NOON + 300, "3.6", "ta-3")
    third.mourn("killed", "without a word", worth_retrying=True)  # it has had its word
    third.end(NOON + 310, "finished", "", worth_retrying=False, taken_away=False)
    ledger = CostLedger(RunFolder(tmp_path), REF)
    ledger.take_book((tmp_path / "spending.json").read_bytes())
    found = read_costs(RunFolder(tmp_path))
    assert [(one.outcome, one.worth_retrying) for one in found] == [
        ("killed", True),
        ("oom", False),
        ("finished", False),
    ]
    assert [one.usd for one in found] == [Decimal("0.06"), Decimal("0.1"), Decimal("0.01")]
    assert third.earlier_usd == Decimal("0.16")
    assert [one.ended_at is None for one in found] == [True, False, False]


@given(st.integers(0, 255))
def test_work_that_was_taken_away_is_worth_another_attempt(status: int) -> None:
    taken = Verdict("preempted", "m")
    preempted = RunFailed(kind="preempted", message="m")
    assert is_worth_retrying(preempted, status, taken) == (status != 2)
    assert not is_worth_retrying(RunFailed(kind="oom", message="m"), status, taken)
    assert not is_worth_retrying(RunFinished(steps=1), status, taken)
    assert not is_worth_retrying(preempted, status, Verdict("killed", "a person"))


# ---- our meter and the bill ----


def run(*attempts: AttemptCost, **facts: object) -> CloudCosts:
    one = CloudCosts("r", "ap-1", "H100", False, attempts, Decimal("0.1"))
    return one._replace(**facts)  # type: ignore[arg-type]


def bill(usd: str, rest: str = "0", app_id: str = "ap-1", hour: int = 0) -> BilledHour:
    resources = {"CPU": Decimal(rest), "H100": Decimal(usd) - Decimal(rest)}
    return BilledHour(app_id, NOON + hour * HOUR, Decimal(usd), resources)


@pytest.mark.parametrize(
    ("one", "billed", "hours", "difference", "why"),
    [
        (run(attempt(0, 1800)), None, 2, None, ""),
        (run(attempt(0, 1800)), [], 0.6, None, NOT_CLOSED),
        (run(attempt(0, 1800)), [], 1.1, None, NOT_BILLED_YET),
        (run(attempt(0, 1800)), [], 9, "-0.5", NOTHING_BILLED),
        (run(attempt(0, 1800)), [bill("0.505")], 2, "0.005", ""),
        (run(attempt(0, 5400)), [bill("1")], 1.9, "0", NOT_CLOSED),
        (run(attempt(0, 1800)), [bill("0.75", "0.3")], 2, "0.25", BEYOND),
        (run(attempt(0, 1800)), [bill("0.515", "0.05")], 2, "0.015", STARTUP),
        (run(attempt(0, 1800)), [bill("0.75", "0.05")], 2, "0.25", PRICE),
        (run(attempt(0, 1800)), [bill("0.25")], 2, "-0.25", PRICE),
        (run(attempt(0, 1800, gpu="H100/L4")), [bill("0.25")], 2, "-0.25", CHEAPER),
        (run(attempt(0, None)), [bill("0.5", "0.05")], 2, "0.491667", UNSEEN),
        (run(), [bill("0.5")], 2, "0.5", NO_RECORD),
        (run(), [], 2, None, NO_RECORD),
        (run(attempt(0, 1800), is_rehearsal=True), [bill("0.5")], 2, None, PLAY_MONEY),
    ],
)
def test_a_difference_has_one_short_reason(
    one: CloudCosts, billed: list[BilledHour] | None, hours: float, difference: str, why: str
) -> None:
    report = cost_report([one], billed, NOON, NOON + hours * HOUR)
    (row,) = report.rows
    assert row.why == why
    assert row.difference_usd == (None if difference is None else Decimal(difference))


def test_other_apps_are_told_apart_and_rehearsals_are_not_summed() -> None:
    runs = [
        run(attempt(0, 1800)),
        run(attempt(0, 3600), run_id="s", app_id="ap-2", gpu="L4"),
        run(attempt(0, 3600), run_id="play", app_id="ap-3", is_rehearsal=True),
    ]
    billed = [bill("0.5"), bill("1", app_id="ap-2"), bill("7", app_id="ap-9")]
    report = cost_report(runs, billed, NOON, NOON + 2 * HOUR)
    assert [row.name for row in report.rows] == ["s", "r", "play"]
    assert (report.total.usd, report.total.billed_usd) == (Decimal("1.5"), Decimal("1.5"))
    assert report.others_usd == 7
    by_gpu = cost_report(runs, billed, NOON, NOON + 2 * HOUR, "gpu")
    assert [(row.name, row.runs, row.is_rehearsal) for row in by_gpu.rows] == [
        ("L4", 1, False),
        ("H100", 1, False),
        ("H100", 1, True),
    ]
    assert by_gpu.total == report.total


def test_a_run_of_another_time_is_left_out() -> None:
    runs = [run(attempt(0, 1800))]
    assert cost_report(runs, [], NOON + HOUR, NOON + 5 * HOUR).rows == ()
    assert cost_report(runs, [], NOON - 5 * HOUR, NOON - HOUR).rows == ()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5, unique=True), containers())
def test_periods_side_by_side_cost_what_the_whole_does(
    cuts: list[float], attempts: list[AttemptCost]
) -> None:
    edges = [NOON - HOUR, *(NOON + int(cut) * HOUR for cut in sorted(cuts)), NOON + 1e7]
    one = run(*attempts)
    whole = cost_report([one], None, edges[0], edges[-1]).total
    parts = [cost_report([one], None, a, b).total for a, b in itertools.pairwise(edges)]
    total = sum((part.usd or Decimal(0) for part in parts), Decimal(0))
    assert abs(total - (whole.usd or Decimal(0))) < Decimal("0.0001")


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604_800), ("12h", 43_200), ("90m", 5400), ("0.5h", 1800)]
)
def test_a_period_is_so_long_ago(text: str, seconds: float) -> None:
    assert moment_of(text, NOON) == NOON - seconds


@pytest.mark.parametrize(
    "text", ["", "7", "7y", "-1d", "2026-13-01", "9999-01-01", "9" * 400 + "d"]
)
def test_what_is_no_moment_in_the_past_is_refused(text: str) -> None:
    with pytest.raises(BadPeriod):
        moment_of(text, NOON)
