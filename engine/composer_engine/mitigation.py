"""What to change when a run does not fit in memory: one thing at a time, the cheapest first.

What there is to change is `composer_engine.memory.changes`. No torch in here.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from composer_engine.config import RunConfig
from composer_engine.failures import RunError, is_out_of_memory, last_lines
from composer_engine.memory import changes
from composer_engine.protocol import FailureKind

Predict = Callable[[RunConfig], int | None]
"""The peak in bytes that a configuration is predicted to reach; None where nobody knows."""


class Mitigation(NamedTuple):
    """One change: ``config`` is the run with it. ``peak_bytes`` is predicted, if anybody can."""

    field: str
    value: str
    config: RunConfig
    peak_bytes: int | None = None

    @property
    def hint(self) -> str:
        """As a person is told it, in one line."""
        predicted = "" if self.peak_bytes is None else f", predicted peak {_size(self.peak_bytes)}"
        return f"set {self.field} = {self.value}{predicted}"


class OutOfMemory(RunError):  # noqa: N818  # says what happened
    """Memory ran out. The message has the traceback's end below its first line."""

    kind: FailureKind = "oom"

    def __init__(
        self,
        error: BaseException,
        config: RunConfig,
        predict: Predict | None = None,
        processes: int = 1,
    ) -> None:
        said = str(error).partition("\n")[0]
        found = next_mitigation(config, predict, processes)
        hint = (
            found.hint if found else "nothing is left to turn on: a smaller model, or more memory"
        )
        super().__init__(f"out of memory: {said}\n{last_lines(error)}", hint)


@contextlib.contextmanager
def naming_the_way_out(
    config: RunConfig, predict: Predict | None = None, processes: int = 1
) -> Iterator[None]:
    """Raises `OutOfMemory` for whatever says in its own words that memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(error, config, predict, processes) from error
        raise


def next_mitigation(
    config: RunConfig, predict: Predict | None = None, processes: int = 1
) -> Mitigation | None:
    """The first that is not on yet; None when all are. ``predict`` is asked for its peak."""
    found = next((Mitigation(*change) for change in changes(config, processes)), None)
    if found is None or predict is None:
        return found
    with contextlib.suppress(MemoryError):  # there may be none left to predict with
        found = found._replace(peak_bytes=predict(found.config))
    return found


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
