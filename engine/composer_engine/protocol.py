"""The events of a run: one JSON object a line, on the engine's stdout and in ``events.jsonl``.

Laws, which every writer keeps and every reader may rely on:

* ``seq`` counts from 0 without gaps over all attempts of one run;
* an attempt ends with exactly one terminal event (``run_finished`` or ``run_failed``), which is
  last; ``run_started`` comes once an attempt, before its first step, as soon as the model is
  known: phases and log lines may come before it, and a failure may come instead of it;
* numbers that are not finite cross as ``null``, beside an ``alert_raised`` that names them;
* a channel that had nothing to learn from in a step is ``null``, never 0;
* units are part of a field's name; ``time`` is unix seconds.

Reading never raises: a line that is not one of these events is an `Unrecognized`.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import msgspec

PROTOCOL_VERSION = 1
UNSTAMPED = -1  # the ``seq`` of an event that the emitter has not numbered yet

Phase = Literal["queued", "building", "loading", "warming", "training", "evaluating", "saving"]
Level = Literal["debug", "info", "warning", "error"]
AlertRule = Literal["non_finite", "no_signal", "oom", "stall", "spike", "disk", "sink", "reward"]
FailureKind = Literal[
    "config", "oom", "non_finite", "engine", "preempted", "timeout", "budget", "killed", "runner"
]
EndedBy = Literal["", FailureKind]
CHANNELS = ("grpo", "sdpo", "replay")


def _tag(class_name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in class_name).lstrip("_")


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_tag):
    """What every event has. The emitter, and nobody else, chooses ``seq`` and ``time``."""

    seq: int = UNSTAMPED
    time: float = 0.0


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine trains on: ``total_bytes`` is one device's memory (the host's on a CPU)."""

    kind: str
    name: str
    count: int
    total_bytes: int


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """Each channel's unweighted loss. ``None``: not computed, or not finite."""

    grpo: float | None = None
    sdpo: float | None = None
    replay: float | None = None


class StepSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Where a step's wall time went. The three need not add up to ``step_seconds``."""

    rollout: float | None = None
    loss: float | None = None
    optimizer: float | None = None


class DeviceSample(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator at one moment; ``utilization`` is 0..1; ``None``: the driver did not say."""

    index: int
    utilization: float | None = None
    power_watts: float | None = None
    temperature_c: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None


class RunStarted(_Event, frozen=True, kw_only=True):
    """The model is loaded and the device known; attempts count from 1.

    ``resumed_step`` is the step of the checkpoint that the attempt goes on from; 0 for none. Steps
    that an earlier attempt did after it come again, and those that come later are the run's.
    """

    protocol: int = PROTOCOL_VERSION
    run_id: str
    attempt: int = 1
    total_steps: int
    model: str
    parameters: int
    device: Device
    engine_version: str
    config_hash: str
    resumed_step: int = 0


class PhaseChanged(_Event, frozen=True, kw_only=True):
    """What the run is busy with from now on, above all in the minutes before step 1."""

    phase: Phase


class StepCompleted(_Event, frozen=True, kw_only=True):
    """One optimizer step; ``step`` counts from 1.

    ``loss`` is the weighted total. ``reward_mean`` is over the completions of the step,
    ``reward_std`` the mean over its groups of their standard deviation. ``metrics`` holds
    everything else the trainer measured, by name.
    """

    step: int
    loss: float | None
    channels: Channels
    reward_mean: float | None = None
    reward_std: float | None = None
    metrics: dict[str, float | None] = {}
    learning_rate: float | None = None
    grad_norm: float | None = None
    step_seconds: float | None = None
    seconds: StepSeconds = StepSeconds()
    tokens_per_second: float | None = None
    mfu: float | None = None


class MemorySampled(_Event, frozen=True, kw_only=True):
    """Accelerator memory (``None`` on a CPU run) and this process's resident set."""

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_bytes: int | None = None
    total_bytes: int | None = None
    host_rss_bytes: int | None = None
    host_total_bytes: int | None = None
    devices: tuple[DeviceSample, ...] = ()


class CheckpointSaved(_Event, frozen=True, kw_only=True):
    """A checkpoint that is whole on disk; ``path`` is relative to the run folder.

    ``best``: no other's rollouts, from the checkpoint before it on, had a higher mean reward.
    """

    step: int
    path: str
    bytes: int
    best: bool = False


class Evaluated(_Event, frozen=True, kw_only=True):
    """Metrics of one evaluation pass."""

    step: int
    metrics: dict[str, float | None]


class SampleGenerated(_Event, frozen=True, kw_only=True):
    """One rollout, so that a person can see what the numbers are about."""

    step: int
    prompt: str
    completion: str
    reward: float | None


class AlertRaised(_Event, frozen=True, kw_only=True):
    """Something a person should know; the run goes on unless a terminal event follows."""

    rule: AlertRule
    level: Level
    step: int | None = None
    message: str


class Logged(_Event, frozen=True, kw_only=True):
    """A line for people."""

    level: Level
    message: str


class RunFinished(_Event, frozen=True, kw_only=True):
    """Terminal: the run ended as asked. ``reason`` says why, when it stopped early.

    ``ended_by`` is the guard rail that ended it early (budget: its cap; timeout: its lease, its
    time, or no new step), and "" when it was a person, or nothing.
    """

    steps: int
    stopped_early: bool = False
    reason: str = ""
    ended_by: EndedBy = ""


class RunFailed(_Event, frozen=True, kw_only=True):
    """Terminal: ``message`` says what happened, ``hint`` what to do, ``detail`` the evidence."""

    kind: FailureKind
    message: str
    hint: str = ""
    detail: str = ""


Event = (
    RunStarted
    | PhaseChanged
    | StepCompleted
    | MemorySampled
    | CheckpointSaved
    | Evaluated
    | SampleGenerated
    | AlertRaised
    | Logged
    | RunFinished
    | RunFailed
)
EVENT_TYPES: tuple[type[Event], ...] = get_args(Event)
TERMINAL = (RunFinished, RunFailed)
_NEED_A_START = (StepCompleted, CheckpointSaved, Evaluated, SampleGenerated, RunFinished)


class Unrecognized(msgspec.Struct, frozen=True, kw_only=True):
    """A line that is no event of this protocol version.

    ``seq`` is known when the line is an event of a newer version, which fills its place in the
    sequence; a line without it is not of the stream at all. ``text`` is cut to 4,096 characters.
    """

    text: str
    reason: str
    seq: int | None = None


class _Numbered(msgspec.Struct, frozen=True):
    """The part of a newer version's event that this version can still use."""

    event: str
    seq: Annotated[int, msgspec.Meta(ge=0)]


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_numbered = msgspec.json.Decoder(_Numbered)
# What decoding bytes from outside can raise: bad JSON or types, bad UTF-8, and nesting too deep.
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(event: Event) -> bytes:
    """The event as one line, newline included. Non-finite numbers become ``null``."""
    return _encoder.encode(event) + b"\n"


def decode(line: bytes) -> Event | Unrecognized:
    """The event in one line (newline optional). Never raises."""
    try:
        event = _decoder.decode(line)
    except _DECODE_ERRORS as error:
        return _unrecognized(line, str(error))
    return event if event.seq >= 0 else _unrecognized(line, "no seq")


def _unrecognized(line: bytes, reason: str) -> Unrecognized:
    try:
        seq: int | None = _numbered.decode(line).seq
    except _DECODE_ERRORS:
        seq = None
    text = line[:4096].decode("utf-8", "replace").rstrip("\n")
    return Unrecognized(text=text, reason=reason[:200], seq=seq)


def violations(events: Iterable[Event]) -> list[str]:
    """Where a whole stream breaks the laws above; empty for a lawful one."""
    found: list[str] = []
    expected, started, ended = 0, False, False
    for event in events:
        name = type(event).__name__
        if event.seq != expected:
            found.append(f"seq {event.seq} where {expected} was due")
        if isinstance(event, RunStarted) and started:
            found.append(f"seq {event.seq}: a second RunStarted in one attempt")
        if isinstance(event, _NEED_A_START) and not started:
            found.append(f"seq {event.seq}: {name} before RunStarted")
        ended = isinstance(event, TERMINAL)
        started = isinstance(event, RunStarted) or (started and not ended)
        expected = event.seq + 1
    if not ended:
        found.append("no terminal event")
    return found
