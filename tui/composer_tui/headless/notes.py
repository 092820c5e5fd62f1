"""What the follower of a run on Modal says of its work, while a person waits at a terminal."""

from composer_tui.cloud.notebook import NOTE_PREFIX
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.framer import Framer
from composer_tui.runs.log_end import read_log_end
from composer_tui.runs.sanitise import clean
from composer_tui.runs.state import RunState
from composer_tui.runs.tail import Tail
from composer_tui.runs.words import life_word

_OVER = " is back after "
RETRY_SECONDS = 8.0  # so long it may take until it is seen that an attempt will be retried
CLOSING_SECONDS = 2.0  # so long the silence may be between a run's last word and its app's end


class Notes:
    """The follower's own lines in log.txt, whichever program it is in; cleaned for a terminal.

    The first is what it said last, if nothing has come from the run since then.
    """

    def __init__(self, folder: RunFolder) -> None:
        path = folder.log_path
        last = "".join(read_log_end(path, 1))
        self._told = [] if _OVER in last else _notes([last])
        size = path.stat().st_size if path.exists() else 0
        self._tail, self._framer = Tail(path, size), Framer()

    def poll(self) -> list[str]:
        """What is new, without the mark that it bears in the log."""
        told, self._told = self._told, []
        while data := self._tail.read():
            lines = self._framer.feed(data)
            told += _notes([clean(line.decode("utf-8", "replace")) for line in lines])
        return told

    def close(self) -> None:
        """Lets go of the file."""
        self._tail.close()


class Closing:
    """What is said while the app of a run that has ended is seen out; most are gone at once."""

    def __init__(self) -> None:
        self.was_told = False
        self._since: float | None = None

    def look(self, state: RunState, now: float, *, may_go_on: bool = False) -> str:
        """The line to say, once; "" before it is due. ``now``: seconds of a clock that goes on.

        ``may_go_on``: Modal may be about to begin another attempt.
        """
        if not state.ended:
            self._since, self.was_told = None, False
            return ""
        self._since = self._since if self._since is not None else now
        patience = RETRY_SECONDS if may_go_on else CLOSING_SECONDS
        if self.was_told or now - self._since < patience:
            return ""
        self.was_told = True
        return f"{life_word(state.life, state.ended_by)}; making sure that it is gone"


def _notes(lines: list[str]) -> list[str]:
    return [line.removeprefix(NOTE_PREFIX) for line in lines if line.startswith(NOTE_PREFIX)]
