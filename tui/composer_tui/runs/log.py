"""The newest lines of what a run said, in bounded memory."""

import re
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from composer_engine.protocol import Level

_LEVELS: tuple[tuple[re.Pattern[str], Level], ...] = (
    (re.compile(r"\b(?:ERROR|CRITICAL|FATAL|Traceback)\b|^\w*(?:Error|Exception)\b"), "error"),
    (re.compile(r"\bWARN(?:ING)?\b|\b\w*Warning:"), "warning"),
    (re.compile(r"\bDEBUG\b"), "debug"),
)


class LogLine(NamedTuple):
    """One clean line. ``time`` (unix seconds) is ``None`` for what a library just printed."""

    time: float | None
    level: Level
    text: str


def guess_level(text: str) -> Level:
    """The level that a printed line claims for itself, by the words people use."""
    return next((level for pattern, level in _LEVELS if pattern.search(text)), "info")


class LogRing:
    """The last ``capacity`` lines; ``total`` counts all there ever were."""

    def __init__(self, capacity: int = 10_000) -> None:
        self.lines: deque[LogLine] = deque(maxlen=capacity)
        self.total = 0

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def dropped(self) -> int:
        return self.total - len(self.lines)

    def append(self, line: LogLine) -> None:
        self.lines.append(line)
        self.total += 1

    def extend(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            self.append(line)
