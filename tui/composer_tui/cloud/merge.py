"""One lawful stream out of what a log and a volume tell of a run: pure, no clock, no I/O.

An engine numbers its events, but a new attempt begins where the *volume's* copy ends, so that its
numbers may begin below what the log has shown already. An event is therefore known by its number
and its time together, and the local file has numbers of its own, given here.

The volume's copy is one history, gapless and in order; a log is one *lane* a container, with holes
where lines were lost. Events are let through in order: what comes too early is held back until the
volume, or the end of its container, shows that nothing is due before it. So the local file never
has a hole, and every event that either source has is in it once. One that comes after its place
was given up, which takes a log that is minutes late, is told as a line for people.

Whatever is let through is told to the caller before it is written: `Merge.record`, kept in a file,
and the local events are all that it takes to go on after a crash.
"""

import math
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from composer_engine.protocol import (
    TERMINAL,
    Event,
    Logged,
    RunFailed,
    RunStarted,
    Unrecognized,
    encode,
)

MOST_MISSING = 100_000  # a number further ahead than that is not this run's
_INTERRUPTED = RunFailed(
    kind="preempted",
    message="the container went away without a word, and another attempt begins",
    hint="it goes on from the last checkpoint, or from step 1 where there is none",
)


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbours: the engine's ``remote_first`` is ``local_first`` here, and so on.

    They end before ``local_stop`` (None: at the end of the file). ``lane`` is the container whose
    log they came from, "" when only the volume told of them. A ``late`` one is told as log lines.
    """

    remote_first: int
    local_first: int
    local_stop: int | None = None
    lane: str = ""
    late: bool = False


class MergeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which local events are whose.

    ``heard`` is the time of the oldest event of each lane, ``over`` are the lanes that ended.
    """

    segments: tuple[Segment, ...] = ()
    heard: dict[str, float] = {}
    over: tuple[str, ...] = ()


class _Key(NamedTuple):
    """What an engine's event is known by. The order of keys is that of time."""

    time: float
    seq: int


class _Piece:
    """A segment and the times of its events; NaN where the local file has none."""

    __slots__ = ("lane", "late", "local_first", "local_stop", "remote_first", "times")

    def __init__(self, remote_first: int, local_first: int, lane: str, *, late: bool) -> None:
        self.remote_first, self.local_first = remote_first, local_first
        self.local_stop: int | None = None
        self.lane, self.late = lane, late
        self.times: array[float] = array("d")

    def holds(self, key: _Key) -> bool:
        place = key.seq - self.remote_first
        return 0 <= place < len(self.times) and self.times[place] == key.time

    def goes_on(self, seq: int, lane: str, *, late: bool) -> bool:
        """An event of that number would be its next."""
        return (
            self.local_stop is None
            and (self.lane, self.late) == (lane, late)
            and self.remote_first + len(self.times) == seq
        )

    def segment(self) -> Segment:
        return Segment(
            remote_first=self.remote_first,
            local_first=self.local_first,
            local_stop=self.local_stop,
            lane=self.lane,
            late=self.late,
        )


class _Held:
    """Events of one lane that wait, by their number and then by their time."""

    __slots__ = ("_by_seq",)

    def __init__(self) -> None:
        self._by_seq: dict[int, dict[float, Event]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_seq.values()))

    def __bool__(self) -> bool:
        return bool(self._by_seq)

    def __contains__(self, key: _Key) -> bool:
        return key.time in self._by_seq.get(key.seq, ())

    def in_time(self) -> list[_Key]:
        """All of them, the oldest first."""
        return sorted(_Key(t, seq) for seq, same in self._by_seq.items() for t in same)

    def oldest(self) -> float:
        return min(time for same in self._by_seq.values() for time in same)

    def lowest(self) -> int:
        return min(self._by_seq)

    def at(self, seq: int) -> _Key | None:
        """The oldest of that number."""
        same = self._by_seq.get(seq)
        return _Key(min(same), seq) if same else None

    def add(self, event: Event) -> None:
        self._by_seq.setdefault(event.seq, {})[event.time] = event

    def pop(self, key: _Key) -> Event:
        same = self._by_seq[key.seq]
        event = same.pop(key.time)
        if not same:
            del self._by_seq[key.seq]
        return event


class Merge:
    """Takes what comes, in any order and any number of times; lets through what is due.

    ``next_seq`` is the local number to be given next. ``strange`` counts events that were left out
    because their number is absurd.
    """

    def __init__(
        self,
        record: MergeRecord | None = None,
        local: Iterable[Event | Unrecognized] = (),
    ) -> None:
        """Goes on from what was recorded and written; without either it begins."""
        self.next_seq = 0
        self.strange = 0
        self._pieces: list[_Piece] = []
        self._held: dict[str, _Held] = {}
        self._over: set[str] = set()
        self._lane = ""
        self._due = 0  # the engine's number that comes next
        self._newest = -math.inf  # time of the newest event of any engine
        self._heard: dict[str, float] = {}  # by lane, the time of its oldest event
        self._cut = False  # what comes next is another attempt, and not what was due
        self._open = False  # an attempt has begun and not ended
        self._started = False  # and has said what it runs on
        self._out: list[Event] = []
        self._restore(record or MergeRecord(), local)

    @property
    def record(self) -> MergeRecord:
        """To be on disk before what was let through is."""
        return MergeRecord(
            segments=tuple(piece.segment() for piece in self._pieces),
            heard=dict(self._heard),
            over=tuple(sorted(self._over)),
        )

    @property
    def lane(self) -> str:
        """The container whose attempt goes on; "" when that is not known."""
        return self._lane

    @property
    def newest(self) -> float:
        """The time of the engines' newest event, unix seconds; 0 before there is one."""
        return max(0.0, self._newest)

    @property
    def is_started(self) -> bool:
        """An attempt has said what it runs on, and has not ended."""
        return self._started

    @property
    def held(self) -> int:
        """Events that wait for others; `take_volume`, or in the end `give_up`, frees them."""
        return sum(map(len, self._held.values()))

    @property
    def has_new_lane(self) -> bool:
        """A container is heard whose place only the volume can tell."""
        return any(held and lane != self._lane for lane, held in self._held.items())

    def take(self, lane: str, events: Iterable[Event]) -> list[Event]:
        """What a container's log tells; what may be written now, in order."""
        for event in events:
            self._hear(lane, event)
            if not self._pieces and self._held:
                self._lane = min(self._held, key=lambda lane: self._heard[lane])
            self._release_due()
        return self._let_through()

    def take_volume(self, events: Iterable[Event]) -> list[Event]:
        """The volume's whole copy, read after everything that `take` was given had been heard."""
        end = 0
        for event in events:
            self._place(event)
            end = event.seq + 1
        self._release_due()
        for lane in self._new_lanes():
            self._change(lane, end)
        self._take_restart(end)
        return self._let_through()

    def give_up(self) -> list[Event]:
        """Whatever is missing is lost: all that is held, in order."""
        self._drain(self._lane)
        for lane in self._new_lanes():
            self._change(lane, self._held[lane].lowest())
            self._drain(lane)
        return self._let_through()

    def own(self, event: Event, now: float) -> Event:
        """The follower's own event, numbered. ``now`` is unix seconds."""
        self._say_own(event, now)
        (stamped,) = self._let_through()
        return stamped

    # What comes in.

    def _hear(self, lane: str, event: Event) -> None:
        key = _Key(event.time, event.seq)
        self._heard[lane] = min(key.time, self._heard.get(lane, math.inf))
        if self._is_known(key):
            if not self._lane and self._pieces[-1].holds(key):
                self._lane = lane  # it is the container that the volume told of
            return
        if lane in self._over or (lane == self._lane and self._is_past(key)):
            self._tell_late(event)
        elif key.seq > self._due + MOST_MISSING:
            self.strange += 1
        else:
            self._held.setdefault(lane, _Held()).add(event)

    def _place(self, event: Event) -> None:
        """One event of the volume's copy; what comes before it there has been placed."""
        key = _Key(event.time, event.seq)
        for held in self._held.values():
            if key in held:
                held.pop(key)
        if self._is_known(key):
            return
        self._release_due(before=key.time)
        # What is still held and is older belongs to an attempt that the volume never kept.
        self._drain(self._lane, before=key.time)
        for lane in self._new_lanes():
            if self._heard[lane] < key.time and self._held[lane].oldest() < key.time:
                self._change(lane, key.seq)
                self._drain(lane, before=key.time)
        if key.seq == self._due:
            self._release(event, self._lane)
        elif key.seq < self._due and key.time > self._newest:
            self._leave(self._lane)
            self._lane, self._due, self._cut = "", key.seq, True
            self._release(event, "")
        elif key.time > self._newest and key.seq <= self._due + MOST_MISSING:
            self._say_lost(key.seq - self._due, key.time)  # the copy itself has a hole
            self._release(event, self._lane)
        else:
            self._tell_late(event)

    def _new_lanes(self) -> list[str]:
        """Containers whose place is not known yet, the first to be heard first."""
        self._held = {lane: held for lane, held in self._held.items() if held}
        lanes = [lane for lane in self._held if lane != self._lane]
        return sorted(lanes, key=lambda lane: self._heard[lane])

    def _change(self, lane: str, end: int) -> None:
        """Another container's attempt begins where the volume ended for it: at ``end`` or below."""
        if self._heard[lane] < self._heard.get(self._lane, -math.inf):
            self._over.add(lane)  # an older attempt's, of which nothing was heard until now
            self._drain_late(lane)
            return
        self._leave(self._lane)
        first = min(end, self._due, self._held[lane].lowest())
        self._cut = first != self._due
        self._lane, self._due = lane, first
        self._release_due()

    def _drain_late(self, lane: str) -> None:
        held = self._held.pop(lane)
        for key in held.in_time():
            self._tell_late(held.pop(key))

    def _take_restart(self, end: int) -> None:
        """An engine that began anew in the same container, and what came after its place."""
        held = self._held.get(self._lane)
        if not held:
            return
        begun: _Key | None = None
        for key in held.in_time():
            if self._is_past(key):
                self._tell_late(held.pop(key))
            elif begun is None and key.seq < self._due:
                begun = key
        if begun is not None:
            self._drain(self._lane, before=begun.time)
            self._cut, self._due = True, min(end, begun.seq)
            self._release_due()

    def _leave(self, lane: str) -> None:
        """That container's attempt is over: nothing that is missing of it can still come."""
        self._drain(lane)
        if lane:
            self._over.add(lane)

    def _is_past(self, key: _Key) -> bool:
        """Its place in the attempt that goes on is taken."""
        return key.seq < self._due and key.time <= self._newest

    # What goes out.

    def _release_due(self, before: float = math.inf) -> None:
        """Lets through what is next, and next after that, as far as it is older than ``before``."""
        held = self._held.get(self._lane)
        while held:
            key = held.at(self._due)
            if key is None or key.time >= before:
                return
            self._release(held.pop(key), self._lane)

    def _drain(self, lane: str, before: float = math.inf) -> None:
        """Lets through all that is held of a lane, and says what is missing before each."""
        held = self._held.get(lane)
        for key in held.in_time() if held else ():
            if held is None or key.time >= before:
                return
            event = held.pop(key)
            if self._is_past(key):
                self._tell_late(event)
                continue
            if key.seq > self._due:
                self._say_lost(key.seq - self._due, key.time)
            self._cut = self._cut or key.seq < self._due
            self._due = key.seq
            self._release(event, lane)

    def _release(self, event: Event, lane: str) -> None:
        """The attempt that goes on has this event next."""
        anew = self._started and isinstance(event, RunStarted)
        if (anew or (self._cut and self._open)) and not isinstance(event, RunFailed):
            self._say_own(_INTERRUPTED, event.time)
        self._cut = False
        self._piece_for(event.seq, lane, late=False).times.append(event.time)
        self._due = event.seq + 1
        self._newest = max(self._newest, event.time)
        self._number(event)
        self._open = not isinstance(event, TERMINAL)
        self._started = self._open and (self._started or isinstance(event, RunStarted))

    def _tell_late(self, event: Event) -> None:
        """Its place is taken, and as an event it would be read as if it happened now."""
        if self._is_known(_Key(event.time, event.seq)):
            return
        self._piece_for(event.seq, "", late=True).times.append(event.time)
        text = encode(event).decode("utf-8", "replace").strip()
        self._number(
            Logged(level="debug", message=f"too late for its place: {text}", time=event.time)
        )

    def _say_lost(self, missing: int, time: float) -> None:
        what = "event was" if missing == 1 else "events were"
        message = f"{missing} {what} lost: neither the log nor the volume has it"
        self._say_own(Logged(level="warning", message=message), time)

    def _say_own(self, event: Event, time: float) -> None:
        self._close()
        self._number(msgspec.structs.replace(event, time=time))
        if isinstance(event, TERMINAL):
            self._open = self._started = False

    def _piece_for(self, seq: int, lane: str, *, late: bool) -> _Piece:
        """The newest piece if the event goes on with it, else one that begins here."""
        piece = self._pieces[-1] if self._pieces else None
        if piece is None or not piece.goes_on(seq, lane, late=late):
            self._close()
            piece = _Piece(seq, self.next_seq, lane, late=late)
            self._pieces.append(piece)
        return piece

    def _close(self) -> None:
        if self._pieces and self._pieces[-1].local_stop is None:
            self._pieces[-1].local_stop = self.next_seq

    def _number(self, event: Event) -> None:
        self._out.append(msgspec.structs.replace(event, seq=self.next_seq))
        self.next_seq += 1

    def _let_through(self) -> list[Event]:
        out, self._out = self._out, []
        return out

    def _is_known(self, key: _Key) -> bool:
        return any(piece.holds(key) for piece in reversed(self._pieces))

    # After a crash.

    def _restore(self, record: MergeRecord, local: Iterable[Event | Unrecognized]) -> None:
        times: array[float] = array("d")
        turns: list[Event] = []  # what the state of the newest attempt hangs on
        for event in local:
            if event.seq is None:
                continue
            while len(times) <= event.seq:
                times.append(math.nan)
            if not isinstance(event, Unrecognized):
                times[event.seq] = event.time
                if isinstance(event, (*TERMINAL, RunStarted)):
                    turns.append(event)
        self.next_seq = len(times)
        for segment in record.segments:
            if segment.local_first > self.next_seq:
                break  # recorded, and never written
            stop = self.next_seq
            if segment.local_stop is not None:
                stop = min(stop, segment.local_stop)
            piece = _Piece(
                segment.remote_first, segment.local_first, segment.lane, late=segment.late
            )
            piece.times = times[segment.local_first : stop]
            if segment.local_stop is not None and segment.local_stop <= self.next_seq:
                piece.local_stop = segment.local_stop
            self._pieces.append(piece)
            if not piece.late:
                self._lane = piece.lane
                self._due = piece.remote_first + len(piece.times)
                known = (time for time in piece.times if not math.isnan(time))
                self._newest = max(self._newest, max(known, default=-math.inf))
        self._heard.update(record.heard)
        self._over = set(record.over) - {self._lane}
        self._started = bool(turns) and isinstance(turns[-1], RunStarted)
        ended_at = max((event.seq for event in turns if isinstance(event, TERMINAL)), default=-1)
        self._open = any(
            not piece.late and piece.local_first + len(piece.times) > ended_at + 1
            for piece in self._pieces
            if piece.times
        )
