"""Streams and folders for the tests of what reads them."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from composer_engine.protocol import (
    Channels,
    CheckpointSaved,
    Device,
    Event,
    Logged,
    MemorySampled,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StepCompleted,
    encode,
)
from composer_tui.runs.folder import RunFolder

EPOCH = 1_700_000_000.0
CPU = Device(kind="cpu", name="a CPU", count=1, total_bytes=1 << 33)


def numbered(events: Iterable[Event], first: int = 0) -> list[Event]:
    """The events as an emitter would stamp them, one a second."""
    return [
        msgspec.structs.replace(event, seq=seq, time=EPOCH + seq)
        for seq, event in enumerate(events, first)
    ]


def started(attempt: int = 1, total_steps: int = 10) -> RunStarted:
    return RunStarted(
        run_id="a-run",
        attempt=attempt,
        total_steps=total_steps,
        model="builtin",
        parameters=1000,
        device=CPU,
        engine_version="1",
        config_hash="00",
    )


def step(number: int) -> StepCompleted:
    return StepCompleted(
        step=number,
        loss=1 / number,
        channels=Channels(grpo=0.5 * number, sdpo=None, replay=0.25),
        reward_mean=number / 16,
        metrics={"kl": number / 32},
        step_seconds=1.0,
    )


def whole_run(steps: int = 10) -> list[Event]:
    """A lawful run with something of everything."""
    return numbered(
        [
            PhaseChanged(phase="loading"),
            started(total_steps=steps),
            PhaseChanged(phase="training"),
            Logged(level="info", message="off we go"),
            *(step(number) for number in range(1, steps + 1)),
            MemorySampled(host_rss_bytes=1 << 20),
            CheckpointSaved(step=steps, path="checkpoints/last", bytes=5),
            RunFinished(steps=steps),
        ]
    )


def lines(events: Iterable[Event]) -> bytes:
    return b"".join(map(encode, events))


def folder_with(path: Path, data: bytes) -> RunFolder:
    """A run folder that holds nothing but events."""
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    folder.events_path.write_bytes(data)
    return folder
