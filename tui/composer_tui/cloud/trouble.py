"""What is said while something cannot be had from Modal: that it is so, now and then, and the end.

Pure. A connection that comes and goes is told of once a minute, not at every try.
"""

from composer_tui.numbers import duration

REMIND_SECONDS = 60.0


class Trouble:
    """One thing that may be lost. Times are seconds of a clock that only goes on."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None
        self._told_at: float | None = None
        self._is_told = False

    @property
    def is_lost(self) -> bool:
        return self._since is not None

    def lost(self, why: str, now: float) -> str | None:
        """A try failed: the line that says so, unless one did less than a minute ago."""
        begins = self._since is None
        if self._since is None:
            self._since, self._is_told = now, False
        if self._told_at is not None and now - self._told_at < REMIND_SECONDS:
            return None
        self._told_at, self._is_told = now, True
        if begins:
            return f"{self._what} lost ({why}); it is tried again"
        return f"{self._what} still lost for {duration(now - self._since)} ({why})"

    def back(self, now: float) -> str | None:
        """A try succeeded: the line that says so, if the loss was told."""
        since, self._since = self._since, None
        if since is None or not self._is_told:
            return None
        self._is_told = False
        return f"{self._what} is back after {duration(now - since)}"
