"""What a follower of a run writes: its events, its log, and how far it has come.

Three files of the run's folder: events.jsonl and log.txt, which only grow, and follow.json, which
says whose the events are and which lines of the log have been written. A follower may be killed
between any two writes: the next one finds what is written, and goes on without a gap or a double.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from composer_engine.protocol import Event, Unrecognized
from composer_tui.cloud.merge import Merge, MergeRecord
from composer_tui.cloud.trouble import Trouble
from composer_tui.runs.folder import DamagedFolder, RunFolder, read_json, write_whole
from composer_tui.runs.framer import Framer
from composer_tui.runs.journal import append, read_line
from composer_tui.runs.state import RunState, advance

NOTE_PREFIX = "composer-tui: "  # in log.txt, before what a follower says itself
_KEY_BYTES = 8
_LOCK_TRIES, _LOCK_PAUSE_SECONDS = 5, 0.02
_READ_BYTES = 1 << 18
_LONGEST_TAIL_BYTES = 1 << 24  # of log.txt, behind the last checkpoint


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What Modal kept of a container's output in one piece; ``time`` is unix seconds."""

    time: float
    source: str
    container: str
    text: str

    @property
    def key(self) -> int:
        """What it is known by: the same piece, told again, has the same."""
        said = f"{self.time!r}\0{self.source}\0{self.container}\0{self.text}"
        digest = hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=_KEY_BYTES)
        return int.from_bytes(digest.digest(), "little", signed=True)


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a line whose end has not come."""

    container: str
    source: str
    text: str


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """RUN/follow.json. ``log_time`` is the newest chunk's; ``recent`` are keys of those around it.

    ``log_bytes`` is how long log.txt was when all that ``recent`` names was in it.
    """

    merge: MergeRecord = MergeRecord()
    log_time: float = 0.0
    log_bytes: int = 0
    recent: tuple[int, ...] = ()
    begun: tuple[Begun, ...] = ()


class Notebook:
    """The files of one run, held by one follower at a time."""

    def __init__(self, folder: RunFolder) -> None:
        """Reads what is there. Raises OSError."""
        self.folder = folder
        self.state = RunState()
        self.position = _read_position(folder)
        self.merge = Merge(self.position.merge, self._read_events())
        self._again = _lines_behind(folder.log_path, self.position.log_bytes)
        self._way = Trouble("the way to Modal")

    def write_events(self, events: Sequence[Event]) -> None:
        """What the merge let through: first whose it is, then the events. Raises OSError."""
        if not events:
            return
        if self.merge.record != self.position.merge:
            self._save(msgspec.structs.replace(self.position, merge=self.merge.record))
        append(self.folder.events_path, events)
        for event in events:
            self.state = advance(self.state, event)

    def say(self, event: Event) -> None:
        """An event of the follower's own, as of now. Raises OSError."""
        self.write_events([self.merge.own(event, time.time())])

    def write_lines(self, lines: Iterable[str]) -> None:
        """Lines for log.txt; those that a follower before us wrote are left out. Raises OSError."""
        new = [line for line in lines if not self._was_written(line)]
        if not new:
            return
        data = "".join(f"{line}\n" for line in new).encode("utf-8", "replace")
        with self.folder.log_path.open("ab") as file:
            file.write(data)

    def note(self, line: str) -> None:
        """A line of the follower's own for log.txt. Raises OSError."""
        with self.folder.log_path.open("a", encoding="utf-8") as file:
            file.write(f"{NOTE_PREFIX}{line}\n")

    def lost(self, part: str, why: str) -> None:
        """Something cannot be had from Modal: all that tries speaks with one voice.

        Raises OSError.
        """
        self._note_if(self._way.lost(why, time.monotonic(), part))

    def back(self, part: str = "") -> None:
        """That part can be had again; without a name all of it. Raises OSError."""
        now = time.monotonic()
        self._note_if(self._way.back(now, part) if part else self._way.over(now))

    def remind(self) -> None:
        """Says each minute that the way is still lost, however long a try may take.

        Raises OSError.
        """
        self._note_if(self._way.remind(time.monotonic()))

    def _note_if(self, line: str | None) -> None:
        if line is not None:
            self.note(line)

    def mark_current(self, moment: float) -> None:
        """All that the run had done by then (unix seconds) is written. Raises OSError."""
        path = _current_path(self.folder)
        path.touch()
        os.utime(path, (moment, moment))

    def save_position(self, log_time: float, recent: Iterable[int], begun: Iterable[Begun]) -> None:
        """All that came until now is written. Raises OSError."""
        self._again.clear()
        log = self.folder.log_path
        self._save(
            Position(
                merge=self.merge.record,
                log_time=log_time,
                log_bytes=log.stat().st_size if log.exists() else 0,
                recent=tuple(recent),
                begun=tuple(begun),
            )
        )

    def _was_written(self, line: str) -> bool:
        if self._again[line] <= 0:
            return False
        self._again[line] -= 1
        return True

    def _save(self, position: Position) -> None:
        write_whole(_position_path(self.folder), msgspec.json.encode(position))
        self.position = position

    def _read_events(self) -> Iterator[Event | Unrecognized]:
        for line in _all_lines(self.folder.events_path):
            event = read_line(line)
            self.state = advance(self.state, event)
            yield event


@contextlib.contextmanager
def only_follower(folder: RunFolder) -> Iterator[bool]:
    """Held by one follower of a run at a time; yields False when there is one. Raises OSError."""
    with _held(folder.path / ".follow") as ours:
        yield ours


def is_followed(folder: RunFolder) -> bool:
    """Somebody follows the run at this moment. Cheap."""
    return is_held(folder.path / ".follow")


def current_as_of(folder: RunFolder) -> float | None:
    """Up to when (unix seconds) the folder has all of the run; None when no follower has said."""
    try:
        return _current_path(folder).stat().st_mtime
    except OSError:
        return None


def is_held(path: Path) -> bool:
    """Somebody has that lock at this moment. Cheap."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield take_lock(fd)
    finally:
        os.close(fd)


def take_lock(fd: int) -> bool:
    """Whether the lock is ours. Who merely looks whether it is held holds it for a moment, too."""
    for _ in range(_LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOCK_PAUSE_SECONDS)
    return False


def _current_path(folder: RunFolder) -> Path:
    return folder.path / ".current"


def _position_path(folder: RunFolder) -> Path:
    return folder.path / "follow.json"


def _read_position(folder: RunFolder) -> Position:
    """The beginning, when there is none or it is damaged: everything is then taken again."""
    try:
        return read_json(_position_path(folder), Position)
    except DamagedFolder:
        return Position()


def _all_lines(path: Path) -> Iterator[bytes]:
    """Every line, the last one also when it has no end."""
    framer = Framer()
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                yield from filter(None, framer.feed(data))
    except FileNotFoundError:
        return
    last = framer.flush()
    if last:
        yield last


def _lines_behind(path: Path, start: int) -> Counter[str]:
    """The whole lines behind ``start``. A line that was torn by a kill is cut off."""
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(start, size))
            data = file.read(_LONGEST_TAIL_BYTES)
            whole, newline, torn = data.rpartition(b"\n")
            if torn:
                file.truncate(size - len(torn))
            return Counter((whole + newline).decode("utf-8", "replace").split("\n")[:-1])
    except FileNotFoundError:
        return Counter()
