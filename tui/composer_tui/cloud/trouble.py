"""What is said while something cannot be had from Modal: that it is so, now and then, and the end.

Pure. A connection that comes and goes is told of once a minute, not at every try.
"""

from composer_tui.numbers import duration

REMIND_SECONDS = 60.0


class Trouble:
    """One thing that may be lost, and is until every ``part`` of it that was lost is back.

    Times are seconds of a clock that only goes on.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._parts: set[str] = set()
        self._why = ""
        self._since = 0.0
        self._told_at: float | None = None
        self._is_told = False

    @property
    def is_lost(self) -> bool:
        return bool(self._parts)

    def lost(self, why: str, now: float, part: str = "") -> str | None:
        """A try failed: the line that says so, unless one did less than a minute ago."""
        begins = not self._parts
        if begins:
            self._since, self._is_told = now, False
        self._parts.add(part)
        self._why = why
        line = self.remind(now)
        if line is not None and begins:
            return f"{self._what} lost ({why}); it is tried again"
        return line

    def remind(self, now: float) -> str | None:
        """The line that says that it is still lost, once a minute, whether it is tried or not."""
        if not self._parts:
            return None
        if self._told_at is not None and now - self._told_at < REMIND_SECONDS:
            return None
        self._told_at, self._is_told = now, True
        return f"{self._what} still lost for {duration(now - self._since)} ({self._why})"

    def back(self, now: float, part: str = "") -> str | None:
        """A try of that part succeeded: the line that says so, if that was the last, and told."""
        self._parts.discard(part)
        return None if self._parts else self.over(now)

    def over(self, now: float) -> str | None:
        """All of it is back: the line that says so, if the loss was told."""
        self._parts.clear()
        was_told, self._is_told = self._is_told, False
        return f"{self._what} is back after {duration(now - self._since)}" if was_told else None
