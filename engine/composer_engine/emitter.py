"""The one writer of events: to stdout, which it owns, and to the run folder.

Every line is stamped here, and the laws of `composer_engine.protocol` are kept here: ``seq``
continues where the file ends, one terminal event closes an attempt, nothing comes after it.
"""

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from composer_engine.contract import EVENTS_FILE
from composer_engine.failures import complain, failure_of
from composer_engine.protocol import (
    TERMINAL,
    CheckpointSaved,
    Event,
    RunFailed,
    RunFinished,
    decode,
    encode,
)

_BACKLOG_BYTES = 1 << 20
_ABORT_SECONDS = 2.0
_DURABLE = (*TERMINAL, CheckpointSaved)  # on disk before the engine goes on
_UNSPOKEN = RunFailed(kind="killed", message="the previous attempt ended without a word")


class Earlier(NamedTuple):
    """What ``events.jsonl`` already holds when an attempt begins."""

    next_seq: int = 0
    attempts: int = 0
    ended: bool = True  # the last attempt wrote its terminal event
    torn: bool = False  # the last line has no newline


def read_earlier(path: Path) -> Earlier:
    """Scan the events of earlier attempts; a file that is not there holds none.

    Time and I/O are linear in the file, memory is one line.
    """
    next_seq, attempts, ended, line = 0, 0, True, b"\n"
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            event = decode(line)
            if event.seq is None:
                continue
            next_seq = max(next_seq, event.seq + 1)
            ended = isinstance(event, TERMINAL)
            attempts += ended
    return Earlier(next_seq, attempts + (not ended), ended, torn=not line.endswith(b"\n"))


def end_unspoken(
    stdout: int | None, folder: Path, failure: RunFailed, since_seq: int | None = None
) -> None:
    """Gives the last attempt its terminal event if it has none. For when its engine is gone.

    With ``since_seq``, the ``next_seq`` before that engine began, one that said nothing at all
    counts as an attempt, too.
    """
    earlier = read_earlier(folder / EVENTS_FILE)
    if not earlier.ended:
        Emitter(stdout, folder, unspoken=failure).close()
    elif earlier.next_seq == since_seq:
        with Emitter(stdout, folder) as emitter:
            emitter.emit(failure)


def take_stdout() -> int:
    """A private descriptor of stdout; from now on fd 1 is stderr, for every stray print."""
    sys.stdout.flush()
    private = os.dup(1)
    os.set_inheritable(private, False)
    os.dup2(2, 1)
    return private


class Emitter:
    """Stamps, numbers and writes events; as a context manager it guarantees the terminal one.

    ``attempt`` counts from 1. ``last`` is the terminal event once there is one. Any thread may
    call `emit`; `abort` may be called from a signal handler. Nothing here raises for a reader
    that went away or a disk that is full: what could not be stored is kept (1 MiB at most),
    tried again with the next event, and counted in ``lost`` when it had to be dropped.
    ``unspoken`` is said first, of an earlier attempt that left no terminal event.
    """

    def __init__(
        self,
        stdout: int | None,
        folder: Path | None,
        clock: Callable[[], float] = time.time,
        unspoken: RunFailed = _UNSPOKEN,
    ) -> None:
        self.last: RunFinished | RunFailed | None = None
        self.lost = 0
        self._stdout, self._clock = stdout, clock
        self._lock = threading.RLock()
        self._writer: int | None = None  # the thread that is inside `emit`
        self._aborting: RunFailed | None = None
        self._backlog = bytearray()
        self._disk_failed = False
        self._file: int | None = None
        earlier = Earlier()
        if folder is not None:
            earlier = read_earlier(folder / EVENTS_FILE)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(folder / EVENTS_FILE, flags, 0o644)
        self._seq = earlier.next_seq
        self.attempt = earlier.attempts + 1
        if earlier.torn:
            self._backlog += b"\n"
        if not earlier.ended:
            self._write(unspoken)

    def emit(self, event: Event) -> None:
        """Write one event, stamped. After a terminal event this does nothing."""
        with self._lock:
            if self.last is not None:
                return
            self._writer = threading.get_ident()
            if isinstance(event, TERMINAL):
                self.last = event
            try:
                self._write(event)
            finally:
                self._writer = None
        if self._aborting is not None:
            self.abort(self._aborting)

    def abort(self, failure: RunFailed) -> None:
        """Write the terminal event and end the process at once with status 1.

        Safe in a signal handler: one that interrupted `emit` itself waits for its line to end,
        but never longer than 2 s, which a reader that has stalled could otherwise ask for.
        """
        threading.Timer(_ABORT_SECONDS, os._exit, (1,)).start()
        if self._writer == threading.get_ident():
            self._aborting = failure
            return
        self._aborting = None
        self.emit(failure)
        os._exit(1)

    def _write(self, event: Event) -> None:
        line = encode(msgspec.structs.replace(event, seq=self._seq, time=self._clock()))
        self._seq += 1
        if self._file is not None:
            self._store(self._file, line)
            if isinstance(event, _DURABLE):
                with contextlib.suppress(OSError):
                    os.fsync(self._file)
        self._publish(line)

    def _store(self, file: int, line: bytes) -> None:
        """Append what is owed to the file: the backlog of a full disk, then this line."""
        if len(self._backlog) + len(line) > _BACKLOG_BYTES:
            self.lost += 1
        else:
            self._backlog += line
        try:
            while self._backlog:
                # A short write leaves the rest of its line at the head of the backlog, so that a
                # line may be late but is never torn by what follows it.
                del self._backlog[: os.write(file, self._backlog)]
        except OSError as error:
            if not self._disk_failed:
                complain(f"events.jsonl: {error.strerror}; trying again")
            self._disk_failed = True
        else:
            if self._disk_failed:
                complain(f"events.jsonl: written again, {self.lost} lost")
            self._disk_failed = False

    def _publish(self, line: bytes) -> None:
        rest = memoryview(line)
        while self._stdout is not None and rest:
            try:
                rest = rest[os.write(self._stdout, rest) :]
            except OSError as error:
                if error.errno == errno.EAGAIN:  # a reader that made its end non-blocking
                    time.sleep(0.001)
                    continue
                self._stdout = None
                if self._file is None:
                    # With nobody to tell, there is nothing to train for.
                    raise
                complain(f"stdout: {error.strerror}; events go on in the run folder")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """The terminal event, whatever happened; the error ends here. stderr has it in full."""
        if error is not None and self.last is None:
            failure = failure_of(error)
            if failure.kind == "engine":
                sys.excepthook(type(error), error, trace)
            self._end(failure)
        elif self.last is None:
            self._end(RunFailed(kind="engine", message="the run ended without a result"))
        self.close()
        return True

    def close(self) -> None:
        """Let go of the file. Says nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _end(self, failure: RunFailed) -> None:
        with contextlib.suppress(OSError):  # the reader of stdout may be what failed
            self.emit(failure)
