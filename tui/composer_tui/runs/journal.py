"""The two ends of an events file: what it begins and ends with, and how a last word is added."""

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from composer_engine.protocol import Event, Unrecognized, decode, encode
from composer_tui.runs.framer import Framer, Truncated
from composer_tui.runs.state import RunState, advance_all

MAX_NUMBER = 1 << 53  # a seq or step beyond it is damage, and every float holds those below
_BLOCK = 1 << 16
_END = 1 << 13
# The encoder writes these two fields first, so the start of a line tells its place.
_PLACE = re.compile(rb'\{"event":"[a-z_]{1,64}","seq":(\d{1,16})[,}]')


def read_line(line: bytes) -> Event | Unrecognized:
    """The event in one line from a `Framer`. Never raises.

    A line that is too long to read keeps its place in the sequence if it says it, since whoever
    wrote it counted it. A seq or a step out of range is damage.
    """
    event = decode(line)
    if isinstance(event, Unrecognized):
        place = _PLACE.match(line) if isinstance(line, Truncated) else None
        if place:
            return msgspec.structs.replace(event, reason="too long", seq=int(place[1]))
        step = 0
    else:
        step = getattr(event, "step", 0) or 0
    if (event.seq or 0) < MAX_NUMBER and 0 <= step < MAX_NUMBER:
        return event
    text = line[:4096].decode("utf-8", "replace")
    seq = event.seq if (event.seq or 0) < MAX_NUMBER else None
    return Unrecognized(text=text, reason="a number out of range", seq=seq)


def _open(path: Path) -> BinaryIO:
    """Raises OSError, also for what is no file: reading a pipe would wait for its writer."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a file", str(path))
    return os.fdopen(fd, "rb")


def read_head(path: Path, limit: int = _BLOCK) -> list[Event | Unrecognized]:
    """The whole lines of the first ``limit`` bytes. Raises OSError."""
    with _open(path) as file:
        return [read_line(line) for line in Framer().feed(file.read(limit)) if line]


def read_tail(path: Path, limit: int = _BLOCK) -> list[Event | Unrecognized]:
    """The whole lines of the last ``limit`` bytes. Raises OSError.

    A last line that is not finished is no line.
    """
    with _open(path) as file:
        start = max(0, file.seek(0, os.SEEK_END) - limit)
        file.seek(max(0, start - 1))
        data = file.read()
    if start:
        _, _, data = data.partition(b"\n")
    return [read_line(line) for line in Framer().feed(data) if line]


def read_end(path: Path) -> RunState:
    """The state that the newest events alone tell; a fresh one when there are none.

    It knows the newest ``seq`` (``next_seq`` is the one to write) and whether the run has ended.
    Reads as far back as the newest numbered event. Raises OSError, but not for a missing file.
    """
    limit = _END
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return RunState()
    while True:
        state = advance_all(RunState(), read_tail(path, limit))
        if state.next_seq or limit >= size:
            return state
        limit *= 8


def append(path: Path, events: Iterable[Event]) -> None:
    """Adds events to the file in one write; a line that a dead writer left unfinished ends first.

    The caller holds the folder's lock, and knows that no engine writes. Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + b"".join(map(encode, events))
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
