"""From a run's folder to a handle that can end it."""

from composer_tui.runners.base import RunHandle
from composer_tui.runners.cloud import CloudFor, CloudRun
from composer_tui.runners.local import LocalRunner
from composer_tui.runners.replay import ReplayRun
from composer_tui.runs.folder import DamagedFolder, RunFolder


def attach(local: LocalRunner, folder: RunFolder, cloud_for: CloudFor | None = None) -> RunHandle:
    """A handle of any run, by the target that its record names.

    A damaged one is on Modal if its folder names an app, and else taken as local. Without
    ``cloud_for`` a run on Modal can be looked at, and neither followed nor stopped.
    """
    try:
        target = folder.read_record().target
    except DamagedFolder:
        target = "modal" if folder.cloud_path.exists() else "local"
    if target == "replay":
        return ReplayRun.attached(folder)
    if target in ("modal", "rehearsal"):
        return CloudRun(folder, cloud_for)
    return local.attach(folder)
