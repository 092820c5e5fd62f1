"""What a viewer knows, event by event: nothing is lost, doubled or made up."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.protocol import (
    AlertRaised,
    EndedBy,
    Event,
    PhaseChanged,
    RunFailed,
    RunFinished,
    Unrecognized,
)
from composer_tui.headless.narrator import failure_lines
from composer_tui.headless.status import exit_status
from composer_tui.runs.state import (
    ALERTS_KEPT,
    ENDED,
    HOLES_KEPT,
    LIFE_CYCLE,
    LIVES,
    Life,
    RunState,
    advance,
    advance_all,
)
from composer_tui.runs.words import LOST, finished_words, hint_lines, life_word, state_words
from composer_tui.widgets.status import status_of
from tests.runs import EPOCH, numbered, started, step, whole_run
from tests.strategies import events

TURNS = {turn for _, turn in LIFE_CYCLE}


@given(st.lists(st.one_of(events(), events(st.integers(0, 30)))))
def test_any_events_at_all_can_come_in_any_order(stream: list[Event]) -> None:
    state = advance_all(RunState(), stream)
    seen = {event.seq for event in stream}
    assert state.next_seq == max(seen, default=-1) + 1
    assert state.missing == state.next_seq - len(seen)
    assert state.duplicates == len(stream) - len(seen)


def test_every_life_knows_what_every_turn_makes_of_it() -> None:
    assert set(LIFE_CYCLE) == {(life, turn) for life in LIVES for turn in TURNS}
    assert set(LIFE_CYCLE.values()) == set(LIVES)


@pytest.mark.parametrize("life", sorted(ENDED))
def test_only_the_next_attempt_brings_a_run_back_to_life(life: Life) -> None:
    ends = {turn for turn in TURNS if LIFE_CYCLE[life, turn] in ENDED}
    assert ends == {"run_finished", "run_stopped", "run_failed"}


def test_a_whole_run_tells_its_story() -> None:
    lives: list[Life] = []
    state = RunState()
    for event in whole_run():
        state = advance(state, event)
        if lives[-1:] != [state.life]:
            lives.append(state.life)
    assert lives == ["loading", "training", "finished"]
    assert (state.progress, state.missing, state.ended) == (1.0, 0, True)
    assert (state.started_at, state.ended_at) == (EPOCH, EPOCH + 16)
    assert state.checkpoint
    assert state.checkpoint.path == "checkpoints/last"
    assert state.eta_seconds(EPOCH) is None


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_events_in_any_order_lead_to_the_same_state(rng: random.Random, doubled: int) -> None:
    alert = AlertRaised(rule="spike", level="warning", message="!")
    first: list[Event] = [started(), step(1), alert, step(2), RunFailed(kind="oom", message="full")]
    stream = numbered([*first, PhaseChanged(phase="loading"), started(2), alert, step(2), step(3)])
    mixed = stream + rng.choices(stream, k=doubled)
    rng.shuffle(mixed)
    expected = advance_all(RunState(), stream)
    state = advance_all(RunState(), mixed)
    assert state.duplicates == doubled
    assert without_order(state) == without_order(expected)


def test_a_hole_is_shown_until_it_is_filled() -> None:
    stream = whole_run()
    state = advance_all(RunState(), stream[:4] + stream[8:])
    assert (state.holes, state.missing) == (((4, 8),), 4)
    state = advance(state, stream[5])
    assert state.holes == ((4, 5), (6, 8))
    state = advance_all(state, [stream[4], stream[7], stream[6]])
    assert (state.holes, state.missing, state.duplicates) == ((), 0, 0)
    assert without_order(state) == without_order(advance_all(RunState(), stream))


def without_order(state: RunState) -> RunState:
    """The state without what it owes to the order of arrival: doubles, and the pace's start."""
    return msgspec.structs.replace(state, duplicates=0, first_step=None, first_step_at=None)


def test_more_holes_than_can_be_kept_stay_missing() -> None:
    stream = whole_run(3 * HOLES_KEPT)[::2]
    state = advance_all(RunState(), stream)
    assert len(state.holes) == HOLES_KEPT
    assert state.missing == len(stream) - 1


def test_an_event_of_a_newer_version_fills_its_place() -> None:
    state = advance(RunState(), Unrecognized(text="{}", reason="newer", seq=0))
    state = advance(state, Unrecognized(text="garbage", reason="no JSON"))
    assert (state.next_seq, state.missing, state.unrecognized) == (1, 0, 2)


def test_a_new_attempt_forgets_how_the_last_one_ended() -> None:
    failed = advance_all(
        RunState(), numbered([started(), step(1), RunFailed(kind="oom", message="full")])
    )
    assert failed.failure
    assert failed.ended_at == EPOCH + 2
    again = advance(failed, numbered([PhaseChanged(phase="loading")], first=3)[0])
    assert (again.life, again.failure, again.ended_at) == ("loading", None, None)
    assert again.last is not None


def test_a_resumed_run_stands_where_its_checkpoint_was_and_not_at_the_steps_it_lost() -> None:
    killed: list[Event] = [
        started(),
        step(1),
        step(2),
        step(3),
        RunFailed(kind="killed", message="!"),
    ]
    resumed = msgspec.structs.replace(started(2), resumed_step=2)
    stream = numbered([*killed, resumed, step(3), step(4)])
    state = advance_all(RunState(), stream[:6])
    assert (state.steps_done, state.progress) == (2, 2 / state.total_steps)
    assert advance(state, stream[6]).steps_done == 3
    assert advance_all(state, stream[6:]).steps_done == 4


def test_a_run_that_was_stopped_is_not_finished() -> None:
    end = RunFinished(steps=1, stopped_early=True, reason="asked")
    state = advance_all(RunState(), numbered([started(), step(1), end]))
    assert state.life == "stopped"
    assert state.finish
    assert state.finish.reason == "asked"


def test_a_run_that_a_guard_rail_stopped_says_which_and_gates_a_job() -> None:
    asked = RunFinished(steps=1, stopped_early=True, reason="asked: enough")
    capped = RunFinished(
        steps=1, stopped_early=True, reason="the cap of $0.05 is reached: $0.04", ended_by="budget"
    )
    person, rail = (
        advance_all(RunState(), numbered([started(), step(1), end])) for end in (asked, capped)
    )
    assert (person.life, person.guard_rail, exit_status(person)) == ("stopped", "", 0)
    assert (rail.life, exit_status(rail)) == ("stopped", 3)
    assert state_words(rail) == "cap hit: the cap of $0.05 is reached"
    assert finished_words(asked, "4s") == "stopped early after 1 steps in 4s: asked: enough"
    assert finished_words(capped).startswith("cap hit after 1 steps: the cap")
    assert status_of(rail.life, ended_by="budget").word == "cap hit"
    assert status_of(rail.life).word == "stopped"
    again = advance(rail, numbered([started(2)], first=3)[0])
    assert (again.guard_rail, exit_status(again)) == ("", 0)


def test_a_machine_that_was_taken_back_ends_an_attempt_and_not_the_run() -> None:
    taken = RunFailed(kind="preempted", message="Modal took the container away")
    stream = numbered([started(), step(1), taken, started(2), step(2)])
    between = advance_all(RunState(), stream[:3])
    assert (between.ended, between.is_taken_away, exit_status(between)) == (False, True, 0)
    assert state_words(between) == "launching: taken away; a new attempt is expected"
    assert failure_lines(taken)[0].startswith("taken away; a new attempt is expected")
    goes_on = advance_all(between, stream[3:])
    assert (goes_on.life, goes_on.is_taken_away) == ("training", False)
    killed = advance(between, RunFailed(kind="killed", message="m", seq=3))
    assert (killed.ended, killed.is_taken_away, exit_status(killed)) == (True, False, 1)


def test_every_list_has_one_word_for_an_end() -> None:
    ends: list[tuple[Life, EndedBy, str]] = [
        ("stopped", "", "stopped"),
        ("stopped", "budget", "cap hit"),
        ("stopped", "timeout", "timed out"),
        ("failed", "timeout", "timed out"),
        ("failed", "killed", "killed"),
        ("failed", "engine", "failed"),
        ("training", "", "training"),
    ]
    for life, ended_by, word in ends:
        assert life_word(life, ended_by) == word
        assert status_of(life, ended_by=ended_by).word == word


def test_a_stop_by_its_owner_is_no_failure_even_before_the_engine_could_say_so() -> None:
    word = RunFailed(kind="killed", message="stopped by you (the stop of 13:02 took effect)")
    state = advance_all(RunState(), numbered([word]))
    assert (state.ended, exit_status(state), state_words(state)) == (True, 0, "stopped")
    assert state.failure is None
    assert failure_lines(word) == [word.message]


def test_what_is_lost_is_told_as_a_note_and_not_as_something_to_try() -> None:
    assert hint_lines(LOST) == [f"note: {LOST}"]
    assert hint_lines(f"raise it; {LOST}") == ["try: raise it", f"note: {LOST}"]
    assert hint_lines("") == []


def test_a_failure_before_the_start_is_a_failure() -> None:
    [event] = numbered([RunFailed(kind="config", message="no such model")])
    assert advance(RunState(), event).life == "failed"


def test_only_the_newest_alerts_are_kept_and_all_are_counted() -> None:
    alerts = [AlertRaised(rule="stall", level="warning", message=str(i)) for i in range(250)]
    state = advance_all(RunState(), numbered(alerts))
    assert (len(state.alerts), state.alert_count) == (ALERTS_KEPT, 250)
    assert state.alerts[-1].message == "249"


def test_the_time_left_follows_the_pace_and_stands_still_when_the_run_does() -> None:
    state = advance_all(RunState(), numbered([started(total_steps=10), step(1), step(2), step(3)]))
    now = EPOCH + 3
    assert state.eta_seconds(now) == pytest.approx(7)
    assert state.eta_seconds(now + 0.5) == pytest.approx(6.5)
    assert state.eta_seconds(now + 1000) == pytest.approx(6)
    assert state.progress == pytest.approx(0.3)
