"""What a log and a volume tell becomes one stream, whatever is lost, doubled, or comes late."""

import random
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_engine.protocol import (
    TERMINAL,
    Device,
    Event,
    Logged,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    Unrecognized,
    decode,
    encode,
    violations,
)
from composer_tui.cloud.merge import MOST_MISSING, Merge, MergeRecord
from tests.runs import step, whole_run


class Clock:
    """Moments that are all different, so that an event can be told by its time."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def tick(self) -> float:
        self.now += 1.0
        return self.now


def started(attempt: int) -> RunStarted:
    device = Device(kind="cpu", name="a CPU", count=1, total_bytes=1)
    return RunStarted(
        run_id="r",
        attempt=attempt,
        total_steps=9,
        model="m",
        parameters=1,
        device=device,
        engine_version="0",
        config_hash="0",
    )


class Attempt(NamedTuple):
    """What one container's engine wrote, and how much of the whole it committed."""

    lane: str
    events: list[Event]


class History(NamedTuple):
    attempts: list[Attempt]
    volume: list[Event]  # its copy in the end
    copies: list[list[Event]]  # as it was when each attempt had ended


def history(lengths: list[int], committed: list[int], *, last_word: bool) -> History:
    """Attempts of some length; each begins where the volume's copy ends, as the engine does."""
    clock = Clock()
    volume: list[Event] = []
    attempts, copies = [], []
    for number, (length, kept) in enumerate(zip(lengths, committed, strict=True), 1):
        seq = len(volume)
        events: list[Event] = []

        def emit(event: Event, events: list[Event] = events, seq: int = seq) -> None:
            events.append(msgspec.structs.replace(event, seq=seq + len(events), time=clock.tick()))

        if volume and not isinstance(volume[-1], TERMINAL):
            emit(RunFailed(kind="killed", message="the previous attempt ended without a word"))
        emit(PhaseChanged(phase="loading"))
        emit(started(number))
        for i in range(length):
            emit(step(i + 1))
        if number == len(lengths) and last_word:
            emit(RunFinished(steps=length))
        clock.now += 60.0  # a new container takes its time
        attempts.append(Attempt(f"ta-{number}", events))
        volume = volume + events[: min(kept, len(events))]
        copies.append(volume)
    return History(attempts, volume, copies)


class Disk:
    """The files of a follower, which can die between any two writes."""

    def __init__(self) -> None:
        self.record = MergeRecord()
        self.lines: list[bytes] = []

    def begin(self) -> Merge:
        return Merge(self.record, (decode(line) for line in self.lines))

    def write(self, merge: Merge, events: list[Event], survive: int | None = None) -> None:
        """``survive`` lines are written before it dies; None: it lives."""
        self.record = merge.record
        self.lines += list(map(encode, events[:survive]))

    def events(self) -> list[Event]:
        found = [decode(line) for line in self.lines]
        return [event for event in found if not isinstance(event, Unrecognized)]


def check(events: list[Event], sources: set[tuple[float, int]]) -> None:
    """Each event of a source is there once, and the stream keeps the laws."""
    times = [event.time for event in events]
    wanted = sorted(time for time, _ in sources)
    ours = set(wanted)
    # The follower's own bear the time of an event too: they are known by what they are.
    theirs = sorted(event.time for event in events if event.time in ours and not _is_own(event))
    assert theirs == wanted, times
    if not events or not isinstance(events[-1], TERMINAL):
        events = [*events, RunFailed(seq=len(events), kind="runner", message="")]
    assert violations(events) == []


def _is_own(event: Event) -> bool:
    if isinstance(event, Logged):
        return "lost" in event.message and not event.message.startswith("too late")
    return isinstance(event, RunFailed) and event.kind == "preempted"


def keys(events: list[Event]) -> set[tuple[float, int]]:
    return {(event.time, event.seq) for event in events}


def test_a_log_in_order_goes_straight_through() -> None:
    run = whole_run()
    merge = Merge()
    assert [out for event in run for out in merge.take("ta-1", [event])] == run
    assert merge.held == 0
    assert len(merge.record.segments) == 1


def test_what_was_seen_is_not_let_through_again() -> None:
    run = whole_run()
    merge = Merge()
    merge.take("ta-1", run)
    assert merge.take("ta-1", run) == []
    assert merge.take_volume(run) == []


def test_a_missing_event_holds_back_what_follows_until_the_volume_has_it() -> None:
    run = whole_run()
    merge = Merge()
    merge.take("ta-1", run[:4])
    assert merge.take("ta-1", run[5:]) == []
    assert merge.held == len(run) - 5
    assert merge.take_volume(run[:6]) == run[4:]
    assert merge.held == 0


def test_an_event_that_nobody_has_is_said_to_be_lost() -> None:
    run = whole_run()
    merge = Merge()
    merge.take("ta-1", [*run[:4], *run[6:]])
    out = merge.give_up()
    assert isinstance(out[0], Logged)
    assert out[0].message == "2 events were lost: neither the log nor the volume has it"
    assert [event.time for event in out[1:]] == [event.time for event in run[6:]]
    assert [event.seq for event in out] == list(range(4, 4 + len(out)))


def test_own_events_take_a_number_between_the_engine_s() -> None:
    run = whole_run()
    merge = Merge()
    out = [merge.own(PhaseChanged(phase="queued"), 5.0), *merge.take("ta-1", run[:4])]
    out += [merge.own(Logged(level="info", message="hm"), 6.0), *merge.take("ta-1", run[4:])]
    assert violations(out) == []
    assert merge.take_volume(run) == []


def test_a_new_container_waits_for_the_volume_to_tell_where_it_began() -> None:
    story = history([6, 3], [4, 99], last_word=True)
    first, second = story.attempts
    merge = Merge()
    out = merge.take(first.lane, first.events)
    assert merge.take(second.lane, second.events) == []
    assert merge.has_new_lane
    out += merge.take_volume(story.copies[0])
    assert out[-len(second.events) :] != []
    check(out, keys(first.events) | keys(second.events))
    assert not merge.has_new_lane


def test_an_attempt_of_which_the_volume_kept_nothing_still_gets_its_last_word() -> None:
    story = history([5, 2], [0, 99], last_word=True)
    first, second = story.attempts
    merge = Merge()
    out = merge.take(first.lane, first.events)
    out += merge.take(second.lane, second.events) + merge.take_volume([])
    words = [event for event in out if isinstance(event, RunFailed)]
    assert [word.kind for word in words] == ["preempted"]
    check(out, keys(first.events) | keys(second.events))


def test_an_attempt_that_only_the_volume_tells_of_is_whole() -> None:
    story = history([5, 4], [3, 99], last_word=True)
    merge = Merge()
    out = merge.take("ta-1", story.attempts[0].events) + merge.take_volume(story.volume)
    check(out, keys(story.attempts[0].events) | keys(story.volume))


def test_a_line_that_is_minutes_late_is_told_as_a_line_for_people() -> None:
    story = history([6, 3], [3, 99], last_word=True)
    first, second = story.attempts
    merge = Merge()
    out = merge.take(first.lane, first.events[:-1])
    out += merge.take(second.lane, second.events) + merge.take_volume(story.volume)
    late = merge.take(first.lane, first.events[-1:])
    assert isinstance(late[0], Logged)
    assert "too late" in late[0].message
    assert merge.take(first.lane, first.events[-1:]) == []


def test_an_absurd_number_is_no_event_of_this_run() -> None:
    merge = Merge()
    assert (
        merge.take("ta-1", [Logged(seq=MOST_MISSING * 2, time=1.0, level="info", message="")]) == []
    )
    assert (merge.held, merge.strange) == (0, 1)


def test_a_long_hole_does_not_make_it_slow() -> None:
    events: list[Event] = [
        StepCompleted(seq=n, time=float(n), step=n, loss=None, channels=step(1).channels)
        for n in range(60_000)
    ]
    merge = Merge()
    assert merge.take("ta-1", events[1:]) == []
    assert merge.take("ta-1", events[:1]) == events


class Dice(random.Random):
    """One number draws a whole story: the same number, the same story."""

    def story(self) -> History:
        count = self.randint(1, 4)
        lengths = [self.randint(0, 8) for _ in range(count)]
        committed = [self.choice([0, 1, 2, 3, 5, 8, 99]) for _ in range(count)]
        return history(lengths, committed, last_word=self.random() < 0.5)

    def delivered(self, story: History) -> list[tuple[int, Event]]:
        """The log as it comes: lines of each container lost and doubled, in nearly any order.

        What says that an attempt began or ended is not lost: without it no stream is lawful.
        """
        lines: list[tuple[float, int, Event]] = []
        mixed = self.random() < 0.5
        for number, attempt in enumerate(story.attempts):
            for event in attempt.events:
                copies = self.choice([1, 1, 1, 0, 2])
                if isinstance(event, (RunStarted, *TERMINAL)):
                    copies = max(1, copies)
                for _ in range(copies):
                    late = self.randint(0, 8) if mixed else 0
                    lines.append((event.time + late, number, event))
        return [(number, event) for _, number, event in sorted(lines, key=lambda line: line[0])]


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_no_event_is_lost_or_doubled_whatever_comes_how(seed: int) -> None:
    dice = Dice(seed)
    story = dice.story()
    disk = Disk()
    merge = disk.begin()
    heard: set[tuple[float, int]] = set()
    newest, copy = 0, list[Event]()
    told: list[tuple[int, Event]] = []
    for number, event in dice.delivered(story):
        newest = max(newest, number)
        heard.add((event.time, event.seq))
        told.append((number, event))
        out = merge.take(story.attempts[number].lane, [event])
        action = dice.choice(["write", "write", "write", "die", "volume", "own"])
        if action == "die":
            disk.write(merge, out, dice.randint(0, len(out)))
            merge = disk.begin()
            # A new follower reads the log again, from before what the old one held back.
            out = [
                through
                for lane, one in told
                for through in merge.take(story.attempts[lane].lane, [one])
            ]
        disk.write(merge, out)
        if action == "own":
            disk.write(merge, [merge.own(Logged(level="info", message="own: lost"), -1.0)])
        if action == "volume" or merge.has_new_lane:
            base = story.copies[newest - 1] if newest else []
            now = story.copies[newest]
            copy = max(copy, now[: dice.randint(len(base), len(now))], key=len)
            heard |= keys(copy)
            disk.write(merge, merge.take_volume(copy))
    for attempt in story.attempts:  # the last look at the whole log, after the end
        lines = [e for e in attempt.events if (e.time, e.seq) in heard]
        disk.write(merge, merge.take(attempt.lane, lines))
    disk.write(merge, merge.take_volume(story.volume))
    disk.write(merge, merge.give_up())
    assert merge.held == 0
    events = [e for e in disk.events() if e.time != -1.0]
    check_all(disk.events(), events, heard | keys(story.volume))


def check_all(
    everything: list[Event], engine: list[Event], sources: set[tuple[float, int]]
) -> None:
    assert [event.seq for event in everything] == list(range(len(everything)))
    wanted = sorted(time for time, _ in sources)
    assert sorted(event.time for event in engine if not _is_own(event)) == wanted
    closing = RunFailed(seq=len(everything), kind="runner", message="")
    assert violations([*everything, closing]) == []


@pytest.mark.parametrize("survive", range(8))
def test_a_crash_between_the_record_and_the_events_loses_nothing(survive: int) -> None:
    story = history([4, 2], [3, 99], last_word=True)
    first, second = story.attempts
    disk = Disk()
    merge = disk.begin()
    disk.write(merge, merge.take(first.lane, first.events))
    out = merge.take(second.lane, second.events) + merge.take_volume(story.copies[0])
    disk.write(merge, out, survive)
    merge = disk.begin()
    for attempt in story.attempts:
        disk.write(merge, merge.take(attempt.lane, attempt.events))
    disk.write(merge, merge.take_volume(story.volume))
    disk.write(merge, merge.give_up())
    check(disk.events(), keys(first.events) | keys(second.events))
