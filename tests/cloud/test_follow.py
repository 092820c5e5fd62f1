"""A run's folder holds all that its log and its volume tell, each once, whatever is cut."""

import asyncio
import errno
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from composer_engine.container import Crashed
from composer_engine.protocol import (
    Event,
    Logged,
    PhaseChanged,
    RunFailed,
    RunFinished,
    StepCompleted,
)
from composer_tui.cloud import follow
from composer_tui.cloud.ledger import CloudRef, read_ref, write_ref
from composer_tui.cloud.notebook import Notebook
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import (
    events,
    follow_to_end,
    follower,
    lawful_events,
    on_volume,
    small_config,
    talking_run,
)
from tests.rehearsal.rehearsal import Rehearsal, rehearsal, wait_until


def step_numbers(found: list[Event]) -> list[int]:
    return [event.step for event in found if isinstance(event, StepCompleted)]


def size(folder: RunFolder) -> int:
    return folder.events_path.stat().st_size if folder.events_path.exists() else 0


def has_grown(folder: RunFolder, seen: int) -> bool:
    return size(folder) > seen


def strays(folder: RunFolder) -> list[str]:
    return re.findall(r"^stray \S+$", folder.log_path.read_text(), re.MULTILINE)


def test_a_run_is_followed_to_its_end_and_leaves_nothing(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=20)
    follow_to_end(folder, modal_plane)
    found = lawful_events(folder)
    assert step_numbers(found) == list(range(1, 21))
    assert isinstance(found[-1], RunFinished)
    assert next(e.phase for e in found if isinstance(e, PhaseChanged)) == "queued"
    assert strays(folder) == [f"stray 1-{step}" for step in (5, 10, 15, 20)]
    ref = read_ref(folder)
    assert ref.ended
    assert modal_plane.tasks(ref.app_id) == []


def test_what_the_log_never_told_comes_from_the_volume(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=12, untold=[3, 4, 12])
    follow_to_end(folder, modal_plane)
    assert step_numbers(lawful_events(folder)) == list(range(1, 13))


def test_a_second_follower_leaves_at_once(store: RunStore, modal_plane: Rehearsal) -> None:
    folder = talking_run(store, modal_plane, steps=100, pause=0.02)
    first = follower(folder, modal_plane)
    wait_until(lambda: len(events(folder)) > 3, "events")
    begun = time.monotonic()
    follow_to_end(folder, modal_plane)
    assert first.poll() is None
    assert time.monotonic() - begun < 5.0
    assert first.wait(30) == 0
    assert first.stderr is not None
    first.stderr.close()
    assert step_numbers(lawful_events(folder)) == list(range(1, 101))


def assert_whole(folder: RunFolder) -> None:
    """Each step of its one attempt is there once, and each line of its log."""
    found = lawful_events(folder)
    last = found[-1]
    assert isinstance(last, RunFinished)
    assert step_numbers(found) == list(range(1, last.steps + 1))
    assert strays(folder) == [f"stray 1-{step}" for step in range(5, last.steps + 1, 5)]


def test_a_follower_that_is_killed_again_and_again_loses_and_doubles_nothing(
    store: RunStore, modal_plane: Rehearsal, tmp_path: Path
) -> None:
    goes_on = tmp_path / "goes on"
    goes_on.touch()
    folder = talking_run(store, modal_plane, **{"steps": 50, "while": str(goes_on)})
    dice = random.Random(7)
    for _ in range(5):
        seen = size(folder)
        process = follower(folder, modal_plane)
        wait_until(partial(has_grown, folder, seen), "events")
        time.sleep(dice.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    goes_on.unlink()
    follow_to_end(folder, modal_plane)
    assert_whole(folder)


def test_a_new_container_goes_on_where_the_volume_ended(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=30, commit_at=10, wait_at=20)
    process = follower(folder, modal_plane)
    wait_until(lambda: 20 in step_numbers(events(folder)), "the first attempt")
    (task,) = modal_plane.tasks(read_ref(folder).app_id)
    # A stop of a container, and not of its app: Modal gives what it did to another one.
    modal_plane.modal("container", "stop", task.task_id, "--yes")
    assert process.wait(60) == 0
    assert process.stderr is not None
    process.stderr.close()
    found = lawful_events(folder)
    times = Counter(event.time for event in found)
    assert all(times[event.time] == 1 for event in on_volume(modal_plane, folder))
    steps = step_numbers(found)
    assert steps == [*range(1, 21), *range(1, 31)]
    assert any(isinstance(e, Logged) and "goes on" in e.message for e in found)
    assert sum(isinstance(e, RunFailed) for e in found) >= 1


@pytest.mark.parametrize(
    ("plan", "kind", "words"),
    [
        ({"raise_at": 5}, "oom", ""),
        ({"timeout": 2, "pause": 0.5}, "timeout", "time was up"),
        ({"exit_at": 5}, "engine", ""),
    ],
    ids=["it raises", "its time is up", "it exits"],
)
def test_a_run_without_a_last_word_gets_one(
    store: RunStore, modal_plane: Rehearsal, plan: dict[str, float], kind: str, words: str
) -> None:
    folder = talking_run(store, modal_plane, steps=20, **plan)
    follow_to_end(folder, modal_plane)
    last = lawful_events(folder)[-1]
    assert isinstance(last, RunFailed)
    assert (last.kind, words in last.message) == (kind, True), last
    assert read_ref(folder).ended


def test_an_app_that_is_stopped_is_said_to_be_killed(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=500, pause=0.05)
    process = follower(folder, modal_plane)
    wait_until(lambda: len(events(folder)) > 5, "events")
    modal_plane.modal("app", "stop", read_ref(folder).app_id, "--yes")
    assert process.wait(60) == 0
    assert process.stderr is not None
    process.stderr.close()
    last = lawful_events(folder)[-1]
    assert isinstance(last, RunFailed)
    assert last.kind == "killed"


def test_a_run_whose_call_is_not_known_is_found_and_followed(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=40, pause=0.02)
    ref = read_ref(folder)
    write_ref(folder, type(ref)(app_name=ref.app_name, connection=ref.connection))
    (folder.path / ".launch").touch()  # somebody had begun to launch it
    follow_to_end(folder, modal_plane)
    assert step_numbers(lawful_events(folder)) == list(range(1, 41))
    assert read_ref(folder).call_id == ref.call_id


def test_a_clock_that_is_an_hour_ahead_hides_nothing(store: RunStore, tmp_path: Path) -> None:
    with rehearsal(tmp_path / "ahead", "skew=3600", detached_linger_seconds=0.3) as plane:
        folder = talking_run(store, plane, steps=10)
        follow_to_end(folder, plane)
        assert step_numbers(lawful_events(folder)) == list(range(1, 11))


class Wire:
    """What lies between a client and Modal, and can be cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self, *, refuse: bool) -> int:
        """Ends every connection, and may refuse new ones for a moment; how many there were."""
        if refuse:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            cut, self._open = self._open, set()
        for end in cut:
            with suppress(OSError):  # its other end was quicker
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        if refuse:
            time.sleep(0.01)
            self._listener = self._listen(self.port)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return len(cut) // 2

    def is_open(self) -> bool:
        return bool(self._open)

    def close(self) -> None:
        self._listener.close()

    @staticmethod
    def _listen(port: int) -> socket.socket:
        return socket.create_server(("127.0.0.1", port), reuse_port=False)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                ours, _ = listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            with self._lock:
                self._open |= {ours, theirs}
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def wire(plane: Rehearsal) -> Iterator[Wire]:
    lies_between = Wire(int(plane.connection.url.rpartition(":")[2]))
    try:
        yield lies_between
    finally:
        lies_between.close()


def test_each_step_comes_once_through_a_hundred_cuts(
    store: RunStore, modal_plane: Rehearsal, tmp_path: Path
) -> None:
    goes_on = tmp_path / "goes on"
    goes_on.touch()
    plan = {"steps": 50, "while": str(goes_on), "pause": 0.04}
    folder = talking_run(store, modal_plane, **plan)
    cuts = 0
    with wire(modal_plane) as line:
        url = f"http://127.0.0.1:{line.port}"
        process = follower(folder, modal_plane, MODAL_SERVER_URL=url)
        dice = random.Random(11)
        while cuts < 100:
            if cuts % 10 == 0:  # the others come while it is still finding its way back
                seen = size(folder)
                wait_until(partial(has_grown, folder, seen), f"events after {cuts} cuts")
            wait_until(line.is_open, f"a connection after {cuts} cuts")
            time.sleep(dice.random() * 0.03)
            assert process.poll() is None
            cuts += line.cut(refuse=cuts % 5 == 0) > 0
        goes_on.unlink()
        assert process.wait(60) == 0
        assert process.stderr is not None
        process.stderr.close()
    assert_whole(folder)
    assert "the way to Modal lost" in folder.log_path.read_text()


def test_this_machines_own_trouble_is_not_the_end_of_a_run(store: RunStore) -> None:
    """A call that cannot be polled for want of a descriptor has not failed: its app must live."""
    folder = store.create(small_config(), "modal", 1.0)
    ref = CloudRef(app_name=folder.run_id, app_id="ap-1", call_id="fc-1")
    follower = follow._Follower(folder, ref, Notebook(folder), lambda: False)
    trouble = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert asyncio.run(follower._outcome(trouble)) is None
    assert asyncio.run(follower._outcome(Crashed("status 1"))) is not None
