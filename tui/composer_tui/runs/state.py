"""What a viewer knows of a run, as one frozen value that each event turns into the next.

`advance` is the only way forward. It never raises, whatever comes: an event that was seen is
counted and changes nothing else; one that comes late fills its hole, and updates only what no
newer event has said; one that skips ahead leaves a hole that a viewer can show and ask for.
"""

from bisect import insort
from collections.abc import Iterable
from typing import Any, Literal, get_args

import msgspec

from composer_engine.protocol import (
    AlertRaised,
    CheckpointSaved,
    Device,
    EndedBy,
    Event,
    MemorySampled,
    Phase,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    Unrecognized,
)

Life = Literal["launching", "loading", "training", "saving", "finished", "stopped", "failed"]
LIVES: tuple[Life, ...] = get_args(Life)
ENDED: frozenset[Life] = frozenset({"finished", "stopped", "failed"})
ALERTS_KEPT = 100
HOLES_KEPT = 256
STOPPED_BY_YOU = "stopped by you"  # begins the last word of a run that its owner stopped

Turn = (
    Phase
    | Literal[
        "run_started", "step_completed", "run_finished", "run_stopped", "run_failed", "run_taken"
    ]
)
"""What can turn a life: a phase that begins, or an event."""

_ALWAYS: dict[Turn, Life] = {
    "queued": "launching",
    "building": "launching",
    "loading": "loading",
    "warming": "loading",
    "training": "training",
    "evaluating": "training",
    "saving": "saving",
    "step_completed": "training",
    "run_finished": "finished",
    "run_stopped": "stopped",
    "run_failed": "failed",
    "run_taken": "launching",  # a machine was taken back: Modal begins another attempt by itself
}
_ON_START: dict[Life, Life] = {
    "launching": "loading",
    "loading": "loading",
    "training": "training",  # phases may come before run_started
    "saving": "saving",
    "finished": "loading",  # the next attempt
    "stopped": "loading",
    "failed": "loading",
}
LIFE_CYCLE: dict[tuple[Life, Turn], Life] = {
    **{(life, turn): after for life in LIVES for turn, after in _ALWAYS.items()},
    **{(life, "run_started"): after for life, after in _ON_START.items()},
}
"""Every life and every turn: the life that follows. Other events leave a life as it is."""


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a run. Times are unix seconds by the writer's clock.

    ``holes`` are half-open ranges of ``seq`` that have not come, oldest first. Of a stream with
    more holes than `HOLES_KEPT` the oldest are given up: they stay in ``missing`` for good.
    ``last``, ``memory`` and ``checkpoint`` are the newest by ``seq``; ``failure`` and ``finish``
    say how the newest attempt ended, and are gone when another begins. ``is_taken_away``: its
    machine was taken back, and nothing has been heard of the next attempt.
    """

    life: Life = "launching"
    life_seq: int = -1  # of the event that turned it
    is_taken_away: bool = False
    phase: Phase | None = None
    phase_seq: int = -1
    run_id: str = ""
    attempt: int = 0
    total_steps: int = 0
    resumed_step: int = 0  # of the checkpoint that this attempt went on from
    model: str = ""
    parameters: int = 0
    device: Device | None = None
    last: StepCompleted | None = None
    memory: MemorySampled | None = None
    checkpoint: CheckpointSaved | None = None
    started_at: float | None = None
    updated_at: float | None = None
    ended_at: float | None = None
    first_step: int | None = None  # of this attempt, the first that came
    first_step_at: float | None = None
    alerts: tuple[AlertRaised, ...] = ()
    alert_count: int = 0
    failure: RunFailed | None = None
    finish: RunFinished | None = None
    next_seq: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    given_up: int = 0
    duplicates: int = 0
    unrecognized: int = 0

    @property
    def ended(self) -> bool:
        return self.life in ENDED

    @property
    def ended_by(self) -> EndedBy:
        """The guard rail that stopped it, or the kind of its failure; "" for any other end."""
        if self.failure is not None:
            return self.failure.kind
        return self.finish.ended_by if self.finish is not None else ""

    @property
    def guard_rail(self) -> str:
        """What ended it early, in a few words, when it was a cap, a lease, a limit or a stall."""
        if self.finish is None or not self.finish.ended_by:
            return ""
        return self.finish.reason.partition(": ")[0] or self.finish.ended_by

    @property
    def missing(self) -> int:
        """How many events have not come, though later ones have."""
        return self.given_up + sum(stop - start for start, stop in self.holes)

    @property
    def steps_done(self) -> int:
        """Before an attempt's first step: where it goes on from; what came after is lost."""
        if self.last is None or (self.first_step is None and self.attempt > 1):
            return self.resumed_step
        return self.last.step

    @property
    def progress(self) -> float | None:
        """Steps done over steps asked for, 0..1; ``None`` before the run has started."""
        if self.total_steps <= 0:
            return None
        return min(1.0, max(0.0, self.steps_done / self.total_steps))

    @property
    def seconds_per_step(self) -> float | None:
        """Wall time a step of this attempt takes, checkpoints and all; ``None`` before one."""
        if self.last is None or self.first_step is None or self.first_step_at is None:
            return None
        steps = self.last.step - self.first_step
        seconds = self.last.time - self.first_step_at
        return seconds / steps if steps > 0 and seconds > 0 else self.last.step_seconds

    def eta_seconds(self, now: float) -> float | None:
        """Seconds until the last step at this attempt's pace; ``None`` when unknown or ended.

        Waiting for the next step counts as progress for at most one step, so that the estimate of
        a run that stalls stands still instead of reaching zero.
        """
        pace = self.seconds_per_step
        if self.ended or self.last is None or pace is None or self.total_steps <= 0:
            return None
        left = max(0, self.total_steps - self.steps_done)
        waited = min(max(0.0, now - self.last.time), pace)
        return max(0.0, left * pace - waited)


def advance(state: RunState, event: Event | Unrecognized) -> RunState:
    """The state after one more event."""
    seq = event.seq
    if seq is None:
        return msgspec.structs.replace(state, unrecognized=state.unrecognized + 1)
    changes: dict[str, Any] = {}
    if seq == state.next_seq:
        changes["next_seq"] = seq + 1
    elif not _take_place(state, seq, changes):
        return msgspec.structs.replace(state, duplicates=state.duplicates + 1)
    if isinstance(event, Unrecognized):
        changes["unrecognized"] = state.unrecognized + 1
    else:
        _apply(state, event, changes)
    return msgspec.structs.replace(state, **changes)


def advance_all(state: RunState, events: Iterable[Event | Unrecognized]) -> RunState:
    """The state after all the events."""
    for event in events:
        state = advance(state, event)
    return state


def _take_place(state: RunState, seq: int, changes: dict[str, Any]) -> bool:
    """Opens or fills a hole; False when the place is taken."""
    if seq > state.next_seq:
        holes = (*state.holes, (state.next_seq, seq))
        if len(holes) > HOLES_KEPT:
            (start, stop), *rest = holes
            holes = tuple(rest)
            changes["given_up"] = state.given_up + stop - start
        changes["holes"], changes["next_seq"] = holes, seq + 1
        return True
    for i, (start, stop) in enumerate(state.holes):
        if start <= seq < stop:
            parts = [(start, seq), (seq + 1, stop)]
            left = [part for part in parts if part[0] < part[1]]
            changes["holes"] = (*state.holes[:i], *left, *state.holes[i + 1 :])
            return True
    return False


def _apply(state: RunState, event: Event, changes: dict[str, Any]) -> None:
    if state.started_at is None or event.time < state.started_at:
        changes["started_at"] = event.time
    if state.updated_at is None or event.time > state.updated_at:
        changes["updated_at"] = event.time
    if isinstance(event, StepCompleted):
        _apply_step(state, event, changes)
    elif isinstance(event, MemorySampled):
        if state.memory is None or event.seq > state.memory.seq:
            changes["memory"] = event
    elif isinstance(event, AlertRaised):
        changes["alert_count"] = state.alert_count + 1
        alerts = list(state.alerts)
        insort(alerts, event, key=lambda alert: alert.seq)
        changes["alerts"] = tuple(alerts[-ALERTS_KEPT:])
    elif isinstance(event, CheckpointSaved):
        if state.checkpoint is None or event.seq > state.checkpoint.seq:
            changes["checkpoint"] = event
    elif isinstance(event, RunStarted):
        _apply_start(state, event, changes)
    elif isinstance(event, PhaseChanged):
        _turn(state, event, event.phase, changes)
    elif isinstance(event, RunFinished):
        _turn(state, event, "run_stopped" if event.stopped_early else "run_finished", changes)
    elif isinstance(event, RunFailed):
        _turn(state, event, _turn_of(event), changes)


def _apply_step(state: RunState, event: StepCompleted, changes: dict[str, Any]) -> None:
    if state.last is None or event.seq > state.last.seq:
        changes["last"] = event
    if state.first_step is None:
        changes["first_step"], changes["first_step_at"] = event.step, event.time
    if state.life == "training" and event.seq > state.life_seq:
        changes["life_seq"] = event.seq  # every step but an attempt's first comes this way
    else:
        _turn(state, event, "step_completed", changes)


def _apply_start(state: RunState, event: RunStarted, changes: dict[str, Any]) -> None:
    if event.attempt < state.attempt:
        return
    changes.update(
        run_id=event.run_id,
        attempt=event.attempt,
        total_steps=event.total_steps,
        resumed_step=event.resumed_step,
        model=event.model,
        parameters=event.parameters,
        device=event.device,
    )
    if state.last is None or event.seq > state.last.seq:
        changes.update(first_step=None, first_step_at=None)
    _turn(state, event, "run_started", changes)


def is_own_stop(failure: RunFailed) -> bool:
    """It ended because its owner stopped it, before its engine could say so itself."""
    return failure.kind == "killed" and failure.message.startswith(STOPPED_BY_YOU)


def _turn_of(failure: RunFailed) -> Turn:
    if failure.kind == "preempted":
        return "run_taken"
    return "run_stopped" if is_own_stop(failure) else "run_failed"


def _turn(state: RunState, event: Event, turn: Turn, changes: dict[str, Any]) -> None:
    """Turns the life, unless a newer event has turned it already."""
    if isinstance(event, PhaseChanged) and event.seq > state.phase_seq:
        changes["phase"], changes["phase_seq"] = event.phase, event.seq
    if event.seq < state.life_seq:
        return
    life = LIFE_CYCLE[state.life, turn]
    changes["life"], changes["life_seq"] = life, event.seq
    changes["is_taken_away"] = turn == "run_taken"
    ended = life in ENDED
    if ended or state.ended:
        changes["failure"] = event if life == "failed" and isinstance(event, RunFailed) else None
        changes["finish"] = event if isinstance(event, RunFinished) else None
        changes["ended_at"] = event.time if ended else None
