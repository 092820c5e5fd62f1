"""Where a run's time and money went: its phases, each with the container that it was paid in. Pure.

Queued and building cost nothing. From a container's start to its end everything costs, whatever
the run was busy with, and a phase costs its share of the seconds.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

import msgspec

from composer_engine.protocol import (
    TERMINAL,
    Event,
    PhaseChanged,
    RunStarted,
    StepCompleted,
    Unrecognized,
)
from composer_tui.runs.cost import CPU, AttemptCost

STARTING, ENDING, WAITING = "starting", "ending", "waiting"
FREE = ("queued", "building")
_SMALLEST = Decimal("0.000001")


class PhaseCost(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of one attempt; ``attempt`` is 0 where no container was paid for.

    ``usd`` is None where it is not known, or nothing is paid at all. ``is_open``: its end was not
    seen, so that it lasted so long at the least.
    """

    attempt: int
    phase: str
    started_at: float
    seconds: float
    usd: Decimal | None = None
    is_open: bool = False


class Timeline(NamedTuple):
    """Phases in order. The dollars of an attempt's phases sum to what the attempt cost."""

    phases: tuple[PhaseCost, ...]
    gpu_seconds: dict[str, float]


class _Mark(NamedTuple):
    """From ``time`` on the run is in that phase."""

    time: float
    phase: str
    attempt: int


def timeline(
    events: Iterable[Event | Unrecognized], attempts: Sequence[AttemptCost] = ()
) -> Timeline:
    """``attempts`` are those of the run's containers; a run on this machine has none."""
    marks, last = _marks(events)
    if not attempts:
        return Timeline(tuple(_unpaid(marks, last)), {})
    ordered = sorted(attempts, key=lambda one: one.started_at)
    rows = [*_between(marks, ordered), *(row for one in ordered for row in _paid(marks, one))]
    rows.sort(key=lambda row: (row.started_at, row.attempt))
    return Timeline(tuple(rows), gpu_seconds(ordered))


def gpu_seconds(attempts: Iterable[AttemptCost]) -> dict[str, float]:
    """Seconds times GPUs, by the catalogue's name of the GPU; those of a container without one
    are the container's own."""
    found: dict[str, float] = {}
    for one in attempts:
        name = one.gpu_type
        units = 1 if name == CPU else one.gpus
        found[name] = found.get(name, 0.0) + units * one.seconds
    return found


def _marks(events: Iterable[Event | Unrecognized]) -> tuple[list[_Mark], float]:
    """Where phases begin, and the time of the last event.

    What a follower says of its own is stamped when it learnt of it, after the engine's events that
    follow: their order is right, and of the times the earlier one.
    """
    marks: list[_Mark] = []
    followed: list[float] = []  # by mark, the earliest time up to the next mark
    last, attempt, phase = float("-inf"), 1, ""
    for event in events:
        if isinstance(event, Unrecognized):
            continue
        last = max(last, event.time)
        if isinstance(event, RunStarted):
            attempt = max(attempt, event.attempt)
        turned = _turn(event, phase)
        if turned != phase:
            phase = turned
            marks.append(_Mark(event.time, phase, attempt))
            followed.append(event.time)
        elif followed:
            followed[-1] = min(followed[-1], event.time)
        if isinstance(event, TERMINAL):
            attempt += 1
    earliest = last
    for i in range(len(marks) - 1, -1, -1):
        earliest = min(earliest, followed[i])
        marks[i] = marks[i]._replace(time=earliest)
    return marks, last


def _turn(event: Event, phase: str) -> str:
    """The phase after an event."""
    if isinstance(event, PhaseChanged):
        return str(event.phase)
    if isinstance(event, StepCompleted):
        return "training"
    return ENDING if isinstance(event, TERMINAL) else phase


def _unpaid(marks: Sequence[_Mark], last: float) -> Iterable[PhaseCost]:
    """A run that pays for no container."""
    for mark, end in _spans(marks, last):
        if mark.phase != ENDING:
            seconds = end - mark.time
            yield PhaseCost(
                attempt=mark.attempt, phase=mark.phase, started_at=mark.time, seconds=seconds
            )


def _between(marks: Sequence[_Mark], attempts: Sequence[AttemptCost]) -> Iterable[PhaseCost]:
    """What costs nothing: before the first container, and from one to the next."""
    first = attempts[0].started_at
    for mark, end in _spans([mark for mark in marks if mark.time < first], first):
        phase = mark.phase if mark.phase in FREE else WAITING
        seconds = end - mark.time
        yield PhaseCost(
            attempt=0, phase=phase, started_at=mark.time, seconds=seconds, usd=Decimal(0)
        )
    until = first
    for one, following in pairwise(attempts):
        until = max(until, one.until)
        if following.started_at > until and one.ended_at is not None:
            yield PhaseCost(
                attempt=0,
                phase=WAITING,
                started_at=until,
                seconds=following.started_at - until,
                usd=Decimal(0),
            )


def _paid(marks: Sequence[_Mark], one: AttemptCost) -> Iterable[PhaseCost]:
    """The phases of one container; whatever it was before it said a word is its start."""
    inside = [_Mark(one.started_at, STARTING, one.attempt)]
    for mark in marks:
        if one.started_at <= mark.time <= one.until:
            phase = STARTING if mark.phase in FREE else mark.phase
            if phase == ENDING and inside[-1].phase == STARTING:
                continue  # the last word of the container before, said in its stead
            if phase == inside[-1].phase:
                continue
            if mark.time == inside[-1].time:
                inside.pop()
            inside.append(mark._replace(phase=phase))
    for mark, end in _spans(inside, max(one.started_at, one.until)):
        yield PhaseCost(
            attempt=one.attempt,
            phase=mark.phase,
            started_at=mark.time,
            seconds=end - mark.time,
            usd=_share(one, mark.time, end),
            is_open=one.ended_at is None and mark is inside[-1],
        )


def _spans(marks: Sequence[_Mark], end: float) -> Iterable[tuple[_Mark, float]]:
    """Each mark with its end: the next one's beginning, or ``end``."""
    ends = [*(mark.time for mark in marks[1:]), end]
    return zip(marks, ends, strict=True) if marks else ()


def _share(one: AttemptCost, start: float, end: float) -> Decimal | None:
    """The attempt's dollars until ``end``, less those until ``start``: shares sum to the whole."""
    if one.usd is None:
        return None
    return _until(one, one.usd, end) - _until(one, one.usd, start)


def _until(one: AttemptCost, usd: Decimal, moment: float) -> Decimal:
    if moment >= one.until:
        return usd
    part = Decimal(moment - one.started_at) / Decimal(one.seconds)
    return (usd * part).quantize(_SMALLEST)
