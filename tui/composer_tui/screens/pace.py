"""How often each part of a screen is drawn anew."""


class Pace:
    """Says when a part is due: there is something new, and the last drawing is old enough.

    Nothing is ever lost, only late: a part that was too early for the newest state is due as soon
    as its time has come, whether or not more has happened.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._version = -1
        self._at = 0.0

    def due(self, version: int, now: float) -> bool:
        """Whether to draw ``version`` at ``now`` (seconds); if so, it counts as drawn."""
        if version == self._version or 0 <= now - self._at < self._seconds:
            return False
        self._version, self._at = version, now
        return True

    def reset(self) -> None:
        """The next drawing is due at once."""
        self._version, self._at = -1, 0.0
