"""A recorded run plays again, event for event, at the speed that was asked for."""

import math
from pathlib import Path

import pytest

from composer_engine.config import RunConfig
from composer_engine.protocol import (
    Event,
    RunFailed,
    RunFinished,
    RunStarted,
    Unrecognized,
    decode,
    encode,
    violations,
)
from composer_tui.runners.attach import attach
from composer_tui.runners.local import LocalRunner
from composer_tui.runners.replay import ReplayRun, ReplayRunner
from composer_tui.runs.folder import ProcessRef, RunFolder
from composer_tui.runs.store import RunStore
from tests.runs import EPOCH, lines, numbered, started, step, whole_run

NOW = 1_800_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


def recorded(store: RunStore, data: bytes) -> RunFolder:
    folder = store.create(RunConfig(name="recorded"), "local", EPOCH)
    folder.events_path.write_bytes(data)
    return folder


def events(run: ReplayRun) -> list[Event]:
    data = run.folder.events_path.read_bytes() if run.folder.events_path.exists() else b""
    found = [decode(line) for line in data.splitlines()]
    assert not any(isinstance(event, Unrecognized) for event in found)
    return [event for event in found if not isinstance(event, Unrecognized)]


def test_events_come_when_they_are_due(store: RunStore) -> None:
    run = ReplayRunner(store, recorded(store, lines(whole_run())), speed=4.0).start(now=NOW)
    assert run.pump(NOW) == 1
    assert run.pump(NOW + 0.2) == 0
    assert run.pump(NOW + 0.25) == 1
    assert run.pump(NOW + 2) == 7
    assert run.alive()
    assert run.pump(NOW + 100) == 8
    assert run.pump(NOW + 101) == 0
    assert (run.alive(), run.settle()) == (False, True)
    assert [event.time for event in events(run)] == [NOW + i / 4 for i in range(17)]


def test_a_replay_at_infinite_speed_is_the_recording_under_a_new_name(store: RunStore) -> None:
    run = ReplayRunner(store, recorded(store, lines(whole_run(5000))), speed=math.inf).start()
    while run.alive():
        run.pump(NOW)
    assert run.folder.read_record().target == "replay"
    assert run.folder.read_record().config == RunConfig(name="recorded")
    for event, original in zip(events(run), whole_run(5000), strict=True):
        if isinstance(event, RunStarted):
            assert event.run_id == run.folder.run_id
        else:
            assert event == original


@pytest.mark.parametrize(
    ("cut", "reason"), [(0, ""), (1, ""), (3, "the recording ends here"), (8, "the recording")]
)
def test_a_recording_without_an_end_is_given_one(store: RunStore, cut: int, reason: str) -> None:
    source = recorded(store, lines(whole_run()[:cut]) + b'{"event":"torn')
    run = ReplayRunner(store, source, speed=math.inf).start(now=NOW)
    while run.alive():
        run.pump(NOW)
    assert violations(events(run)) == []
    last = events(run)[-1]
    if cut < 2:
        assert isinstance(last, RunFailed)
    else:
        assert isinstance(last, RunFinished)
        assert last.stopped_early
        assert last.reason.startswith(reason)


@pytest.mark.parametrize("seconds", range(17))
def test_a_replay_that_is_stopped_keeps_the_laws(store: RunStore, seconds: int) -> None:
    died = RunFailed(kind="killed", message="!")
    stream = numbered([started(), step(1), step(2), died, *whole_run(8)[1:]])
    run = ReplayRunner(store, recorded(store, lines(stream))).start(now=NOW)
    run.pump(NOW + seconds)
    report = run.stop("graceful")
    assert report.ended
    assert report.how == "replay stopped"
    assert violations(events(run)) == []
    assert not run.alive()
    assert run.pump(NOW + 100) == 0


def test_lines_that_are_no_events_leave_no_hole(store: RunStore) -> None:
    data = [*map(encode, whole_run())]
    data[4] = b'{"event":"of_tomorrow","seq":4}\n'
    run = ReplayRunner(store, recorded(store, b"garbage\n".join(data)), speed=math.inf).start()
    while run.alive():
        run.pump(NOW)
    assert violations(events(run)) == []
    assert len(events(run)) == 17


def test_a_replay_can_be_stopped_by_another_program(store: RunStore) -> None:
    run = ReplayRunner(store, recorded(store, lines(whole_run()))).start(now=NOW)
    run.pump(NOW + 3)
    other = attach(LocalRunner(store), run.folder)
    assert isinstance(other, ReplayRun)
    assert other.alive()
    assert not other.settle()
    assert not other.stop("now").ended
    assert run.pump(NOW + 4) == 0
    assert not run.alive()
    assert other.settle()
    assert violations(events(run)) == []


def test_a_replay_whose_program_died_is_ended_by_who_finds_it(store: RunStore) -> None:
    gone = ProcessRef(pid=2**22 - 1, start_time=1.0, pgid=1)
    folder = store.create(RunConfig(name="r"), "replay", NOW, gone)
    folder.events_path.write_bytes(lines(whole_run()[:6]))
    run = ReplayRunner(store, folder).attach(folder)
    assert run.settle()
    assert violations(events(run)) == []


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_cannot_be_is_refused(store: RunStore, speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        ReplayRunner(store, RunFolder(Path("x")), speed)
