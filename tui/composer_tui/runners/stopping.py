"""Ending a set of processes that may not want to end."""

import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil

from composer_tui.runners.processes import running

LINGER_SECONDS = 1.0  # for what a leader that has gone leaves behind, before the next stage
_LOOK_SECONDS = 0.02

Find = Callable[[], list[psutil.Process]]


class Stage(NamedTuple):
    """Send ``number`` (``None``: nothing) and wait so long for the processes to go."""

    number: signal.Signals | None
    leader_only: bool
    seconds: float


class Stopped(NamedTuple):
    """``sent`` is the last signal that was needed; ``left`` still run after all stages."""

    sent: signal.Signals | None
    left: list[psutil.Process]


def stop_processes(find: Find, leader: psutil.Process | None, stages: Sequence[Stage]) -> Stopped:
    """Goes through the stages until ``find`` finds nobody, and nobody it found before runs.

    A stage for the leader alone is left out when there is none, and over soon after it has gone.
    """
    known = find()
    sent: signal.Signals | None = None
    for stage in stages:
        if stage.leader_only and leader is None:
            continue
        if not known:
            break
        sent = stage.number or sent
        known = _run_stage(stage, leader, known, find)
    return Stopped(sent, known)


def _run_stage(
    stage: Stage, leader: psutil.Process | None, known: list[psutil.Process], find: Find
) -> list[psutil.Process]:
    """Who is left after the stage. In a stage for all, whoever appears meanwhile gets it too."""
    targets = [leader] if stage.leader_only and leader is not None else known
    _send(stage.number, targets)
    if stage.seconds <= 0:
        return known
    deadline = time.monotonic() + stage.seconds
    while True:
        known = running(known)
        if not known:
            known = find()
            if not known:
                return []
            if not stage.leader_only:
                _send(stage.number, known)
        now = time.monotonic()
        if now >= deadline:
            return _all_of(known, find())
        if stage.leader_only and leader is not None and not running([leader]):
            deadline = min(deadline, now + LINGER_SECONDS)
            leader = None
        time.sleep(_LOOK_SECONDS)


def _all_of(known: list[psutil.Process], found: list[psutil.Process]) -> list[psutil.Process]:
    return running({process.pid: process for process in (*known, *found)}.values())


def _send(number: signal.Signals | None, processes: list[psutil.Process]) -> None:
    if number is None:
        return
    for process in processes:
        try:
            process.send_signal(number)  # psutil looks at the start time first
        except psutil.Error:
            continue  # gone, or not ours to end: `left` will tell
