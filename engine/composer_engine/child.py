"""The engine as a container's child: started in a session of its own, listened to, ended.

Its stdout goes on to our own, line by line and unchanged; so does its stderr, whose last lines
are kept for the case that it ends without a word.
"""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from composer_engine.contract import STOP_FILE
from composer_engine.failures import complain
from composer_engine.protocol import EndedBy

_KEPT_LINES = 30
_PIPE_SECONDS = 5.0  # for what is still in the pipes when the engine has ended

OnLine = Callable[[bytes], object]


def engine_command(config: Path, folder: Path, run_id: str, processes: int) -> list[str]:
    """How one engine, or one of several processes, is started.

    Whatever ended the attempt before it, it goes on from what that one had committed.
    """
    module = ["-m", "composer_engine", "--config", str(config)]
    module += ["--run-dir", str(folder), "--run-id", run_id, "--resume", "auto"]
    if processes == 1:
        return [sys.executable, *module]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={processes}", *module]


class EngineChild:
    """One engine at work. ``on_line`` is called with each line of its stdout, from a thread."""

    def __init__(
        self, command: Sequence[str], folder: Path, environ: Mapping[str, str], on_line: OnLine
    ) -> None:
        self._folder, self._on_line = folder, on_line
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        # What an earlier attempt did not get to see must not end this one.
        (folder / STOP_FILE).unlink(missing_ok=True)
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
        )
        self._threads = [
            threading.Thread(target=target, args=(pipe,), name=name, daemon=True)
            for name, target, pipe in (
                ("engine stdout", self._pump_stdout, self._process.stdout),
                ("engine stderr", self._pump_stderr, self._process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    @property
    def last_lines(self) -> list[str]:
        """The end of its stderr."""
        return [*self._last_lines]

    def ask(self, reason: str, ended_by: EndedBy = "") -> None:
        """Have it save and end after this step, whoever asks first. It may take its time."""
        said = reason.replace("\n", " ")
        leave_line(self._folder / STOP_FILE, f"{said}\n{ended_by}")

    def wait(self, seconds: float) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: signal.Signals) -> None:
        """To it and all that it started. Does nothing to an engine that is gone."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def clear(self) -> None:
        """End what it left running, and pass on the rest of what it said. For after its end."""
        with contextlib.suppress(ProcessLookupError):  # as a rule it left nothing
            os.killpg(self._process.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join(_PIPE_SECONDS)

    def _pump_stdout(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            whole = line if line.endswith(b"\n") else line + b"\n"  # what follows is not part of it
            write_all(1, whole)
            self._on_line(whole)

    def _pump_stderr(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            write_all(2, line)
            self._last_lines.append(line.decode("utf-8", "replace").rstrip("\n")[:1000])


def leave_line(file: Path, text: str) -> None:
    """A small file that is there whole or not at all. A full disk is a line on stderr."""
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.write_text(text + "\n", "utf-8")
        temporary.replace(file)
    except OSError as error:
        complain(f"{file.name}: {error.strerror}")


def write_all(descriptor: int, data: bytes) -> None:
    """All of it, or as much as its reader wants."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        return  # nobody reads; the run folder has it
