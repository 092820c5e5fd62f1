"""What goes wrong again and again, told now and then."""

import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

AGAIN_SECONDS = 300.0


class _Told(NamedTuple):
    words: str
    at: float
    unsaid: int = 0


class Complaints:
    """Lets a complaint through at once, and the same one again only each five minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[Hashable, _Told] = {}

    def line(self, what: Hashable, words: str) -> str:
        """What to say of it: the words, with how often they were held back; "" for nothing."""
        now, last = self._clock(), self._told.get(what)
        if last is not None and last.words == words and now - last.at < AGAIN_SECONDS:
            self._told[what] = last._replace(unsaid=last.unsaid + 1)
            return ""
        again = last.unsaid if last is not None and last.words == words else 0
        self._told[what] = _Told(words, now)
        return f"{words} ({again + 1} times since)" if again else words
