"""Who stopped what, when, and how it ended: one JSON line before each stop, and one after it."""

import getpass
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import platformdirs

from composer_tui.runs.folder import this_host
from composer_tui.runs.sanitise import clean
from composer_tui.runs.stop_mode import StopMode

When = Literal["before", "after"]
_OURS_ALONE = 0o600


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One stop of one app, before or after.

    ``result`` is "" before it, and afterwards the last stage that was seen: "gone" only where no
    container was left. A line "before" without one "after" is a stop that was itself killed.
    ``time`` is unix seconds, ``seconds`` how long the stop took.
    """

    time: float
    when: When
    who: str
    host: str
    app_id: str
    name: str
    mode: StopMode
    result: str = ""
    seconds: float = 0.0
    message: str = ""


def audit_path() -> Path:
    """Where the lines are."""
    return platformdirs.user_state_path("composer-tui") / "audit.jsonl"


def who_am_i() -> tuple[str, str]:
    """User and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have it
        user = str(os.getuid())
    return user, this_host()


def append(path: Path, lines: Iterable[AuditLine]) -> None:
    """On disk when this returns, each whole, whoever else is writing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _OURS_ALONE)
    try:
        written = os.write(fd, data)
        if written < len(data):  # a full disk: what there is must not swallow the next line
            raise OSError(f"{path.name}: only {written} of {len(data)} bytes could be written")
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> list[AuditLine]:
    """All lines that can be read; a torn one is passed over. Raises OSError."""
    lines: list[AuditLine] = []
    for text in path.read_bytes().splitlines():
        try:
            lines.append(msgspec.json.decode(text, type=AuditLine))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return lines


class OwnStop(NamedTuple):
    """A stop of an app from this machine. ``is_late``: it was given up, and may have worked yet."""

    time: float
    is_late: bool


def own_stop(app_id: str) -> OwnStop | None:
    """The newest of that app; None where there is none, or it cannot be read."""
    try:
        lines = [line for line in read(audit_path()) if app_id and line.app_id == app_id]
    except OSError:
        return None
    begun = max((line.time for line in lines if line.when == "before"), default=None)
    if begun is None:
        return None
    after = [line.result for line in lines if line.when == "after" and line.time >= begun]
    return OwnStop(begun, bool(after) and "gone" not in after)


def line_of(
    now: float,
    when: When,
    app_id: str,
    name: str,
    mode: StopMode,
    *,
    result: str = "",
    seconds: float = 0.0,
    message: str = "",
) -> AuditLine:
    """A line in this user's name; what came from outside is cleaned."""
    who, host = who_am_i()
    return AuditLine(
        time=now,
        when=when,
        who=who,
        host=host,
        app_id=clean(app_id),
        name=clean(name),
        mode=mode,
        result=result,
        seconds=round(seconds, 3),
        message=clean(message),
    )
