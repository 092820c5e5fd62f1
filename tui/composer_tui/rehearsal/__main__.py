"""``python -m composer_tui.rehearsal``: serves one rehearsal until it is told to end."""

import argparse
import asyncio
import fcntl
import logging
import os
import resource
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from composer_tui.rehearsal.chaos import BadSpec, Chaos, parse
from composer_tui.rehearsal.connection import Connection
from composer_tui.rehearsal.containers import Containers
from composer_tui.rehearsal.control_plane import ControlPlane, Settings
from composer_tui.rehearsal.journal import write_whole
from composer_tui.rehearsal.process import ConnectionFile, start_time
from composer_tui.rehearsal.sandbox import is_available

_BAD_ARGUMENTS = 2
_MANY_FILES = 8192
_TOKEN_ID = "COMPOSER_REHEARSAL_TOKEN_ID"  # noqa: S105  # the names of variables
_TOKEN_SECRET = "COMPOSER_REHEARSAL_TOKEN_SECRET"  # noqa: S105


def main() -> None:
    """Exit status: 0 when told to end, 1 when it cannot serve, 2 for bad arguments."""
    arguments = _parser().parse_args()
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("grpclib").setLevel(logging.ERROR)
    try:
        chaos = Chaos(parse(arguments.chaos))
        settings = _settings(arguments.setting)
    except BadSpec as error:
        _leave(str(error), _BAD_ARGUMENTS)
    arguments.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _lock(arguments.root)
    _allow_many_files()
    token_id, token_secret = _token()
    plane = ControlPlane(arguments.root, token_id, token_secret, settings, chaos)
    try:
        asyncio.run(_serve(plane, arguments.connection, arguments.port, arguments.idle_exit))
    except OSError as error:
        _leave(f"cannot serve: {error.strerror or error}", 1)
    finally:
        os.close(lock)


async def _serve(
    plane: ControlPlane, connection_file: Path, port: int, idle_exit_seconds: float | None
) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    connection = await plane.start(port)
    try:
        _write_connection(connection_file, connection)
        await _until_told_or_idle(plane, told, idle_exit_seconds)
    finally:
        await asyncio.to_thread(connection_file.unlink, missing_ok=True)
        await plane.stop()


async def _until_told_or_idle(
    plane: ControlPlane, told: asyncio.Event, idle_exit_seconds: float | None
) -> None:
    if idle_exit_seconds is None:
        await told.wait()
        return
    containers = plane.area(Containers)
    requests, since = -1, time.monotonic()
    while time.monotonic() - since < idle_exit_seconds:
        if plane.requests != requests or containers.counts():
            requests, since = plane.requests, time.monotonic()
        try:
            await asyncio.wait_for(told.wait(), min(1.0, idle_exit_seconds / 4))
        except TimeoutError:
            continue
        return


def _write_connection(path: Path, connection: Connection) -> None:
    """The token is in the file: its folder and it are the owner's alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pid = os.getpid()
    record = ConnectionFile(*connection, pid=pid, start_time=start_time(pid))
    write_whole(path, msgspec.json.encode(record))


def _token() -> tuple[str, str]:
    """From the environment, or a new one. Nothing that this process starts inherits it."""
    token_id = os.environ.pop(_TOKEN_ID, "") or f"ak-{secrets.token_urlsafe(16)}"
    token_secret = os.environ.pop(_TOKEN_SECRET, "") or f"as-{secrets.token_urlsafe(32)}"
    return token_id, token_secret


def _settings(given: list[str]) -> Settings:
    """Raises `BadSpec`."""
    settings = Settings(isolated=is_available())
    for text in given:
        name, _, value = text.partition("=")
        if name not in Settings._fields:
            raise BadSpec(f"setting: {name!r} is not one of {', '.join(Settings._fields)}")
        try:
            number = float(value)
        except ValueError:
            raise BadSpec(f"setting: {name} wants a number: {value!r}") from None
        kind = type(Settings._field_defaults[name])
        settings = settings._replace(**{name: kind(number)})
    return settings


def _lock(root: Path) -> int:
    """Two rehearsals in one folder would damage it. Held until the process ends."""
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _leave(f"another rehearsal runs in {root}", 1)
    return descriptor


def _allow_many_files() -> None:
    """Each container takes four descriptors, each client and each live log one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(_MANY_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _leave(words: str, status: int) -> NoReturn:
    sys.stderr.write(f"composer-tui rehearsal: {words}\n")
    raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m composer_tui.rehearsal",
        description="A Modal control plane on 127.0.0.1 that runs functions on this machine.",
    )
    parser.add_argument("--root", type=Path, required=True, help="the folder of everything it has")
    parser.add_argument(
        "--connection", type=Path, required=True, help="the file for its address and its token"
    )
    parser.add_argument("--chaos", default="", help="what goes wrong: preempt=0.1,slow=0.5,...")
    parser.add_argument("--idle-exit", type=float, help="ends after so many seconds of nothing")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=SECONDS", help="see Settings"
    )
    return parser


if __name__ == "__main__":
    main()
