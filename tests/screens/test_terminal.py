"""What reaches the terminal, byte for byte, through the app's own driver."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import msgspec
import pyte

from composer_engine.protocol import AlertRaised, Event, Logged, RunFailed, SampleGenerated
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.runs import numbered, started, step
from tests.screens.conftest import record

HOSTILE = (
    "\x1b]0;pwned\x07 \x1b[2J \x1b]52;c;cHduZWQ=\x07 [/nope] [red]x[/red] \x9b31m \x1bPq#0\x1b\\ "
    "\u202egnp.exe \r\n\tend"
)
FORBIDDEN = (b"pwned", b"\x1b]0;", b"\x1b]52", b"\x1b[2J", b"\xc2\x9b", b"\x1bP", b"cHduZWQ")
LAUNCHER = """
import sys
from pathlib import Path
from composer_tui.app import ComposerApp
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.store import RunStore
store = RunStore(Path(sys.argv[1]))
ComposerApp(store, runner=LocalRunner(store), start="runs", presets_dir=Path(sys.argv[2])).run()
"""
PATIENCE_SECONDS = 60.0


def terminal_environ() -> dict[str, str]:
    """The terminal's own size counts, and not that of whoever runs the tests."""
    ours = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return ours | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


class Terminal:
    """A real pseudo-terminal with the app in it."""

    def __init__(self, *arguments: str, columns: int = 120, rows: int = 40) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=terminal_environ(),
        )
        os.close(theirs)

    def until_shown(self, *words: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(word in "\n".join(self.screen.display) for word in words):
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            self._read(0.05)

    def press(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)

    def _read(self, seconds: float) -> None:
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if ready:
            data = os.read(self.fd, 1 << 16)
            self.written += data
            self.stream.feed(data)


def hostile_run(store: RunStore) -> RunFolder:
    """A run whose every string tries to take the terminal over."""
    first = msgspec.structs.replace(started(), model=HOSTILE, run_id=HOSTILE)
    events: list[Event] = [
        first,
        Logged(level="info", message=HOSTILE + "in-the-log"),
        msgspec.structs.replace(step(1), metrics={HOSTILE: 1.0}),
        SampleGenerated(step=1, prompt=HOSTILE + "asked", completion=HOSTILE + "said", reward=1.0),
        AlertRaised(rule="spike", level="warning", message=HOSTILE),
        RunFailed(kind="engine", message=HOSTILE, hint=HOSTILE, detail=HOSTILE),
    ]
    folder = record(store, numbered(events))
    with folder.log_path.open("wb") as file:
        file.write(HOSTILE.encode() + b"\xff\xfe broken bytes\n")
    wicked = folder.path.with_name("evil-\x1b]0;pwned\x07-[nope]")
    folder.path.rename(wicked)
    return RunFolder(wicked)


def test_no_text_of_a_run_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    hostile_run(RunStore(tmp_path / "runs"))
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "evil.toml").write_text('name = "evil"\n[data]\npath = "\\u001b]0;pwned\\u0007x"\n')
    terminal = Terminal(str(tmp_path / "runs"), str(presets))
    try:
        terminal.until_shown("failed", "1/10")
        terminal.press(b"\r")
        terminal.until_shown("2 Monitor", "rollouts", "said")
        terminal.press(b"l")
        terminal.until_shown("in-the-log", "broken bytes", "[/nope] [red]x[/red]")
        terminal.press(b"l")
        terminal.until_shown("channels", "✗ failed")
        terminal.press(b"?")
        terminal.until_shown("Help: log")
        terminal.press(b"\r")
        terminal.until_shown("channels", "alerts")
        terminal.press(b"1")
        terminal.until_shown("ready to launch")
        terminal.press(b" ")
        terminal.until_shown("preset evil")
        terminal.press(b"3K")
        terminal.until_shown("AGE")
    finally:
        terminal.close()
    for forbidden in FORBIDDEN:
        assert forbidden not in terminal.written
