"""From a run's folder to a handle that can end it."""

from composer_tui.runners.base import RunHandle
from composer_tui.runners.local import LocalRunner
from composer_tui.runners.replay import ReplayRun
from composer_tui.runs.folder import DamagedFolder, RunFolder


def attach(local: LocalRunner, folder: RunFolder) -> RunHandle:
    """A handle of any run, by the target that its record names; a damaged one is taken as local."""
    try:
        target = folder.read_record().target
    except DamagedFolder:
        target = "local"
    if target == "replay":
        return ReplayRun.attached(folder)
    return local.attach(folder)
