"""The run that a person looks at."""

from dataclasses import dataclass

from composer_tui.runs.feed import RunFeed
from composer_tui.runs.folder import DamagedFolder, RunFolder


@dataclass
class Watch:
    """A run's folder, what was read of it, and since when there is something to wait for.

    ``launched_at`` is unix seconds.
    """

    folder: RunFolder
    feed: RunFeed
    launched_at: float
    name: str

    @classmethod
    def of(cls, folder: RunFolder, now: float) -> "Watch":
        """Begin to read a folder; a damaged record does not matter to its events."""
        try:
            record = folder.read_record()
        except DamagedFolder:
            return cls(folder, RunFeed(folder), now, folder.run_id)
        return cls(folder, RunFeed(folder), record.created_at, record.config.name)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.folder.run_id

    def close(self) -> None:
        """Let go of the files."""
        self.feed.close()
