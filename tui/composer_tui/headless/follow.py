"""A run's events as they are written, line by line, until the run is over."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from composer_engine.protocol import Event, Unrecognized
from composer_tui.runners.base import RunHandle
from composer_tui.runs.framer import Framer
from composer_tui.runs.journal import read_line
from composer_tui.runs.sanitise import clean_event
from composer_tui.runs.tail import Tail

POLL_SECONDS = 0.1


class Line(NamedTuple):
    """One line of events.jsonl as it stands there, and what it means, cleaned for a terminal."""

    raw: bytes
    event: Event | Unrecognized


def follow(
    handle: RunHandle, *, wait: Callable[[float], None] = time.sleep
) -> Iterator[Line | None]:
    """Every line from the first, then ``None`` for each moment in which nothing came.

    Ends when the run is over and its last line was given. A run whose engine died is settled on
    the way, so a followed run always ends with a terminal event.
    """
    framer = Framer()
    tail = Tail(handle.folder.events_path)
    try:
        while True:
            # Asked before reading: whatever an engine wrote before it ended is then read below.
            over = handle.settle()
            while data := tail.read():
                for raw in framer.feed(data):
                    yield Line(raw, clean_event(read_line(raw)))
            if over:
                return
            yield None
            wait(POLL_SECONDS)
    finally:
        tail.close()
