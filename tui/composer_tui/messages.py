"""What screens ask of the app, and what workers tell it."""

from collections.abc import Sequence

from textual.message import Message

from composer_engine.config import ConfigProblem, RunConfig
from composer_tui.cloud.wire import Apps, StopProgress
from composer_tui.runners.base import RunHandle
from composer_tui.runners.stop import Stop
from composer_tui.runs.folder import Target
from composer_tui.runs.stop_mode import StopMode
from composer_tui.runs.store import RunSummary


class LaunchAsked(Message):
    """Launch this run on ``target``, and show it."""

    def __init__(self, config: RunConfig, target: Target = "local") -> None:
        super().__init__()
        self.config = config
        self.target: Target = target


class CloudLaunched(Message):
    """A run on Modal, or a rehearsal, has its folder and is on its way."""

    def __init__(self, handle: RunHandle) -> None:
        super().__init__()
        self.handle = handle


class LaunchRefused(Message):
    """Nothing was launched; why, in a title and a line, and by field where it is one's fault."""

    def __init__(self, title: str, words: str, problems: Sequence[ConfigProblem] = ()) -> None:
        super().__init__()
        self.title = title
        self.words = words
        self.problems = tuple(problems)


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


class KillAsked(Message):
    """Ask a person whether, and how, to stop apps; None: everything that this program launched."""

    def __init__(self, app_ids: Sequence[str] | None) -> None:
        super().__init__()
        self.app_ids = None if app_ids is None else tuple(app_ids)


class AppsListed(Message):
    """Modal was asked for its live apps; ``apps`` says itself when that failed."""

    def __init__(self, apps: Apps) -> None:
        super().__init__()
        self.apps = apps


class AppStopTold(Message):
    """Where the stop of an app is."""

    def __init__(self, progress: StopProgress) -> None:
        super().__init__()
        self.progress = progress


class AppsStopAsked(Message):
    """Stop these apps: a person has confirmed it."""

    def __init__(self, app_ids: Sequence[str], mode: StopMode, grace_seconds: float) -> None:
        super().__init__()
        self.app_ids = tuple(app_ids)
        self.mode: StopMode = mode
        self.grace_seconds = grace_seconds


class LeaseAsked(Message):
    """Extend an app's lease: a person has confirmed it."""

    def __init__(self, app_id: str, minutes: float) -> None:
        super().__init__()
        self.app_id = app_id
        self.minutes = minutes


class LeaseExtended(Message):
    """A lease now ends at ``until`` (unix seconds), or ``words`` say why it does not."""

    def __init__(self, app_id: str, until: float | None, words: str = "") -> None:
        super().__init__()
        self.app_id = app_id
        self.until = until
        self.words = words


class AppsRefreshAsked(Message):
    """Ask Modal for its live apps now."""


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
