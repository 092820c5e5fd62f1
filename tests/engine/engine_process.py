"""Engine processes for tests: real pids, signals and descriptors, one import of torch for all.

A fork server imports the engine once; each process is forked from it, leads its own session and
runs `composer_engine.__main__.main` as ``python -m composer_engine`` does.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from composer_engine.protocol import Event, StepCompleted, Unrecognized, decode

DEADLINE_SECONDS = 60.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.engine.warm"])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Returns once the condition holds; fails the test after a minute."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.005)


def read_events(path: Path) -> list[Event]:
    """The whole lines of an events file, every one of which must be an event."""
    events: list[Event] = []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            event = decode(line)
            assert not isinstance(event, Unrecognized), event
            events.append(event)
    return events


class EngineProcess:
    """One engine at work; its stdout and stderr are files in ``folder``."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        heartbeat: Path | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        self.stdout.touch()
        self.process = _context.Process(
            target=_work, args=(self.stdout, self.stderr, arguments, heartbeat, before)
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def events(self) -> list[Event]:
        """What it said on stdout so far."""
        return read_events(self.stdout)

    def steps(self) -> list[StepCompleted]:
        return [event for event in self.events() if isinstance(event, StepCompleted)]

    def signal(self, number: int) -> None:
        """Send a signal; to a process that has ended this does nothing."""
        if self.process.is_alive():
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self.process.join(DEADLINE_SECONDS)
        status = self.process.exitcode
        assert status is not None, "the engine did not end: " + self.stderr.read_text()
        return status

    def wait_for_step(self, step: int) -> None:
        wait_until(
            lambda: not self.process.is_alive() or any(e.step >= step for e in self.steps()),
            f"step {step}",
        )
        assert self.process.is_alive(), self.stderr.read_text()


def _work(
    stdout: Path,
    stderr: Path,
    arguments: tuple[str, ...],
    heartbeat: Path | None,
    before: Callable[[], None] | None,
) -> None:
    """In the forked process."""
    from composer_engine.__main__ import main

    os.setsid()
    for descriptor, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    if heartbeat is not None:
        os.environ["COMPOSER_HEARTBEAT_FD"] = str(os.open(heartbeat, os.O_RDONLY))
    if before is not None:
        before()
    sys.exit(main([*arguments]))
