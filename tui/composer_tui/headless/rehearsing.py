"""`rehearsal`: Modal, played on this machine, for programs other than this one."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from composer_tui.rehearsal import process
from composer_tui.rehearsal.connection import Connection

_LOOK_SECONDS = 0.2
_NO_SUCH_COMMAND = 127


def default_root() -> Path:
    """Where what is served keeps its volumes, secrets and logs from one time to the next."""
    return platformdirs.user_data_path("composer-tui") / "rehearsal"


def serve(root: Path, chaos: str, *, as_json: bool) -> int:
    """Serve until ctrl+c, and leave nothing behind but what is on the volumes.

    Raises `RehearsalFailed`.
    """
    with _ended_by_sigterm(), _rehearsal(root, chaos) as (connection, path):
        environ = connection.environ()
        print(json.dumps(environ) if as_json else _exports(environ), flush=True)
        _say(f"Modal is rehearsed at {connection.url}, on this machine alone; files are in {root}")
        _say("set the variables above in another shell, then: modal run yours.py")
        _say("ctrl+c ends it, and everything that it runs")
        try:
            while process.find(path) is not None:
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            _say("ending it")
            return 0
        _say(f"it ended by itself; {root / process.LOG_NAME} says why")
        return 1


def execute(root: Path | None, chaos: str, command: Sequence[str]) -> int:
    """Run one command against a rehearsal of its own; the value is the command's exit status.

    Without a ``root`` nothing of it is kept. Raises `RehearsalFailed`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="composer-rehearsal-") as temporary,
        _rehearsal(root or Path(temporary), chaos) as (connection, _),
    ):
        environ = {**os.environ, **connection.environ()}
        try:
            child = subprocess.Popen(command, env=environ)  # noqa: S603  # as asked for
        except OSError as error:
            _say(f"{command[0]}: {error.strerror}")
            return _NO_SUCH_COMMAND
        return _wait(child)


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """Ctrl+c is the command's to answer: it has it from the terminal, as we have."""
    while True:
        try:
            status = child.wait()
        except KeyboardInterrupt:
            continue
        return status if status >= 0 else 128 - status


@contextmanager
def _rehearsal(root: Path, chaos: str) -> Iterator[tuple[Connection, Path]]:
    state = platformdirs.user_state_path("composer-tui") / "rehearsals"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / f"served-{os.getpid()}.json"
    try:
        yield process.start(root, path, chaos=chaos), path
    finally:
        process.stop(path)
        path.with_name(path.name + ".lock").unlink(missing_ok=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends it as ctrl+c does: what it runs must not outlive it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exports(environ: dict[str, str]) -> str:
    """The variables as a shell reads them."""
    lines = [f"export {name}={shlex.quote(text)}" for name, text in environ.items() if text]
    unset = [name for name, text in environ.items() if not text]
    return "\n".join([*lines, f"unset {' '.join(unset)}"] if unset else lines)


def _say(words: str) -> None:
    print(f"composer-tui: {words}", file=sys.stderr, flush=True)
