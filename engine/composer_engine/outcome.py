"""How an attempt in a container ended: its last word where it left none, and what follows."""

import re
import signal
from collections.abc import Sequence

from composer_engine.cloud_spec import ContainerTime
from composer_engine.protocol import FailureKind, RunFailed, RunFinished
from composer_engine.watchdog import Verdict

CONFIG_STATUS = 2
_OUT_OF_MEMORY_STATUS = 137  # as a shell tells SIGKILL; who kills unasked is short of memory
_TORCHRUN_SAYS = re.compile(r"exitcode\s*:\s*(-?\d+)")
# What another attempt may mend: the machine, not the run.
_WORTH_RETRYING: frozenset[FailureKind] = frozenset({"engine", "killed", "preempted", "runner"})


def last_word(status: int, stderr: Sequence[str], ending: Verdict | None) -> RunFailed:
    """For an engine that ended without a terminal event.

    ``status`` is the process's, negative for a signal; ``ending`` is why it was told to end.
    """
    detail = "\n".join(stderr)
    if ending is not None:
        message = f"{ending.reason}; it did not save in time and was ended"
        return RunFailed(kind=ending.kind, message=message, detail=detail)
    said = _status_of_worker(stderr) if status == 1 else None
    status = status if said is None else said
    if status in (-signal.SIGKILL, _OUT_OF_MEMORY_STATUS):
        return RunFailed(
            kind="oom",
            message="the engine was killed, most likely for want of host memory",
            hint="raise modal.memory_mib, or lower what a step holds",
            detail=detail,
        )
    if status < 0:
        message = f"the engine was ended by {_signal_name(-status)}"
        return RunFailed(kind="killed", message=message, detail=detail)
    kind: FailureKind = "config" if status == CONFIG_STATUS else "engine"
    message = f"the engine ended with status {status} and without a word"
    return RunFailed(kind=kind, message=message, detail=detail)


def attempt_words(earlier: Sequence[ContainerTime], retries: int) -> str:
    """What a new attempt says before it begins; "" for the first.

    A container that Modal took away costs none of the ``retries``. Where the run goes on from is
    the engine's to say.
    """
    if not earlier:
        return ""
    crashes = sum(not one.taken_away for one in earlier)
    is_retry = not earlier[-1].taken_away
    which = f"retry {crashes} of {max(crashes, retries)}" if is_retry else "no retry is used up"
    why = earlier[-1].reason or earlier[-1].outcome or "it ended without a word"
    return f"attempt {len(earlier) + 1} ({which}); before: {why}"


def is_worth_retrying(
    last: RunFinished | RunFailed | None, status: int, ending: Verdict | None
) -> bool:
    """Whether a new attempt may end better: after a crash, and after nothing else.

    Not after a mistake in the configuration, out of memory or NaN, which would come again; not
    after a cap, a lease, a limit or a person that ended the run. A container that Modal took away
    ended nothing.
    """
    if isinstance(last, RunFinished) or status == CONFIG_STATUS:
        return False
    if ending is not None and ending.kind != "preempted":
        return False
    return last is None or last.kind in _WORTH_RETRYING


def _status_of_worker(stderr: Sequence[str]) -> int | None:
    """torchrun itself ends with 1; what its worker ended with, it tells on stderr."""
    found = [match[1] for line in stderr if (match := _TORCHRUN_SAYS.search(line))]
    return int(found[-1]) if found else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
