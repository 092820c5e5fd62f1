"""A rehearsal as a process of its own: started, found again and stopped by its connection file.

Imports nothing heavy: the interface itself uses this.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import psutil

from composer_tui.rehearsal.connection import Connection

START_SECONDS = 30.0  # until it serves
STOP_SECONDS = 10.0  # from SIGTERM to SIGKILL
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.02
_SAME_START_SECONDS = 0.05  # how far two readings of one process's start may be apart
LOG_NAME = "rehearsal.log"

_children: "list[subprocess.Popen[bytes]]" = []  # so that what this process started is reaped


class RehearsalFailed(RuntimeError):  # noqa: N818  # says what happened
    """The rehearsal did not start; the message is one line for a person."""


class ConnectionFile(msgspec.Struct, frozen=True):
    """What the file holds. It is its owner's alone: the token is in it."""

    url: str
    token_id: str
    token_secret: str
    pid: int
    start_time: float  # Unix seconds, as psutil tells it

    @property
    def connection(self) -> Connection:
        return Connection(self.url, self.token_id, self.token_secret)


def start(
    root: Path,
    connection_file: Path,
    *,
    chaos: str = "",
    idle_exit_seconds: float | None = None,
    settings: Mapping[str, float] | None = None,
) -> Connection:
    """Starts a rehearsal in a session of its own, and returns when it serves.

    One that is already there, by that file, is answered as it is. ``settings`` are fields of
    `control_plane.Settings`. Raises `RehearsalFailed`, or OSError (a folder cannot be made).
    """
    root, connection_file = root.absolute(), connection_file.absolute()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    connection_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one(connection_file):
        running = find(connection_file)
        if running is not None:
            return running
        connection_file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "composer_tui.rehearsal"]
        argv += ["--root", str(root), "--connection", str(connection_file)]
        if chaos:
            argv += ["--chaos", chaos]
        if idle_exit_seconds is not None:
            argv += ["--idle-exit", str(idle_exit_seconds)]
        for name, value in (settings or {}).items():
            argv += ["--setting", f"{name}={value}"]
        log_path = root / LOG_NAME
        with log_path.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(  # noqa: S603  # argv is ours
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        _children.append(process)
        return _await_connection(process, connection_file, log_path, begin)


def find(connection_file: Path) -> Connection | None:
    """The rehearsal of that file; None where there is none, or its process is gone."""
    record = _read(connection_file)
    return record.connection if record is not None and _is_alive(record) else None


def stop(connection_file: Path) -> None:
    """Ends the rehearsal of that file and everything it runs. Returns when it is gone."""
    record = _read(connection_file)
    if record is not None:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            if not _is_alive(record):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, number)
            _await_end(record, seconds)
    connection_file.unlink(missing_ok=True)


def start_time(pid: int) -> float:
    """When a process started: with its id, that tells it from every other. Raises psutil.Error."""
    return psutil.Process(pid).create_time()


def _await_connection(
    process: "subprocess.Popen[bytes]", connection_file: Path, log_path: Path, begin: int
) -> Connection:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        record = _read(connection_file)
        if record is not None and record.pid == process.pid:
            return record.connection
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RehearsalFailed(f"the rehearsal did not serve within {START_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    with log_path.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").strip().splitlines()
    why = lines[-1] if lines else f"exit status {process.returncode}"
    raise RehearsalFailed(f"the rehearsal did not start: {why}")


def _read(connection_file: Path) -> ConnectionFile | None:
    try:
        return msgspec.json.decode(connection_file.read_bytes(), type=ConnectionFile)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _is_alive(record: ConnectionFile) -> bool:
    for child in _children:
        child.poll()
    try:
        process = psutil.Process(record.pid)
        is_same = abs(process.create_time() - record.start_time) < _SAME_START_SECONDS
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _await_end(record: ConnectionFile, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _is_alive(record) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _only_one(connection_file: Path) -> Iterator[None]:
    """Two that start one rehearsal at the same time come one after the other."""
    with connection_file.with_name(connection_file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
