"""A container around engines that end in every way: what is told, committed, and tried again."""

import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine import container
from composer_engine.child import engine_command
from composer_engine.cloud_spec import CloudSpec, ContainerTime, ControlAsk, ControlBeat, app_name
from composer_engine.commits import Committer
from composer_engine.config import RunConfig, load
from composer_engine.container import (
    Crashed,
    last_event,
    process_count,
    steady_clock,
    train_attempt,
)
from composer_engine.control import Control
from composer_engine.emitter import Emitter
from composer_engine.outcome import attempt_words, is_worth_retrying, last_word
from composer_engine.protocol import (
    Event,
    Logged,
    RunFailed,
    RunFinished,
    violations,
)
from composer_engine.safety import StopRequest
from composer_engine.watchdog import Verdict
from tests.engine.engine_process import read_events, wait_until

STAND_IN = Path(__file__).parent / "stand_in.py"
ROOT = Path(__file__).parents[2]


class Board:
    """Texts in memory. ``trouble`` is raised instead, as a network would."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.trouble: Exception | None = None
        self.troubled = 0

    def read(self, name: str) -> str | None:
        if self.trouble:
            self.troubled += 1
            raise self.trouble
        return self.texts.get(name)

    def write(self, name: str, text: str) -> None:
        if self.trouble:
            raise self.trouble
        self.texts[name] = text

    def beat(self, spec: CloudSpec) -> ControlBeat:
        text = self.texts[f"{app_name(spec.run_id)}/beat"]
        return msgspec.json.decode(text, type=ControlBeat)

    def ask(self, spec: CloudSpec, ask: ControlAsk) -> None:
        self.texts[f"{app_name(spec.run_id)}/ask"] = msgspec.json.encode(ask).decode()


class Volume:
    """A folder, and what of it has been committed."""

    def __init__(self, root: Path) -> None:
        self.work, self.committed = root / "work", root / "committed"
        self.work.mkdir()
        self.commits = 0

    def commit(self) -> None:
        self.commits += 1
        shutil.rmtree(self.committed, ignore_errors=True)
        shutil.copytree(self.work, self.committed)

    def events(self, spec: CloudSpec) -> list[Event]:
        """The lawful stream that a reader of the committed volume sees."""
        events = read_events(self.committed / spec.run_id / "events.jsonl")
        assert violations(events) == []
        return events


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


@pytest.fixture
def board() -> Board:
    return Board()


def stand_in(_config: Path, folder: Path, run_id: str, _processes: int) -> list[str]:
    return [sys.executable, str(STAND_IN), "--run-dir", str(folder), "--run-id", run_id]


def make_spec(fault: str, *settings: str, **fields: Any) -> CloudSpec:
    quick = ("modal.gpu=", "modal.stop_grace_seconds=1")
    config = load("smoke", settings=(*quick, *settings))
    return CloudSpec(run_id=f"{fault}-1", config=config, **fields)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is started by its path, and finds the engine as an engine would; and haste."""
    monkeypatch.setattr(container, "_ASK_SECONDS", 0.1)
    monkeypatch.setattr(container, "_TERMINATE_SECONDS", 0.3)
    monkeypatch.setattr(container, "_ENDING_SECONDS", 0.1)
    monkeypatch.setattr(container, "_HEAR_SECONDS", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "engine"))


def train(spec: CloudSpec, volume: Volume, board: Board) -> dict[str, str]:
    return train_attempt(spec, volume.work, volume.commit, board, stand_in)


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Acts, beside what is in the block, when the condition holds."""

    def work() -> None:
        wait_until(condition, "the moment to act")
        act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def has_step(volume: Volume, spec: CloudSpec, step: int) -> Callable[[], bool]:
    path = volume.work / spec.run_id / "events.jsonl"

    def look() -> bool:
        return path.exists() and f'"step":{step},'.encode() in path.read_bytes()

    return look


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# ---------------------------------------------------------------- how attempts end


def test_a_run_that_finishes_is_told_line_by_line_and_committed(
    volume: Volume, board: Board, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    spec = make_spec("finishes")
    answer = train(spec, volume, board)
    assert (answer["outcome"], answer["step"]) == ("finished", "3")
    file = volume.committed / spec.run_id / "events.jsonl"
    assert capfdbinary.readouterr().out == file.read_bytes()
    assert isinstance(volume.events(spec)[-1], RunFinished)
    beat = board.beat(spec)
    assert (beat.state, beat.step, beat.checkpoint_step) == ("ended", 3, 2)
    assert (beat.total_steps, beat.device) == (1000, "a stand-in")


def test_a_fresh_machine_finds_what_it_needs_to_attach(volume: Volume, board: Board) -> None:
    spec = make_spec("finishes", tags={"composer.run": "r"})
    train(spec, volume, board)
    folder = volume.committed / spec.run_id
    assert msgspec.json.decode((folder / "spec.json").read_bytes(), type=CloudSpec) == spec
    assert load(file=folder / "config.toml") == spec.config


def test_the_papers_are_committed_before_the_engine_begins(volume: Volume, board: Board) -> None:
    spec = make_spec("finishes")
    seen: list[bool] = []

    def look(config: Path, folder: Path, run_id: str, processes: int) -> list[str]:
        kept = volume.committed / run_id
        seen.append((kept / "spec.json").is_file() and (kept / "config.toml").is_file())
        return stand_in(config, folder, run_id, processes)

    train_attempt(spec, volume.work, volume.commit, board, look)
    assert seen == [True]


def test_a_run_that_is_over_is_not_started_again(volume: Volume, board: Board) -> None:
    spec = make_spec("finishes")
    train(spec, volume, board)
    before = volume.events(spec)
    assert train(spec, volume, board)["outcome"] == "finished"
    assert volume.events(spec) == before


def test_what_an_engine_leaves_running_is_ended(volume: Volume, board: Board) -> None:
    spec = make_spec("leaver")
    assert train(spec, volume, board)["outcome"] == "finished"
    left = [p for p in psutil.process_iter() if spec.run_id in command_line(p)]
    assert left == []


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_mistake_in_the_configuration_is_not_tried_again(volume: Volume, board: Board) -> None:
    spec = make_spec("mistaken")
    answer = train(spec, volume, board)
    assert (answer["outcome"], answer["reason"]) == ("config", "no such model")
    assert len(volume.events(spec)) == 1


def test_an_engine_out_of_memory_is_not_tried_again(volume: Volume, board: Board) -> None:
    assert train(make_spec("starves"), volume, board)["outcome"] == "oom"


@pytest.mark.parametrize(
    ("fault", "kind", "word"),
    [
        ("crashes", "engine", "ZeroDivisionError"),
        ("segfaults", "killed", "SIGSEGV"),
        ("exits", "engine", "status 7"),
        ("speechless", "engine", "status 1"),
    ],
)
def test_a_crash_has_a_last_word_and_is_worth_another_attempt(
    fault: str, kind: str, word: str, volume: Volume, board: Board
) -> None:
    spec = make_spec(fault)
    with pytest.raises(Crashed, match=word):
        train(spec, volume, board)
    last = volume.events(spec)[-1]
    assert isinstance(last, RunFailed)
    assert last.kind == kind
    if fault in {"exits", "speechless"}:
        assert ("boom" if fault == "exits" else "cannot even begin") in last.detail
    with pytest.raises(Crashed):  # and the next attempt goes on in the same stream
        train(spec, volume, board)
    events = volume.events(spec)
    assert sum(isinstance(event, RunFailed) for event in events) == 2
    if fault != "speechless":
        (opening,) = [event.message for event in events if isinstance(event, Logged)]
        assert opening == f"attempt 2 (retry 1 of 1); before: {last.message}"


def test_a_kill_from_outside_is_taken_for_want_of_memory_and_tears_no_line(
    volume: Volume, board: Board, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    spec = make_spec("torn")
    assert train(spec, volume, board)["outcome"] == "oom"
    *_, torn, last = capfdbinary.readouterr().out.splitlines()
    assert torn == b'{"event":"step_completed","seq":4,"ti'
    assert b'"run_failed"' in last
    assert isinstance(volume.events(spec)[-1], RunFailed)


# ---------------------------------------------------------------- asked to end


def test_an_ask_saves_and_names_who_asked(volume: Volume, board: Board) -> None:
    spec = make_spec("runs")
    ask = ControlAsk(stop="asked by me at laptop")
    with once(has_step(volume, spec, 3), lambda: board.ask(spec, ask)):
        answer = train(spec, volume, board)
    assert answer["outcome"] == "stopped"
    last = volume.events(spec)[-1]
    assert isinstance(last, RunFinished)
    assert (last.reason, last.ended_by) == ("asked by me at laptop", "")
    assert (volume.committed / spec.run_id / "checkpoints" / f"step-{last.steps}").is_dir()


def test_an_interrupt_saves_and_leaves_the_call_to_the_next_container(
    volume: Volume, board: Board
) -> None:
    spec = make_spec("runs")
    before = signal.getsignal(signal.SIGINT)
    with once(has_step(volume, spec, 3), interrupt), pytest.raises(KeyboardInterrupt):
        train(spec, volume, board)
    assert signal.getsignal(signal.SIGINT) is before
    last = volume.events(spec)[-1]
    assert isinstance(last, RunFailed)
    assert last.kind == "preempted"
    board.ask(spec, ControlAsk(stop="enough"))
    assert train(spec, volume, board)["outcome"] == "killed"
    assert "not started: enough" in str(volume.events(spec)[-1])


def test_an_engine_that_does_not_obey_is_ended_with_a_word(volume: Volume, board: Board) -> None:
    spec = make_spec("hangs", "modal.stop_grace_seconds=0.2")
    with once(has_step(volume, spec, 2), lambda: board.ask(spec, ControlAsk(stop="asked"))):
        answer = train(spec, volume, board)
    assert answer["outcome"] == "killed"
    last = volume.events(spec)[-1]
    assert isinstance(last, RunFailed)
    assert last.message == "asked; it did not save in time and was ended"
    assert not [p for p in psutil.Process().children() if str(STAND_IN) in p.cmdline()]


def test_a_cancelled_call_saves_first(volume: Volume, board: Board) -> None:
    class Cancelled(BaseException):
        """As Modal raises it in the main thread, at any moment."""

    def cancel(*_: object) -> None:
        raise Cancelled

    spec = make_spec("runs")
    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        with (
            once(has_step(volume, spec, 3), lambda: os.kill(os.getpid(), signal.SIGUSR1)),
            pytest.raises(Cancelled),
        ):
            train(spec, volume, board)
    finally:
        signal.signal(signal.SIGUSR1, before)
    last = volume.events(spec)[-1]
    assert isinstance(last, RunFinished)
    assert "cancelled" in last.reason


# ---------------------------------------------------------------- money and time


def test_a_stalled_run_saves_and_ends(volume: Volume, board: Board) -> None:
    answer = train(make_spec("stalls", "modal.stall_minutes=0.01"), volume, board)
    assert answer["outcome"] == "stopped"
    assert answer["reason"].startswith("stalled: no new step")
    assert answer["ended_by"] == "timeout"


def test_time_before_the_first_step_is_no_stall_but_has_its_own_limit(
    volume: Volume, board: Board
) -> None:
    spec = make_spec("slow", "modal.stall_minutes=0.001", "modal.startup_timeout_seconds=1")
    began = time.monotonic()
    answer = train(spec, volume, board)
    assert time.monotonic() - began > 1
    assert answer["reason"] == "stalled: no step in the first 1 s"


def test_the_cap_warns_saves_and_holds_for_all_attempts(
    volume: Volume, board: Board, capfd: pytest.CaptureFixture[str]
) -> None:
    # A cent a second and a cap of four cents: the warning after 3.2 s would come too late to see,
    # so most of it is spent before, by an attempt that is on the books.
    spec = make_spec(
        "runs", "modal.cap_usd=0.04", "modal.stop_grace_seconds=0.5", usd_per_hour="36"
    )
    folder = volume.work / spec.run_id
    folder.mkdir()
    earlier = [{"started_at": 100.0, "seen_at": 102.0, "usd_per_hour": "36"}]
    (folder / "spending.json").write_bytes(msgspec.json.encode(earlier))
    answer = train(spec, volume, board)
    assert answer["outcome"] == "stopped"
    assert answer["reason"].startswith("the cap of $0.04 is reached")
    last = volume.events(spec)[-1]
    assert isinstance(last, RunFinished)
    assert (last.reason, last.ended_by) == (answer["reason"], "budget")
    assert 0.03 < float(answer["spent_usd"]) < 0.04
    notices = [event for event in volume.events(spec) if isinstance(event, Logged)]
    assert [notice.level for notice in notices] == ["warning", "warning"]
    assert notices[0].message.startswith("attempt 2 (")
    assert "of the cap of $0.04 are spent" in notices[1].message
    assert notices[1].message in capfd.readouterr().err


def test_an_engine_and_a_commit_that_hang_together_keep_the_cap(
    volume: Volume, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_ENDING_SECONDS", 0.7)
    monkeypatch.setattr(container, "_LEAST_COMMIT_SECONDS", 0.1)
    spec = make_spec(
        "hangs", "modal.cap_usd=0.04", "modal.stop_grace_seconds=0.2", usd_per_hour="36"
    )
    folder = volume.work / spec.run_id
    folder.mkdir()
    earlier = [{"started_at": 100.0, "seen_at": 102.0, "usd_per_hour": "36"}]
    (folder / "spending.json").write_bytes(msgspec.json.encode(earlier))
    freed = threading.Event()

    def commit() -> None:
        if has_step(volume, spec, 2)():
            freed.wait(20)
        volume.commit()

    began = time.monotonic()
    answer = train_attempt(spec, volume.work, commit, board, stand_in)
    took = time.monotonic() - began
    freed.set()
    assert answer["outcome"] == "budget"
    assert "it did not save in time" in answer["reason"]
    assert took < 5  # two seconds were left, and this machine may be busy


def test_an_expired_lease_ends_a_run_unless_it_is_extended(volume: Volume, board: Board) -> None:
    spec = make_spec("runs", lease_until=time.time() + 0.5)
    until = time.time() + 1.5
    board.ask(spec, ControlAsk(lease_until=until))
    answer = train(spec, volume, board)
    assert time.time() >= until
    assert answer["reason"].startswith("the lease has expired")


def test_an_extended_lease_holds_for_a_container_that_cannot_reach_the_board(
    volume: Volume, board: Board
) -> None:
    spec = make_spec("runs", lease_until=time.time() + 2.0)
    until = time.time() + 3600
    board.ask(spec, ControlAsk(lease_until=until))
    with once(has_step(volume, spec, 3), interrupt), pytest.raises(KeyboardInterrupt):
        train(spec, volume, board)
    kept = volume.committed / spec.run_id / "lease.json"
    assert msgspec.json.decode(kept.read_bytes()) == {"lease_until": until}
    wait_until(lambda: time.time() > spec.lease_until, "the first lease's end")
    board.trouble = ConnectionError("no route")
    events = volume.work / spec.run_id / "events.jsonl"

    def is_at_it_again() -> bool:
        return events.read_bytes().count(b'"run_started"') > 1

    with once(is_at_it_again, interrupt), pytest.raises(KeyboardInterrupt):
        train(spec, volume, board)


def test_a_lease_that_was_extended_before_a_container_began_is_waited_for(
    volume: Volume, board: Board
) -> None:
    spec = make_spec("finishes", lease_until=1.0)
    board.ask(spec, ControlAsk(lease_until=time.time() + 3600))
    board.trouble = ConnectionError("no route")
    refused = train(spec, volume, board)
    assert refused["reason"].startswith("not started: the lease has expired")
    tried = board.troubled
    assert tried > 2

    def heal() -> None:
        board.trouble = None

    with once(lambda: board.troubled > tried + 1, heal):
        assert train(spec, volume, board)["outcome"] == "finished"


@pytest.mark.parametrize("text", [b"", b"{", b'{"lease_until":"x"}', b"\xff"])
def test_a_damaged_lease_extends_nothing_and_is_told(
    text: bytes, volume: Volume, board: Board, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec("finishes", lease_until=1.0)
    folder = volume.work / spec.run_id
    folder.mkdir()
    (folder / "lease.json").write_bytes(text)
    assert train(spec, volume, board)["reason"].startswith("not started: the lease has expired")
    assert "lease.json cannot be read" in capfd.readouterr().err


def test_what_an_interrupted_attempt_cost_is_counted(volume: Volume, board: Board) -> None:
    spec = make_spec("runs", usd_per_hour="36")

    folder = volume.work / spec.run_id
    with once(has_step(volume, spec, 3), interrupt), pytest.raises(KeyboardInterrupt):
        train(spec, volume, board)
    first = msgspec.json.decode((folder / "spending.json").read_bytes())
    assert len(first) == 1
    assert first[0]["taken_away"]
    board.ask(spec, ControlAsk(stop="enough"))
    answer = train(spec, volume, board)
    earlier = (first[0]["seen_at"] - first[0]["started_at"]) / 100
    assert float(answer["spent_usd"]) >= round(earlier, 4) > 0


@pytest.mark.parametrize(("taken", "kind"), [(True, "preempted"), (False, "killed")])
def test_the_next_container_says_what_the_last_one_could_not(
    taken: bool, kind: str, volume: Volume, board: Board
) -> None:
    spec = make_spec("finishes")
    folder = volume.work / spec.run_id
    folder.mkdir()
    unended = b'{"event":"logged","seq":0,"time":1,"level":"info","message":"hello"}\n'
    (folder / "events.jsonl").write_bytes(unended)
    book = [{"started_at": 1.0, "seen_at": 2.0, "usd_per_hour": "1", "taken_away": taken}]
    (folder / "spending.json").write_bytes(msgspec.json.encode(book))
    train(spec, volume, board)
    events = volume.events(spec)
    assert isinstance(events[1], RunFailed)
    assert events[1].kind == kind
    assert isinstance(events[-1], RunFinished)


# ---------------------------------------------------------------- trouble around it


def test_a_board_that_cannot_be_reached_hurts_nobody(
    volume: Volume, board: Board, capfd: pytest.CaptureFixture[str]
) -> None:
    board.trouble = ConnectionError("no route")
    assert train(make_spec("finishes"), volume, board)["outcome"] == "finished"
    assert capfd.readouterr().err.count("no route") == 1


def test_an_ask_that_is_garbage_hurts_nobody(volume: Volume, board: Board) -> None:
    board.texts["finishes-1/ask"] = "{"
    assert train(make_spec("finishes"), volume, board)["outcome"] == "finished"


def test_commits_that_fail_are_tried_again_and_block_nobody(
    capfd: pytest.CaptureFixture[str],
) -> None:
    failures = 3
    tried: list[float] = []

    def commit() -> None:
        tried.append(time.monotonic())
        if len(tried) <= failures:
            raise OSError("the network is down")

    committer = Committer(commit, period_seconds=60, retry_seconds=0.01)
    began = time.monotonic()
    committer.request()
    assert time.monotonic() - began < 5
    wait_until(lambda: len(tried) > failures, "the retries")
    assert committer.close(5)
    assert capfd.readouterr().err.count("the network is down") == failures


def test_a_commit_that_hangs_does_not_keep_the_container() -> None:
    never = threading.Event()
    committer = Committer(lambda: never.wait(30), period_seconds=60)
    committer.request()
    began = time.monotonic()
    assert not committer.close(0.2)
    assert time.monotonic() - began < 5
    never.set()


def test_changes_are_committed_on_their_own_after_a_while() -> None:
    commits: list[int] = []
    committer = Committer(lambda: commits.append(1), period_seconds=0.05)
    time.sleep(0.2)
    assert commits == []  # nothing changed
    committer.touch()
    wait_until(lambda: bool(commits), "the regular commit")
    committer.close(5)


def test_beats_and_asks_go_on_beside_each_other(board: Board) -> None:
    beats: list[float] = []

    def beat() -> ControlBeat:
        beats.append(time.monotonic())
        return ControlBeat(time=0, run_id="r")

    control = Control(board, "r", beat, ask_seconds=0.01, beat_seconds=0.05)
    control.start(5)
    board.texts["r/ask"] = '{"stop":"asked","something_new":1}'
    wait_until(lambda: len(beats) > 2 and control.ask.stop == "asked", "two beats and an ask")
    control.close(5)
    assert min(b - a for a, b in itertools.pairwise(beats[:-1])) > 0.03


class HangingBoard(Board):
    """Calls of one kind never come back, until ``freed``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.freed, self.hung = kind, threading.Event(), 0

    def read(self, name: str) -> str | None:
        self._hang("read")
        return super().read(name)

    def write(self, name: str, text: str) -> None:
        self._hang("write")
        super().write(name, text)

    def _hang(self, kind: str) -> None:
        if kind == self.kind and not self.freed.is_set():
            self.hung += 1
            threading.Event().wait(30)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_call_of_the_board_that_hangs_stops_neither_beats_nor_asks(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    board = HangingBoard(kind)
    beats = itertools.count(1)

    def beat() -> ControlBeat:
        return ControlBeat(time=next(beats), run_id="r")

    control = Control(board, "r", beat, ask_seconds=0.01, beat_seconds=0.05, call_seconds=0.05)
    control.start(0.01)
    wait_until(lambda: board.hung > 2, "calls that hang")
    if kind == "read":
        seen = board.texts["r/beat"]
        wait_until(lambda: board.texts["r/beat"] != seen, "beats beside the hung reading")
    board.texts["r/ask"] = '{"stop":"asked"}'
    if kind == "write":
        wait_until(lambda: control.ask.stop == "asked", "an ask beside the hung beat")
    board.freed.set()
    wait_until(lambda: control.ask.stop == "asked" and "r/beat" in board.texts, "both again")
    control.close(5)
    assert capfd.readouterr().err.count("did not answer within") == 1


# ---------------------------------------------------------------- the rules

KINDS = [
    "config",
    "oom",
    "non_finite",
    "engine",
    "preempted",
    "timeout",
    "budget",
    "killed",
    "runner",
]


@given(st.sampled_from(KINDS), st.integers(-64, 255))
def test_nothing_that_was_told_to_end_is_tried_again(kind: Any, status: int) -> None:
    failed = RunFailed(kind=kind, message="m")
    assert not is_worth_retrying(failed, status, Verdict("budget", "r"))
    assert not is_worth_retrying(RunFinished(steps=1), status, None)
    assert not is_worth_retrying(failed, 2, None)
    if status != 2:
        assert is_worth_retrying(failed, status, None) == (
            kind in {"engine", "killed", "preempted", "runner"}
        )


def test_an_attempt_says_which_it_is_and_a_preemption_costs_no_retry() -> None:
    crashed = ContainerTime(started_at=1, seen_at=2, usd_per_hour="1", reason="boom")
    taken = ContainerTime(started_at=1, seen_at=2, usd_per_hour="1", taken_away=True)
    assert attempt_words((), 3) == ""
    assert attempt_words((crashed,), 1).startswith("attempt 2 (retry 1 of 1); ")
    assert attempt_words((crashed,), 1).endswith("before: boom")
    assert attempt_words((crashed, taken), 1).startswith("attempt 3 (no retry is used up); ")
    assert attempt_words((taken,), 0).endswith("before: it ended without a word")


@given(st.integers(-70, 255), st.lists(st.text(), max_size=3))
def test_every_status_has_a_last_word(status: int, stderr: list[str]) -> None:
    word = last_word(status, stderr, None)
    assert word.message
    assert word.detail == "\n".join(stderr)
    expected = "oom" if status in (-9, 137) else "killed" if status < 0 else None
    if expected and status != 1:
        assert word.kind == expected


@pytest.mark.parametrize(
    ("second", "ended_by"), [("", ""), ("\nbudget\n", "budget"), ("\nconfig", ""), ("\n", "")]
)
def test_a_stop_file_may_name_the_guard_rail_that_asks(
    second: str, ended_by: str, tmp_path: Path
) -> None:
    stop = StopRequest(Emitter(None, None), tmp_path)
    (tmp_path / "stop").write_text(f"why{second}")
    assert (stop.reason(), stop.ended_by) == ("why", ended_by)


def test_what_torchrun_says_of_its_worker_counts() -> None:
    said = ["Root Cause:", "  exitcode  : -9 (pid: 12)"]
    assert last_word(1, said, None).kind == "oom"
    assert last_word(1, ["exitcode  : 1 (pid: 12)"], None).kind == "engine"


@pytest.mark.parametrize(
    ("gpus", "devices", "processes"),
    [((), 0, 1), ((), 8, 1), (("L4",), 0, 1), (("L4",), 8, 1), (("H100:4", "A100:2"), 2, 2),
     (("H100:4", "A100:2"), 4, 4), (("H100:8",), 0, 1)],
)  # fmt: skip
def test_one_process_for_each_gpu_that_was_asked_for_and_is_there(
    gpus: tuple[str, ...], devices: int, processes: int
) -> None:
    assert process_count(gpus, devices) == processes
    command = engine_command(Path("c"), Path("f"), "r", processes)
    assert ("torch.distributed.run" in command) == (processes > 1)
    assert command[-2:] == ["--resume", "auto"]  # a retry goes on from what is on the volume


@pytest.mark.parametrize("run_id", ["../up", "..", ".", "", "/", "a/b"])
def test_a_run_id_that_is_a_path_is_refused(run_id: str, volume: Volume, board: Board) -> None:
    with pytest.raises(ValueError, match="does not name a folder"):
        train(CloudSpec(run_id=run_id, config=RunConfig()), volume, board)


def test_the_last_event_of_a_damaged_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert last_event(path) is None
    path.write_bytes(b"\xff")
    assert last_event(path) is None


def test_a_clock_that_is_set_back_makes_no_hour_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, began = steady_clock(), time.time()
    monkeypatch.setattr(time, "time", lambda: began - 7200)
    assert 0 <= clock() - began < 5
