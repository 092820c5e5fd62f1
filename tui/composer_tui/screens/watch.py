"""The run that a person looks at."""

from dataclasses import dataclass

from composer_tui.cloud.ledger import CloudRef, known_ref
from composer_tui.runs.cost import AttemptCost, read_costs
from composer_tui.runs.feed import RunFeed
from composer_tui.runs.folder import DamagedFolder, RunFolder, Target


@dataclass
class Watch:
    """A run's folder, what was read of it, and since when there is something to wait for.

    ``launched_at`` is unix seconds. ``ref`` is what the folder said of its app on Modal when it was
    last asked; None for a run that is none, and until it says something. ``costs`` are its
    containers, once it is over.
    """

    folder: RunFolder
    feed: RunFeed
    launched_at: float
    name: str
    target: Target = "local"
    gpu: str = ""
    ref: CloudRef | None = None
    costs: tuple[AttemptCost, ...] = ()

    @classmethod
    def of(cls, folder: RunFolder, now: float) -> "Watch":
        """Begin to read a folder; a damaged record does not matter to its events."""
        try:
            record = folder.read_record()
        except DamagedFolder:
            return cls(folder, RunFeed(folder), now, folder.run_id)
        config = record.config
        gpu = config.modal.gpu[0] if config.modal.gpu else ""
        watch = cls(folder, RunFeed(folder), record.created_at, config.name, record.target, gpu)
        watch.renew()
        return watch

    def renew(self) -> None:
        """Read again which app the run is; nothing for a run that is none, or is over."""
        if self.target not in {"modal", "rehearsal"} or (self.ref is not None and self.ref.ended):
            return
        try:
            self.ref = known_ref(self.folder)
        except DamagedFolder:
            return  # what it said before still holds
        if self.ref.ended:
            self.costs = read_costs(self.folder)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.folder.run_id

    @property
    def place(self) -> str:
        """``modal H100``, ``rehearsal``; "" for a run on this machine."""
        if self.target == "modal":
            return f"modal {self.gpu or 'CPU'}"
        return self.target if self.target == "rehearsal" else ""

    def close(self) -> None:
        """Let go of the files."""
        self.feed.close()
