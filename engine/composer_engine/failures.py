"""Whose fault it is and what to do: every way a run can fail, mapped once to its last event."""

import contextlib
import re
import sys
import traceback
from collections.abc import Sequence

import msgspec

from composer_engine.config import ConfigError
from composer_engine.given import as_given
from composer_engine.protocol import FailureKind, RunFailed

_LISTED = 20  # problems named one by one; the rest are counted
_TRACEBACK_LINES = 30
_OOM_HINT = (
    "raise optimizer.micro_batches, set model.gradient_checkpointing = true, "
    "or lower rollout.max_completion_tokens"
)
# How torch and the drivers below it word a failed allocation when they raise a plain RuntimeError.
_OOM_WORDS = re.compile(
    r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_NOT_SUPPORTED|PT_DEVMEM Allocation failed",
    re.IGNORECASE,
)


class RunError(Exception):
    """A failure with a name. ``hint`` says what to do about it, in one line."""

    kind: FailureKind = "engine"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SetupError(RunError):
    """What the run was given cannot be used: a model, a folder, a package that is missing."""

    kind: FailureKind = "config"


class DataError(SetupError):
    """Rows that cannot be used. ``problems`` has them all, the message names the first 20."""

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        self.problems = tuple(problems)
        lines = [*self.problems[:_LISTED]]
        if len(self.problems) > _LISTED:
            lines.append(f"... and {len(self.problems) - _LISTED} more")
        if len(self.problems) > 1:
            lines.insert(0, f"{len(self.problems)} problems in the data:")
        super().__init__("\n".join(lines), hint)


class NonFiniteError(RunError):
    """NaN or infinity that the run could not get past. The weights hold no trace of it."""

    kind: FailureKind = "non_finite"


def complain(message: str) -> None:
    """A line on stderr, the run's log. A disk that is full does not make this an error, too."""
    with contextlib.suppress(OSError):
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def failure_of(error: BaseException) -> RunFailed:
    """The last event of a run that ``error`` ended, with paths as they were given."""
    found = _failure_of(error)
    message, hint, detail = map(as_given, (found.message, found.hint, found.detail))
    return msgspec.structs.replace(found, message=message, hint=hint, detail=detail)


def _failure_of(error: BaseException) -> RunFailed:
    if isinstance(error, ConfigError):
        first, *others = map(str, error.problems)
        more = f" (and {len(others)} more)" if others else ""
        return RunFailed(kind="config", message=first + more, detail="\n".join(others))
    if isinstance(error, RunError):
        first, _, rest = str(error).partition("\n")
        return RunFailed(kind=error.kind, message=first, hint=error.hint, detail=rest)
    if is_out_of_memory(error):
        message = "out of memory: " + str(error).partition("\n")[0]
        return RunFailed(kind="oom", message=message, hint=_OOM_HINT, detail=last_lines(error))
    if isinstance(error, KeyboardInterrupt):
        return RunFailed(kind="killed", message="interrupted")
    said = str(error).partition("\n")[0]
    message = type(error).__name__ + (f": {said}" if said else "")
    return RunFailed(kind="engine", message=message, detail=last_lines(error))


def is_out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed on the host or on the accelerator.

    Known by name and words: torch need not be imported, and may be what failed to import.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _OOM_WORDS.search(str(error)) is not None


def last_lines(error: BaseException) -> str:
    """The end of its traceback."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(lines[-_TRACEBACK_LINES:])
