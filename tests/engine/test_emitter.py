"""The one writer keeps the protocol's laws, whatever happens around it."""

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from composer_engine.config import ConfigError, ConfigProblem
from composer_engine.contract import EVENTS_FILE
from composer_engine.emitter import Emitter, end_unspoken, read_earlier
from composer_engine.failures import DataError, NonFiniteError, SetupError, failure_of
from composer_engine.protocol import (
    Logged,
    RunFailed,
    RunFinished,
    decode,
    encode,
    violations,
)
from tests.engine.engine_process import read_events

HELLO = Logged(level="info", message="hello")
DONE = RunFailed(kind="engine", message="over")


def emitter(folder: Path | None, stdout: int | None = None) -> Emitter:
    ticks = itertools.count(1000.0)
    return Emitter(stdout, folder, clock=lambda: next(ticks))


def test_events_are_numbered_and_stamped_in_order(tmp_path: Path) -> None:
    with emitter(tmp_path) as events:
        events.emit(HELLO)
        events.emit(HELLO)
        events.emit(DONE)
    written = read_events(tmp_path / EVENTS_FILE)
    assert [(event.seq, event.time) for event in written] == [(0, 1000), (1, 1001), (2, 1002)]
    assert violations(written) == []


def test_nothing_comes_after_the_terminal_event(tmp_path: Path) -> None:
    with emitter(tmp_path) as events:
        events.emit(DONE)
        events.emit(HELLO)
        events.emit(DONE)
    assert len(read_events(tmp_path / EVENTS_FILE)) == 1


def test_a_second_attempt_continues_the_sequence(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        with emitter(tmp_path) as events:
            assert events.attempt == attempt
            events.emit(HELLO)
            events.emit(DONE)
    written = read_events(tmp_path / EVENTS_FILE)
    assert [event.seq for event in written] == [*range(6)]
    assert violations(written) == []


def test_a_torn_last_line_is_ended_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_FILE
    path.write_bytes(encode(RunFailed(kind="engine", message="", seq=0)) + b'{"event":"lo')
    with emitter(tmp_path) as events:
        events.emit(DONE)
    first, torn, last = path.read_bytes().splitlines()
    assert torn == b'{"event":"lo'
    assert isinstance(decode(last), RunFailed)
    assert decode(last).seq == 1
    assert decode(first).seq == 0


def test_a_word_for_an_engine_that_is_gone_is_said_once_and_only_if_it_is_owed(
    tmp_path: Path,
) -> None:
    path, gone = tmp_path / EVENTS_FILE, RunFailed(kind="oom", message="gone")
    path.write_bytes(encode(Logged(level="info", message="", seq=0)))
    end_unspoken(None, tmp_path, gone)
    end_unspoken(None, tmp_path, gone)
    assert [type(event) for event in read_events(path)] == [Logged, RunFailed]
    assert read_events(path)[-1].seq == 1
    end_unspoken(None, tmp_path, gone, since_seq=1)  # it did speak
    assert len(read_events(path)) == 2
    end_unspoken(None, tmp_path, gone, since_seq=2)  # it began, and died before its first word
    assert [event.seq for event in read_events(path)] == [0, 1, 2]
    assert violations(read_events(path)) == []


def test_an_attempt_that_left_no_last_word_gets_one(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_bytes(encode(Logged(level="info", message="", seq=0)))
    with emitter(tmp_path) as events:
        assert events.attempt == 2
        events.emit(DONE)
    _, mourned, last = read_events(tmp_path / EVENTS_FILE)
    assert isinstance(mourned, RunFailed)
    assert mourned.kind == "killed"
    assert last.seq == 2


def test_lines_that_are_no_events_do_not_disturb_the_count(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_FILE
    path.write_bytes(b"noise\n" + encode(RunFailed(kind="engine", message="", seq=7)) + b"\xff\n\n")
    assert read_earlier(path) == (8, 1, True, False)


def test_threads_share_it_without_a_gap_or_a_torn_line(tmp_path: Path) -> None:
    events = emitter(tmp_path)

    def talk() -> None:
        for _ in range(300):
            events.emit(HELLO)

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events.emit(DONE)
    written = read_events(tmp_path / EVENTS_FILE)
    assert [event.seq for event in written] == [*range(1201)]


def test_a_closed_stdout_is_survived_with_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with emitter(tmp_path, write) as events:
        events.emit(HELLO)
        events.emit(HELLO)
        events.emit(DONE)
    os.close(write)
    assert len(read_events(tmp_path / EVENTS_FILE)) == 3
    assert capsys.readouterr().err.count("Broken pipe") == 1


def test_a_closed_stdout_without_a_folder_ends_the_run() -> None:
    read, write = os.pipe()
    os.close(read)
    with emitter(None, write) as events:
        events.emit(HELLO)
        pytest.fail("there is nobody left to tell")
    os.close(write)
    assert isinstance(events.last, RunFailed)


# A limit on a file's size fails as a full disk does: short writes first, then errors. It holds for
# the whole process, so it needs one of its own.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from composer_engine.emitter import Emitter
from composer_engine.protocol import Logged, RunFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
emitter = Emitter(None, Path(sys.argv[1]))
"""


def python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_a_full_disk_delays_events_and_loses_none(tmp_path: Path) -> None:
    program = """
limit(250)
for n in range(10):
    emitter.emit(Logged(level="info", message=f"hello {n}"))
print(Path(sys.argv[1], "events.jsonl").stat().st_size)
limit(resource.RLIM_INFINITY)
emitter.emit(Logged(level="info", message="again"))
emitter.emit(RunFailed(kind="engine", message="over"))
"""
    done = python(FULL_DISK + program, tmp_path)
    written = read_events(tmp_path / EVENTS_FILE)
    assert done.stdout == "250\n"
    assert len(written) == 12
    assert violations(written) == []
    assert done.stderr.count("File too large") == 1
    assert "written again, 0 lost" in done.stderr


def test_a_disk_that_stays_full_counts_what_is_lost(tmp_path: Path) -> None:
    program = """
limit(0)
for _ in range(30):
    emitter.emit(Logged(level="info", message="x" * 100_000))
limit(resource.RLIM_INFINITY)
print(emitter.lost)
emitter.emit(RunFailed(kind="engine", message="over"))
"""
    done = python(FULL_DISK + program, tmp_path)
    written = read_events(tmp_path / EVENTS_FILE)
    assert done.stdout == "20\n"
    assert [event.seq for event in written] == [*range(10), 30]


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        (ConfigError([ConfigProblem("a.b", "is odd", "x.toml:3")]), "config", "x.toml:3: a.b"),
        (DataError(["rows:1: answer: missing"]), "config", "rows:1"),
        (SetupError("no model"), "config", "no model"),
        (NonFiniteError("NaN"), "non_finite", "NaN"),
        (MemoryError(), "oom", "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "oom", "Tried"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom", "Allocator"),
        (KeyboardInterrupt(), "killed", "interrupted"),
        (SystemExit(3), "engine", "SystemExit: 3"),
        (ZeroDivisionError("division by zero"), "engine", "ZeroDivisionError: division by zero"),
    ],
)
def test_every_failure_has_a_kind(error: BaseException, kind: str, word: str) -> None:
    with emitter(None) as events:
        raise error
    assert isinstance(events.last, RunFailed)
    assert events.last.kind == kind
    assert word in events.last.message


def test_an_engine_failure_brings_its_traceback_and_oom_says_what_to_do() -> None:
    def deep() -> None:
        raise ValueError("no")

    with emitter(None) as events:
        deep()
    assert isinstance(events.last, RunFailed)
    assert "in deep" in events.last.detail
    assert "optimizer.micro_batches" in failure_of(MemoryError()).hint


def test_many_problems_are_listed_up_to_twenty_and_counted() -> None:
    failure = failure_of(DataError([f"rows:{n}: bad" for n in range(1, 26)]))
    assert failure.message == "25 problems in the data:"
    assert failure.detail.splitlines()[0] == "rows:1: bad"
    assert failure.detail.splitlines()[20] == "... and 5 more"
    assert len(failure.detail.splitlines()) == 21


def test_leaving_without_a_result_is_a_failure(tmp_path: Path) -> None:
    with emitter(tmp_path):
        pass
    (last,) = read_events(tmp_path / EVENTS_FILE)
    assert isinstance(last, RunFailed)


def test_a_result_is_not_overwritten_by_a_late_error() -> None:
    with emitter(None) as events:
        events.emit(RunFinished(steps=1))
        raise ValueError("too late")
    assert isinstance(events.last, RunFinished)


def test_an_abort_that_interrupts_a_write_waits_for_its_line(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from composer_engine import emitter as module
from composer_engine.protocol import Logged, RunFailed
emitter = module.Emitter(None, Path({str(tmp_path)!r}))
write = os.write
def interrupted(*args):  # what a signal handler does when it comes in the middle of an emit
    module.os.write = write
    emitter.abort(RunFailed(kind="killed", message="twice"))
    return write(*args)
module.os.write = interrupted
emitter.emit(Logged(level="info", message="whole"))
os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 1
    written = read_events(tmp_path / EVENTS_FILE)
    assert [type(event) for event in written] == [Logged, RunFailed]
    assert [event.seq for event in written] == [0, 1]


def test_a_started_run_is_not_confused_by_a_message_that_looks_like_an_event(
    tmp_path: Path,
) -> None:
    with emitter(tmp_path) as events:
        events.emit(Logged(level="info", message='{"event":"run_failed","seq":99}\n'))
        events.emit(DONE)
    assert read_earlier(tmp_path / EVENTS_FILE) == (2, 1, True, False)
