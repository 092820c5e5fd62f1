"""What is written into a run's stream when its engine died without saying why."""

import signal
from pathlib import Path
from typing import NamedTuple

from composer_engine.protocol import FailureKind, RunFailed
from composer_tui.runs.words import LOST

_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS}
)
_NO_STATUS = "its exit status is unknown, because another program launched it"


class Death(NamedTuple):
    """What is known of an engine's end.

    ``status`` is its exit status, negative for a signal, ``None`` when it is not our child.
    ``out_of_memory``: the kernel killed a process of our control group for memory meanwhile.
    ``stopped_with`` names the signal of a stop that ended it, or is ''.
    """

    status: int | None
    out_of_memory: bool = False
    stopped_with: str = ""


def last_word(death: Death, log: list[str]) -> RunFailed:
    """The terminal event for such an end; ``log`` is the evidence, its newest lines."""
    kind, message, hint = _verdict(death, log)
    return RunFailed(kind=kind, message=message, hint=hint, detail="\n".join(log))


def oom_kills(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many processes of our control group the kernel has killed for want of memory.

    Where the group has no count, as at the root of a version 2 hierarchy, it is the count of the
    whole machine. ``None`` where the kernel does not say at all.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = [f"{groups}{path}/memory.events"]
        elif "memory" in controllers.split(","):
            # In a container the path is often the host's, and the mount the container's own.
            at = f"{groups}/memory"
            names = [f"{at}{path}/memory.oom_control", f"{at}/memory.oom_control"]
        else:
            continue
        for name in names:
            if (count := _count(Path(name))) is not None:
                return count
    return _count(proc / "vmstat")


def _count(path: Path) -> int | None:
    """The ``oom_kill`` of a file of names and numbers."""
    try:
        fields = dict(entry.split(maxsplit=1) for entry in path.read_text().splitlines())
        return int(fields["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


def _verdict(death: Death, log: list[str]) -> tuple[FailureKind, str, str]:
    status = death.status
    if death.stopped_with:
        return (
            "killed",
            f"the run was stopped with {death.stopped_with} before it had saved",
            f"{LOST}; a graceful stop with more time saves it",
        )
    known = _known_failure(log)
    if status is None:
        traced = any("Traceback (most recent call last)" in line for line in log)
        return (
            "engine" if traced else "killed",
            f"the engine ended without a word; {_NO_STATUS}",
            f"{known}; {LOST}" if known else LOST,
        )
    if status >= 0:
        return (
            "engine",
            f"the engine ended without a word, with exit status {status}",
            known or "the last lines of log.txt say more",
        )
    return _of_signal(-status, out_of_memory=death.out_of_memory)


def _known_failure(log: list[str]) -> str:
    """What the log shows that others had before, and what mends it; '' for nothing known."""
    from composer_tui.cloud.known_failures import diagnose

    known = diagnose("\n".join(log), "local")
    return f"{known.what}: {known.fix}" if known else ""


def _of_signal(number: int, *, out_of_memory: bool) -> tuple[FailureKind, str, str]:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number in _CRASHES:
        return (
            "engine",
            f"the engine crashed with {name}",
            "a library crashed, not Python: log.txt has the stack",
        )
    if number == signal.SIGKILL and out_of_memory:
        return (
            "oom",
            "the kernel killed the engine, because this machine's memory was full",
            f"raise optimizer.micro_batches, or lower rollout.prompts_per_step; {LOST}",
        )
    hint = LOST
    if number == signal.SIGKILL:
        hint = (
            "the kernel's out-of-memory killer is the usual cause, though no count of its kills "
            f"rose here (dmesg knows), or somebody killed it; {LOST}"
        )
    return "killed", f"the engine was killed by {name}", hint
