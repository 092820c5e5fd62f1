"""Commits of a volume, in a thread of their own: training never waits for the network."""

import threading
from collections.abc import Callable

from composer_engine.failures import complain

_LAST_TRIES = 5

Commit = Callable[[], object]


class Committer:
    """Commits when asked, every ``period_seconds`` if something changed, and once at the end.

    A commit that fails is a line on stderr and tried again. Any thread may call.
    """

    def __init__(self, commit: Commit, period_seconds: float, retry_seconds: float = 1.0) -> None:
        self._commit, self._period, self._retry = commit, period_seconds, retry_seconds
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._settled = threading.Event()
        self._changed = False
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)
        self._thread.start()

    def touch(self) -> None:
        """Something changed that the next regular commit shall have."""
        self._changed = True

    def request(self) -> None:
        """Commit as soon as may be."""
        self._changed = True
        self._settled.clear()
        self._wanted.set()

    def settle(self, seconds: float) -> bool:
        """Wait for the commit that was requested, so long at most; whether it has been made."""
        return self._settled.wait(seconds)

    def close(self, seconds: float) -> bool:
        """The last commit; whether all that was written is committed. Waits so long at most."""
        self._changed = True
        self._closing.set()
        self._wanted.set()
        self._thread.join(seconds)
        return not self._changed and not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait(self._period)
            self._wanted.clear()
            if self._changed and not self._try():
                self._closing.wait(self._retry)
                self._wanted.set()
        for attempt in range(_LAST_TRIES):
            if not self._changed or self._try():
                return
            if attempt < _LAST_TRIES - 1:
                threading.Event().wait(self._retry)

    def _try(self) -> bool:
        self._changed = False  # before: what changes meanwhile is for the next one
        try:
            self._commit()
        except Exception as error:  # noqa: BLE001  # whatever a network does must not end a run
            self._changed = True
            complain(f"the volume could not be committed, trying again: {error}")
            return False
        self._settled.set()
        return True
