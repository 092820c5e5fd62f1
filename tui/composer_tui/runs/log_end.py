"""What a run said last, as evidence of how it ended."""

import os
from pathlib import Path

from composer_tui.runs.framer import Framer
from composer_tui.runs.sanitise import clean

LOG_LINES = 20
_LOG_BYTES = 1 << 16


def read_log_end(path: Path, lines: int = LOG_LINES) -> list[str]:
    """The last lines of a log, clean, empty ones left out; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            framer = Framer()
            found = [*framer.feed(file.read()), framer.flush() or b""]
    except OSError:
        return []
    texts = (clean(line.decode("utf-8", "replace")).rstrip() for line in found)
    return [text for text in texts if text][-lines:]
