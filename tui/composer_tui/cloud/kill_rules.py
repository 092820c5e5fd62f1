"""How the stop of one app goes, step by step: functions of values, no clock and no Modal.

What may be claimed is decided here, and "gone" only by `saw`: from an app that Modal lists as
stopped, and a list of containers, read after that, with none of the app's in it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from composer_engine.cloud_spec import ControlBeat
from composer_tui.cloud.wire import Container, Problem, ProblemKind, StopStage

OVER = frozenset({"stopped", "disabled"})
SENDING = "its stop is being sent"
ACCEPTED = "accepted, not gone yet"
PLEADED = "its run was asked to end itself, too"
_HOPELESS: frozenset[ProblemKind] = frozenset({"no_token", "wrong_token"})


class Limits(NamedTuple):
    """How long each step of a stop may take, in seconds."""

    api: float = 8.0  # for modal's client to accept all stops
    cli: float = 15.0  # for one command of the modal command line
    poll: float = 0.3  # between one look at Modal and the next
    slow_poll: float = 5.0  # the same while it saves, and after the alarm
    beat: float = 1.0  # between looks at whether it has saved
    retry: float = 5.0  # between asking Modal, where neither way got through
    unreachable: float = 60.0  # so long without any way through: failed
    escalate: float = 30.0  # from the stop to that of each container
    alarm: float = 120.0
    plead: float = 10.0  # from the stop to asking what runs in it to end itself
    tell: float = 2.0  # the longest silence
    give_up: float | None = None  # from the start of all; None: never


class Look(NamedTuple):
    """What Modal's lists said at one moment, the states first and the containers after them.

    A list that could not be read is None. ``states`` has None for an app that Modal does not know.
    """

    states: Mapping[str, str | None] | None
    containers: Mapping[str, tuple[Container, ...]] | None
    problem: Problem | None = None
    names: Mapping[str, str] = MappingProxyType({})


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """The stop of one app. Times are seconds of one monotonic clock.

    ``grace_until`` is when its time to save ends, None where it is not asked to. ``sent_at`` is
    when the stop was first sent; ``accepted`` that Modal took it, by either way; ``try_at`` when to
    send it (again). ``containers`` are None until a list was read. ``note`` is what is not to be
    lost beside the message; ``kind`` says what the matter was where it could not be asked.
    """

    app_id: str
    name: str
    began_at: float
    environment: str = ""
    stage: StopStage = "stopping"
    grace_until: float | None = None
    sent_at: float | None = None
    last_sent_at: float | None = None
    try_at: float | None = None
    accepted: bool = False
    escalated_at: float | None = None
    is_pleaded: bool = False
    kind: ProblemKind | None = None
    containers: tuple[str, ...] | None = None
    message: str = ""
    note: str = ""
    saved: bool = False
    ended_at: float | None = None

    @property
    def is_open(self) -> bool:
        return self.stage not in ("gone", "failed")

    @property
    def is_saving(self) -> bool:
        return self.is_open and self.grace_until is not None and self.sent_at is None


def begun(
    app_id: str, name: str, now: float, grace_seconds: float | None, environment: str = ""
) -> Track:
    """A stop that begins: by asking it to save (with a grace), or at once."""
    track = Track(app_id=app_id, name=name, began_at=now, environment=environment)
    if grace_seconds is None:
        return _with(track, try_at=now, message=SENDING)
    return _with(
        track,
        stage="asked",
        grace_until=now + grace_seconds,
        message=f"being asked to save; it gets {grace_seconds:g} s",
    )


def saw(track: Track, look: Look, now: float, limits: Limits) -> Track:
    """After a look at Modal's lists."""
    if not track.is_open:
        return track
    if not track.name:
        track = _with(track, name=look.names.get(track.app_id, ""))
    if look.containers is not None:
        left = look.containers.get(track.app_id, ())
        track = _with(track, containers=tuple(container.container_id for container in left))
        if track.stage == "alarm":
            track = _with(track, message=alarm_words(track))
    if look.problem is not None and track.message in ("", ACCEPTED):
        track = _with(track, message=f"Modal's lists cannot be read: {look.problem.message}")
    if look.states is None or track.app_id not in look.states:
        return track
    state = look.states[track.app_id]
    if state is None:
        return failed(track, now, "Modal knows no app of this id in this account")
    if state in OVER and look.containers is not None and not track.containers:
        return _with(track, stage="gone", ended_at=now, try_at=None, message="")
    if track.is_saving and look.containers is not None and not track.containers:
        return _with(track, try_at=now)  # it ended by itself; now the app
    if state == "stopping":
        stage: StopStage = "stopping" if track.stage == "asked" else track.stage
        sent_at = _first(track.sent_at, now)  # by somebody else, where it was not us
        return _with(track, stage=stage, accepted=True, sent_at=sent_at, try_at=None)
    if track.accepted and now - _first(track.last_sent_at, now) >= limits.escalate:
        return _with(track, try_at=now)  # taken, it was said, and yet the app lives on: again
    return track


def told_to_save(track: Track, grace_seconds: float) -> Track:
    """It will read that it is to save and end."""
    if not track.is_saving:
        return track
    return _with(track, message=f"asked to save; it has {grace_seconds:g} s")


def heard(track: Track, now: float, beat: ControlBeat | None) -> Track:
    """After a look at what its container says of itself: one that has saved needs no more time."""
    if not track.is_saving or beat is None or beat.state != "ended":
        return track
    saved = beat.checkpoint_step >= beat.step > 0
    return _with(track, saved=saved, try_at=now)


def not_asked(track: Track, now: float, why: str) -> Track:
    """It could not be told to save: it is stopped without."""
    if not track.is_saving:
        return track
    return _with(track, stage="stopping", grace_until=None, try_at=now, message=SENDING, note=why)


def ticked(track: Track, now: float, limits: Limits) -> Track:
    """As time passes: graces end, and silence gets louder."""
    if not track.is_open:
        return track
    if track.is_saving and track.grace_until is not None and now >= track.grace_until:
        track = _with(track, try_at=_first(track.try_at, now))
    if track.sent_at is None:
        return track
    waited = now - track.sent_at
    if not track.accepted and waited >= limits.unreachable:
        return failed(track, now, track.message or "Modal could not be asked")
    if waited >= limits.alarm and track.stage != "alarm":
        return _with(track, stage="alarm", message=alarm_words(track))
    return track


def to_send(track: Track, now: float) -> bool:
    """Its stop is due to be sent now."""
    return track.is_open and track.try_at is not None and now >= track.try_at


def sending(track: Track, now: float) -> Track:
    """As its stop is being sent."""
    stage: StopStage = "stopping" if track.stage == "asked" else track.stage
    message = SENDING if track.stage == "asked" else track.message
    return _with(
        track,
        stage=stage,
        sent_at=_first(track.sent_at, now),
        last_sent_at=now,
        try_at=None,
        message=message,
    )


def accepted(track: Track) -> Track:
    """Modal took the stop that was sent. Nothing has stopped yet."""
    if not track.is_open or track.sent_at is None:
        return track
    message = track.message if track.stage == "alarm" else ACCEPTED
    return _with(track, accepted=True, try_at=None, message=message)


def first_way_failed(track: Track, problem: Problem) -> Track:
    """Modal's client did not get through; the command line tries."""
    if not track.is_open:
        return track
    stage: StopStage = track.stage if track.stage in ("escalated", "alarm") else "second_path"
    return _with(track, stage=stage, message=f"{problem.message}; the modal command line tries")


def no_way(track: Track, problem: Problem, now: float, limits: Limits) -> Track:
    """Neither way got through. A wrong token stays wrong; all else is tried again."""
    if not track.is_open or track.accepted:
        return track
    if problem.kind in _HOPELESS:
        return _with(failed(track, now, _words(problem)), kind=problem.kind)
    return _with(track, try_at=now + limits.retry, message=_words(problem))


def to_escalate(track: Track, now: float, limits: Limits) -> bool:
    """Its containers are to be stopped one by one."""
    if not track.is_open or track.sent_at is None or not track.containers:
        return False
    return now - _first(track.escalated_at, track.sent_at) >= limits.escalate


def escalated(track: Track, now: float) -> Track:
    """As its containers are being stopped one by one."""
    stage: StopStage = "alarm" if track.stage == "alarm" else "escalated"
    return _with(track, stage=stage, escalated_at=now)


def to_plead(track: Track, now: float, limits: Limits) -> bool:
    """What runs in it is due to be asked to end itself: no stop of Modal's has ended it so far."""
    if not track.is_open or track.sent_at is None or track.is_pleaded:
        return False
    return now - track.sent_at >= limits.plead


def pleading(track: Track) -> Track:
    """As what runs in it is being asked."""
    return _with(track, is_pleaded=True)


def pleaded(track: Track) -> Track:
    """It will read that it is to end, where it still reads."""
    if not track.is_open:
        return track
    return _with(track, note=PLEADED)


def failed(track: Track, now: float, why: str) -> Track:
    """It could not even be asked."""
    if not track.is_open:
        return track
    return _with(track, stage="failed", message=why, ended_at=now, try_at=None)


def alarm_words(track: Track) -> str:
    """What a person needs who has to take over."""
    left = " ".join(track.containers or ()) or "its containers are not known"
    by_hand = stop_command(track.app_id, track.environment)
    see = f"see {dashboard_url(track.app_id)}, or try: {by_hand}"
    return f"{track.app_id} has NOT ended: {left}; {see}"


def dashboard_url(app_id: str) -> str:
    """Where Modal shows an app."""
    return f"https://modal.com/id/{app_id}"


def stop_command(app_id: str, environment: str = "") -> str:
    """What ends an app by hand."""
    where = f" -e {environment}" if environment else ""
    return f"modal app stop {app_id} --yes{where}"


def _first(moment: float | None, otherwise: float) -> float:
    return otherwise if moment is None else moment


def _words(problem: Problem) -> str:
    return f"{problem.message}: {problem.hint}" if problem.hint else problem.message


def _with(track: Track, **changes: object) -> Track:
    return msgspec.structs.replace(track, **changes)
