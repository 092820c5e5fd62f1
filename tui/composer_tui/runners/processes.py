"""Which processes of this machine belong to a run."""

import os
from collections.abc import Iterable

import psutil

from composer_tui.runs.folder import ProcessRef

RUN_ID_VARIABLE = "COMPOSER_RUN_ID"
"""Every process of a run has it in its environment, so that one that left the group is found."""

# The kernel counts a start in ticks since boot, and two readers may disagree about the boot.
_START_TOLERANCE_SECONDS = 2.0


def process_ref(pid: int) -> ProcessRef | None:
    """Who has this pid now; ``None`` when nobody does."""
    try:
        start_time = psutil.Process(pid).create_time()
        return ProcessRef(pid=pid, start_time=start_time, pgid=os.getpgid(pid))
    except (psutil.Error, ProcessLookupError):
        return None


def is_alive(ref: ProcessRef, run_id: str = "") -> bool:
    """The process that ``ref`` named still runs; a zombie does not.

    The start time tells it from a later process with the same pid. When the machine's clock was
    set anew, all start times have moved: then the run's id on its command line still tells.
    """
    try:
        process = psutil.Process(ref.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if abs(process.create_time() - ref.start_time) <= _START_TOLERANCE_SECONDS:
            return True
        return bool(run_id) and run_id in process.cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return False  # another user's: the pid has been used again


def running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run, zombies left out."""
    return [process for process in processes if _runs(process)]


def members(ref: ProcessRef | None, run_id: str) -> list[psutil.Process]:
    """Every process of a run that still runs, but not this one or one that it came from.

    That is: the group that the engine leads, all that descend from it, and all that inherited
    the run's id in their environment, which a process that forks twice and takes a session of its
    own still does.
    """
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    if ref is not None and (ref.pid != ref.pgid or _belongs_to_another(ref, run_id)):
        # An engine leads its own group. A group that it did not lead, or whose number has gone to
        # somebody else, is not its own, and nobody in it is ours to end.
        ref = None
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if _in_group(process.pid, ref) or _has_mark(process, run_id):
            found[process.pid] = process
    for process in list(found.values()):
        try:
            found.update((child.pid, child) for child in process.children(recursive=True))
        except psutil.Error:
            continue
    return running(process for pid, process in found.items() if pid not in ours)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _belongs_to_another(ref: ProcessRef, run_id: str) -> bool:
    """The engine is gone, and a later process has its number."""
    if is_alive(ref, run_id):
        return False
    now = process_ref(ref.pgid)
    return now is not None and abs(now.start_time - ref.start_time) > _START_TOLERANCE_SECONDS


def _in_group(pid: int, ref: ProcessRef | None) -> bool:
    try:
        return ref is not None and os.getpgid(pid) == ref.pgid
    except (ProcessLookupError, PermissionError):
        return False


def _has_mark(process: psutil.Process, run_id: str) -> bool:
    try:
        return process.environ().get(RUN_ID_VARIABLE) == run_id
    except (psutil.Error, OSError):
        return False
