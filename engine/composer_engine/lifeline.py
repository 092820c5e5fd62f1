"""The engine as a process: who it is, and whether the program that launched it still lives."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from composer_engine.contract import HEARTBEAT_VARIABLE, PROCESS_FILE
from composer_engine.failures import complain

_PR_SET_PDEATHSIG = 1


def write_process_file(folder: Path) -> None:
    """Say which process works in this folder: pid, pgid and start time (unix seconds).

    pid and start time together name a process for ever; a pid alone is reused. Raises `OSError`.
    """
    who = {
        "pid": os.getpid(),
        "start_time": psutil.Process().create_time(),
        "pgid": os.getpgid(0),
    }
    temporary = folder / (PROCESS_FILE + ".new")
    temporary.write_bytes(msgspec.json.encode(who))
    temporary.replace(folder / PROCESS_FILE)


def die_with_parent() -> None:
    """End at once when the process that started us does: torchrun's workers lead their own groups.

    Linux alone can do that; elsewhere a torchrun that was killed leaves its workers.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def follow_parent(request_stop: Callable[[str], None]) -> None:
    """Ask for a stop when the launching program is gone. Does nothing without a heartbeat.

    The pipe whose read end `HEARTBEAT_VARIABLE` names ends when the last holder of its write end
    does. A child that inherited the write end can hide that, so on Linux the kernel is asked as
    well. Its signal comes when the launching *thread* ends, too, so it only makes us look; and it
    is not SIGTERM, which together with the pipe's end would count as a second, impatient stop.
    """
    heartbeat = os.environ.pop(HEARTBEAT_VARIABLE, "")
    if not heartbeat.isdecimal():
        return
    parent = os.getppid()

    def look(*_: object) -> None:
        if os.getppid() != parent:
            request_stop("the program that launched the run is gone")

    if sys.platform == "linux":
        signal.signal(signal.SIGUSR1, look)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
        look()  # it may have died before prctl could see it

    def wait_for_the_end() -> None:
        try:
            while os.read(int(heartbeat), 4096):
                pass
        except OSError as error:
            complain(f"no heartbeat: {error.strerror}")
            return
        request_stop("the program that launched the run is gone")

    os.set_inheritable(int(heartbeat), False)
    threading.Thread(target=wait_for_the_end, name="heartbeat", daemon=True).start()
