"""What screens ask of the app, and what workers tell it."""

from textual.message import Message

from composer_engine.config import RunConfig
from composer_tui.runners.stop import Stop
from composer_tui.runs.store import RunSummary


class LaunchAsked(Message):
    """Launch this run on this machine, and show it."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config


class WatchAsked(Message):
    """Show a run, live or ended."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id


class StopAsked(Message):
    """Ask a person whether, and how, to stop a run."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id


class ReplayAsked(Message):
    """Play a recorded run again, ``speed`` times as fast as it was."""

    def __init__(self, run_id: str, speed: float) -> None:
        super().__init__()
        self.run_id = run_id
        self.speed = speed


class StopEnded(Message):
    """A stop was carried through, well or not: it says itself which."""

    def __init__(self, ended: Stop) -> None:
        super().__init__()
        self.ended = ended


class RunsListed(Message):
    """The runs folder was read."""

    def __init__(self, runs: list[RunSummary]) -> None:
        super().__init__()
        self.runs = runs
