"""What the follower of a run on Modal says of its work, while a person waits at a terminal."""

from composer_tui.cloud.notebook import NOTE_PREFIX
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.framer import Framer
from composer_tui.runs.log_end import read_log_end
from composer_tui.runs.sanitise import clean
from composer_tui.runs.tail import Tail

_OVER = " is back after "


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


def _notes(lines: list[str]) -> list[str]:
    return [line.removeprefix(NOTE_PREFIX) for line in lines if line.startswith(NOTE_PREFIX)]
