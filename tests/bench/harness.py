"""What the benches share: synthetic runs, and the app in a pseudo-terminal."""

import fcntl
import json
import os
import pty
import selectors
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil
import pyte

from composer_engine.config import load
from composer_engine.protocol import (
    Channels,
    Device,
    Event,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StepCompleted,
    encode,
)
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore

COLUMNS, LINES = 120, 40
EXTRA_METRICS = tuple(f"metric_{i}" for i in range(7))  # with the nine named ones: sixteen


def step_event(step: int, seq: int, now: float) -> StepCompleted:
    """A step with sixteen numbers that wander like a real run's."""
    noise = ((step * 2654435761) % 1000) / 1000
    loss = 2.5 / (1 + step / 5000) + 0.2 * noise
    return StepCompleted(
        seq=seq,
        time=now,
        step=step,
        loss=loss,
        channels=Channels(grpo=noise - 0.5, sdpo=0.1 + 0.05 * noise, replay=0.69 - 0.1 * noise),
        reward_mean=1 - loss / 3,
        metrics={name: noise * index for index, name in enumerate(EXTRA_METRICS)},
        learning_rate=1e-5,
        grad_norm=0.5 + noise,
        step_seconds=0.05 + 0.01 * noise,
        tokens_per_second=40_000 + 1000 * noise,
    )


def opening_events(total_steps: int, now: float) -> list[Event]:
    """What comes before the first step."""
    device = Device(kind="cpu", name="bench", count=1, total_bytes=2**34)
    started = RunStarted(
        seq=1,
        time=now,
        run_id="bench",
        total_steps=total_steps,
        model="bench",
        parameters=150_000,
        device=device,
        engine_version="bench",
        config_hash="0" * 16,
    )
    loading = PhaseChanged(seq=0, time=now, phase="loading")
    return [loading, started, PhaseChanged(seq=2, time=now, phase="training")]


def make_run(root: Path, steps: int, *, finished: bool) -> RunFolder:
    """A run folder with so many steps; one that is not finished is live while we are."""
    store = RunStore(root)
    now = time.time()
    config = load("smoke", settings=["name=bench", f"optimizer.steps={max(steps, 1)}"])
    folder = store.create(config, "local", now)
    with folder.events_path.open("wb") as file:
        events = opening_events(max(steps, 1), now)
        file.write(b"".join(map(encode, events)))
        seq = len(events)
        for step in range(1, steps + 1):
            file.write(encode(step_event(step, seq, now + step * 0.05)))
            seq += 1
        if finished:
            file.write(encode(RunFinished(seq=seq, time=now + steps * 0.05, steps=steps)))
    me = psutil.Process()
    who = {"pid": me.pid, "start_time": me.create_time(), "pgid": os.getpgid(0)}
    if not finished:
        folder.process_path.write_bytes(msgspec.json.encode(who))
    return folder


class Chunk(NamedTuple):
    """Bytes that the app wrote, and when we read them (seconds, monotonic)."""

    at: float
    data: bytes


class TerminalApp:
    """A Python program in a pseudo-terminal of 120 x 40."""

    def __init__(self, arguments: list[str], **variables: str) -> None:
        self.master, slave = pty.openpty()
        size = struct.pack("HHHH", LINES, COLUMNS, 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | variables
        for name in ("SSH_CONNECTION", "SSH_TTY"):
            environment.pop(name, None)
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.chunks: list[Chunk] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.master, selectors.EVENT_READ)

    def read(self, seconds: float) -> bytes:
        """What the app writes within so many seconds, at the first sign of it."""
        if not self._selector.select(seconds):
            return b""
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            return b""
        self.chunks.append(Chunk(time.monotonic(), data))
        return data

    def read_until(self, mark: bytes, seconds: float) -> float:
        """When ``mark`` was among the bytes read since this call. Raises TimeoutError."""
        data = b""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            data += self.read(0.05)
            if mark in data:
                return self.chunks[-1].at
        raise TimeoutError(f"{mark!r} did not come: {data[-400:]!r}")

    def drain(self, seconds: float) -> None:
        """Read for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.read(left)

    def type(self, text: str) -> float:
        """Send keys; when they were sent."""
        sent = time.monotonic()
        os.write(self.master, text.encode())
        return sent

    def screen(self) -> list[str]:
        """What the terminal shows now."""
        return picture(self.chunks)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def picture(chunks: list[Chunk]) -> list[str]:
    """The screen after the chunks, row by row."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    for chunk in chunks:
        stream.feed(chunk.data)
    return list(screen.display)


@contextmanager
def monitor(root: str) -> Iterator[TerminalApp]:
    """The app, opened on the newest run under ``root``."""
    running = TerminalApp(["-m", "composer_tui", "--runs-dir", root, "monitor", "last"])
    try:
        yield running
    finally:
        running.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def waited_seconds(pid: int) -> float:
    """Time in which a process could have run and the machine was busy elsewhere (Linux)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def milliseconds(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum, in ms."""
    return {
        "min": round(min(values) * 1e3, 2),
        "median": round(statistics.median(values) * 1e3, 2),
        "max": round(max(values) * 1e3, 2),
    }


def report(**facts: object) -> None:
    """The bench's one JSON object."""
    print(json.dumps(facts))
