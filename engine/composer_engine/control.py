"""The talk between a container and whoever watches it: asks in, beats out.

It goes through a board of named texts, which may be slow, wrong or gone: nothing that happens
there ends a run, and a call that never comes back is left behind.
"""

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from composer_engine.cloud_spec import ControlAsk, ControlBeat
from composer_engine.failures import complain

_T = TypeVar("_T")
_MOST_SECONDS = 300.0  # so rarely is a board asked that never answers: each call leaves a thread


class Board(Protocol):
    """Texts by name, which other machines see, too. May raise anything, and may hang."""

    def read(self, name: str) -> str | None:
        """None for a name that nobody has written."""
        ...

    def write(self, name: str, text: str) -> None:
        """Over what was there."""
        ...


class Control:
    """Puts a beat each ``beat_seconds`` and reads the ask each ``ask_seconds``, in a thread each.

    ``beat`` is called in its thread. ``ask`` is the last one that could be read, empty before
    there was one. A call of the board that takes more than ``call_seconds`` is given up, and tried
    again; the more of them in a row, the longer each may take.
    """

    def __init__(
        self,
        board: Board,
        name: str,
        beat: Callable[[], ControlBeat],
        *,
        ask_seconds: float = 2.0,
        beat_seconds: float = 10.0,
        call_seconds: float = 10.0,
    ) -> None:
        self.ask = ControlAsk()
        self._board, self._name, self._beat = board, name, beat
        self._ask_seconds, self._beat_seconds = ask_seconds, beat_seconds
        self._call_seconds = call_seconds
        self._closing, self._looked = threading.Event(), threading.Event()
        self._heard = threading.Event()
        self._troubled: set[str] = set()
        self._asks = threading.Thread(target=self._run_asks, name="asks", daemon=True)
        self._beats = threading.Thread(target=self._run_beats, name="beats", daemon=True)

    def start(self, look_seconds: float) -> None:
        """Begin; returns when the ask has been looked for, and after so long in any case."""
        self._asks.start()
        self._looked.wait(look_seconds)
        self._beats.start()

    def hear(self, seconds: float) -> bool:
        """Whether the board has ever been read; waits for that so long at most."""
        return self._heard.wait(seconds)

    def close(self, seconds: float) -> None:
        """Put a last beat; waits so long at most."""
        self._closing.set()
        self._beats.join(seconds)

    def _run_asks(self) -> None:
        hung = 0
        while not self._closing.is_set():
            hung = self._try(self._read_ask, hung)
            self._looked.set()
            self._closing.wait(self._ask_seconds)

    def _run_beats(self) -> None:
        hung = 0
        while not self._closing.is_set():
            hung = self._try(self._put_beat, hung)
            self._closing.wait(self._beat_seconds)
        self._try(self._put_beat, 0)

    def _put_beat(self, seconds: float) -> None:
        text = msgspec.json.encode(self._beat()).decode()
        _within(seconds, lambda: self._board.write(f"{self._name}/beat", text))

    def _read_ask(self, seconds: float) -> None:
        text = _within(seconds, lambda: self._board.read(f"{self._name}/ask"))
        if text is not None:
            self.ask = msgspec.json.decode(text, type=ControlAsk)
        self._heard.set()

    def _try(self, talk: Callable[[float], None], hung: int) -> int:
        """How many in a row have hung by now; ``hung`` are those before this one."""
        kind = talk.__name__
        try:
            talk(min(self._call_seconds * 2.0 ** min(hung, 16), _MOST_SECONDS))
        except Exception as error:  # noqa: BLE001  # whatever a network does must not end a run
            if not self._troubled:
                complain(f"the control board cannot be reached, trying on: {error}")
            self._troubled.add(kind)
            return hung + 1 if isinstance(error, _Hung) else 0
        self._troubled.discard(kind)
        return 0


class _Hung(TimeoutError):  # noqa: N818  # says what the call is
    """A call that has not come back in time. Its thread is left behind."""


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """What it returns, or raises. Raises `_Hung`."""
    results: list[_T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001  # raised again below, by who waits for it
            errors.append(error)

    thread = threading.Thread(target=work, name="control call", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _Hung(f"it did not answer within {seconds:g} s")
    return results[0]
