"""The talk between a container and whoever watches it: asks in, beats out.

It goes through a board of named texts, which may be slow, wrong or gone: nothing that happens
there ends a run.
"""

import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from composer_engine.cloud_spec import ControlAsk, ControlBeat
from composer_engine.failures import complain


class Board(Protocol):
    """Texts by name, which other machines see, too. May raise anything."""

    def read(self, name: str) -> str | None:
        """None for a name that nobody has written."""
        ...

    def write(self, name: str, text: str) -> None:
        """Over what was there."""
        ...


class Control:
    """Puts a beat each ``beat_seconds`` and reads the ask each ``ask_seconds``, in one thread.

    ``beat`` is called in that thread. ``ask`` is the last one that could be read, empty before
    there was one.
    """

    def __init__(
        self,
        board: Board,
        name: str,
        beat: Callable[[], ControlBeat],
        *,
        ask_seconds: float = 2.0,
        beat_seconds: float = 10.0,
    ) -> None:
        self.ask = ControlAsk()
        self._board, self._name, self._beat = board, name, beat
        self._ask_seconds = ask_seconds
        self._asks_a_beat = max(1, round(beat_seconds / ask_seconds))
        self._closing, self._looked = threading.Event(), threading.Event()
        self._troubled = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self, look_seconds: float) -> None:
        """Begin; returns when the ask has been looked for, and after so long in any case."""
        self._thread.start()
        self._looked.wait(look_seconds)

    def close(self, seconds: float) -> None:
        """Put a last beat; waits so long at most."""
        self._closing.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        round_ = 0
        while True:
            self._try(self._read_ask)
            self._looked.set()
            if round_ % self._asks_a_beat == 0:
                self._try(self._put_beat)
            round_ += 1
            if self._closing.wait(self._ask_seconds):
                break
        self._try(self._put_beat)

    def _put_beat(self) -> None:
        self._board.write(f"{self._name}/beat", msgspec.json.encode(self._beat()).decode())

    def _read_ask(self) -> None:
        text = self._board.read(f"{self._name}/ask")
        if text is not None:
            self.ask = msgspec.json.decode(text, type=ControlAsk)

    def _try(self, talk: Callable[[], None]) -> None:
        try:
            talk()
        except Exception as error:  # noqa: BLE001  # whatever a network does must not end a run
            if not self._troubled:
                complain(f"the control board cannot be reached, trying on: {error}")
            self._troubled = True
        else:
            self._troubled = False
