"""The protocol's promises: what is written can be read, and what is read never raises."""

import math
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from composer_engine import protocol
from composer_engine.protocol import (
    Channels,
    Device,
    Event,
    Logged,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    Unrecognized,
    decode,
    encode,
    violations,
)
from tests.strategies import events


@given(events())
def test_every_event_reads_back_as_it_was_written(event: Event) -> None:
    assert decode(encode(event)) == event


@given(events())
def test_every_event_is_one_line(event: Event) -> None:
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1


@given(st.lists(events(), max_size=8), st.data())
def test_a_stream_cut_anywhere_into_pieces_holds_the_same_lines(
    stream: list[Event], data: st.DataObject
) -> None:
    whole = b"".join(map(encode, stream))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert [decode(line) for line in b"".join(pieces).splitlines(keepends=True)] == stream


@given(st.binary(max_size=400))
@example(b"[" * 100_000)
@example(b'{"event":' * 50_000)
@example(b'{"event":"logged","seq":1e999,"level":"info","message":""}')
@example(b'{"event":"logged","seq":-5,"level":"info","message":""}')
@example(b'{"event":"logged","seq":true,"level":"info","message":""}')
@example(b'\xff\xfe{"event":"logged"}')
@example(b"\x00" * 64)
@example(b"")
def test_hostile_bytes_are_unrecognized_and_never_raise(line: bytes) -> None:
    assert isinstance(decode(line), Unrecognized)


@given(events(), st.data())
def test_an_event_cut_short_is_unrecognized(event: Event, data: st.DataObject) -> None:
    line = encode(event).rstrip(b"\n")
    cut = line[: data.draw(st.integers(0, len(line) - 1))]
    assert isinstance(decode(cut), Unrecognized)


def test_an_event_of_a_newer_version_keeps_its_place_in_the_sequence() -> None:
    read = decode(b'{"event":"dreamt","seq":7,"time":1.0,"vision":"sheep"}')
    assert isinstance(read, Unrecognized)
    assert read.seq == 7
    assert "dreamt" in read.reason


def test_an_end_that_an_older_version_wrote_was_nobody_s_guard_rail() -> None:
    line = b'{"event":"run_finished","seq":3,"time":1.0,"steps":2,"stopped_early":true}'
    assert decode(line) == RunFinished(seq=3, time=1.0, steps=2, stopped_early=True, ended_by="")


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    line = b'{"event":"logged","seq":3,"time":1.0,"level":"info","message":"hi","mood":"good"}'
    assert decode(line) == Logged(seq=3, time=1.0, level="info", message="hi")


def test_an_unrecognized_line_keeps_at_most_4096_characters_of_itself() -> None:
    read = decode(b"x" * 10_000_000)
    assert isinstance(read, Unrecognized)
    assert len(read.text) == 4096


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_cross_as_null(number: float) -> None:
    event = StepCompleted(
        seq=0, step=1, loss=number, channels=Channels(sdpo=number), metrics={"kl": number}
    )
    line = encode(event)
    assert not re.search(rb"nan|inf", line, re.IGNORECASE)
    read = decode(line)
    assert isinstance(read, StepCompleted)
    assert (read.loss, read.channels.sdpo, read.metrics["kl"]) == (None, None, None)


def test_an_event_that_was_never_numbered_is_not_taken_for_the_first() -> None:
    assert isinstance(decode(encode(Logged(level="info", message="early"))), Unrecognized)


def test_every_event_type_has_its_own_tag_in_the_words_of_the_design() -> None:
    tags = [kind.__struct_config__.tag for kind in protocol.EVENT_TYPES]
    assert tags == [
        "run_started",
        "phase_changed",
        "step_completed",
        "memory_sampled",
        "checkpoint_saved",
        "evaluated",
        "sample_generated",
        "alert_raised",
        "logged",
        "run_finished",
        "run_failed",
    ]


def _attempt() -> list[Event]:
    device = Device(kind="cpu", name="cpu", count=1, total_bytes=1)
    started = RunStarted(
        run_id="r",
        total_steps=1,
        model="m",
        parameters=1,
        device=device,
        engine_version="0",
        config_hash="0",
    )
    step = StepCompleted(step=1, loss=0.5, channels=Channels(grpo=0.5))
    return [PhaseChanged(phase="loading"), started, step, RunFinished(steps=1)]


def _numbered(stream: list[Event]) -> list[Event]:
    return [msgspec.structs.replace(event, seq=i) for i, event in enumerate(stream)]


def test_a_lawful_stream_of_two_attempts_has_no_violations() -> None:
    failed: list[Event] = [*_attempt()[:3], RunFailed(kind="oom", message="out of memory")]
    assert violations(_numbered([*failed, *_attempt()])) == []


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        ([], "no terminal event"),
        (_attempt()[:3], "no terminal event"),
        ([_attempt()[2], RunFailed(kind="engine", message="")], "before RunStarted"),
        ([*_attempt()[:2], *_attempt()[1:]], "a second RunStarted"),
        ([*_attempt(), Logged(level="info", message="late")], "no terminal event"),
    ],
)
def test_a_stream_that_breaks_a_law_is_told_which(stream: list[Event], complaint: str) -> None:
    assert any(complaint in found for found in violations(_numbered(stream)))


@given(st.integers(0, 3))
def test_a_gap_in_the_sequence_is_a_violation(missing: int) -> None:
    stream = _numbered(_attempt())
    del stream[missing]
    assert violations(stream)
