"""The rows of a run: steps, their times, and one `Series` a metric.

Times are unix seconds in float64; steps are stored as runs of neighbours, so a million of them
cost a few bytes.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import overload

from composer_tui.runs.series import Series

MAX_SERIES = 512  # a stream that invents names must not eat the memory


class StepColumn(Sequence[int]):
    """Step numbers that only rise. Runs of neighbours are stored as their first row and step."""

    __slots__ = ("_length", "_rows", "_steps")

    def __init__(self) -> None:
        self._rows: array[int] = array("q")
        self._steps: array[int] = array("q")
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError("there is no such row")
        run = bisect_right(self._rows, index) - 1
        return self._steps[run] + index - self._rows[run]

    def __iter__(self) -> Iterator[int]:
        rows = [*self._rows, self._length]
        for step, (row, end) in zip(self._steps, pairwise(rows), strict=True):
            yield from range(step, step + end - row)

    def extend(self, steps: Sequence[int]) -> None:
        """Appends steps, each greater than the one before."""
        expected = self[-1] + 1 if self._length else None
        contiguous = steps and steps[-1] - steps[0] == len(steps) - 1
        for offset, step in enumerate(steps[:1] if contiguous else steps):
            if step != expected:
                self._rows.append(self._length + offset)
                self._steps.append(step)
            expected = step + 1
        self._length += len(steps)

    def truncate(self, length: int) -> None:
        self._length = min(self._length, length)
        keep = bisect_left(self._rows, self._length)
        del self._rows[keep:], self._steps[keep:]

    def row_of(self, step: int) -> int:
        """The first row whose step is ``step`` or later; ``len(self)`` when there is none."""
        run = bisect_right(self._steps, step) - 1
        if run < 0:
            return 0
        end = self._rows[run + 1] if run + 1 < len(self._rows) else self._length
        return min(self._rows[run] + step - self._steps[run], end)


Columns = Mapping[str, Sequence[float | None]]


class StepTable:
    """Steps, their times, and one `Series` a metric; every column is equally long.

    Steps only rise from row to row. ``times`` are unix seconds.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """``names`` are there, and first, from the start; others join as they appear.

        Names beyond `MAX_SERIES` are left out, and as many of them remembered in ``left_out``.
        """
        self.steps = StepColumn()
        self.times: array[float] = array("d")
        self.left_out: set[str] = set()
        self.series: dict[str, Series] = {name: Series() for name in names}

    def __len__(self) -> int:
        return len(self.steps)

    def extend(self, steps: Sequence[int], times: Sequence[float], columns: Columns) -> None:
        """Appends rows; ``columns`` are as long as ``steps``, a series without one gets NaN.

        A step that comes again, as it does after a resume, removes itself and all after it first.
        """
        begin = 0
        for i in self._breaks(steps):
            self._append_slice(steps, times, columns, begin, i)
            self.truncate(self.steps.row_of(steps[i]))
            begin = i
        self._append_slice(steps, times, columns, begin, len(steps))

    def merge(self, steps: Sequence[int], times: Sequence[float], columns: Columns) -> None:
        """Puts rows that come late in their places, unless their step is there already.

        O(rows from the first place on), for all of them together.
        """
        if not steps:
            return
        row = self.steps.row_of(min(steps))
        there = self.steps[row:]
        taken = set(there)
        order = dict(zip(there, range(len(there)), strict=True))
        order |= {step: len(there) + i for i, step in enumerate(steps) if step not in taken}
        merged = sorted(order)
        places = [order[step] for step in merged]
        late = [None] * len(steps)
        merged_columns: dict[str, Sequence[float | None]] = {}
        for name in self.series | dict.fromkeys(columns):
            series = self.series.get(name)
            before = series.values(row, len(self)) if series else [None] * len(there)
            column = [*before, *columns.get(name, late)]
            merged_columns[name] = [column[place] for place in places]
        all_times = [*self.times[row:], *times]
        self.truncate(row)
        self._append(merged, [all_times[place] for place in places], merged_columns)

    def truncate(self, length: int) -> None:
        """Forgets rows from ``length`` on."""
        if length >= len(self):
            return
        self.steps.truncate(length)
        del self.times[length:]
        for series in self.series.values():
            series.truncate(length)

    def _breaks(self, steps: Sequence[int]) -> list[int]:
        """Where a step does not follow the one before it."""
        if not steps:
            return []
        first_breaks = len(self) > 0 and steps[0] <= self.steps[-1]
        found = [0] if first_breaks else []
        if list(steps) != list(range(steps[0], steps[0] + len(steps))):
            found += [i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]]
        return found

    def _append_slice(
        self, steps: Sequence[int], times: Sequence[float], columns: Columns, i0: int, i1: int
    ) -> None:
        if i0 == i1:
            return
        if i1 - i0 < len(steps):
            columns = {name: column[i0:i1] for name, column in columns.items()}
        self._append(steps[i0:i1], times[i0:i1], columns)

    def _append(self, steps: Sequence[int], times: Sequence[float], columns: Columns) -> None:
        if not steps:
            return
        for name in columns:
            if name in self.series:
                continue
            if len(self.series) < MAX_SERIES:
                self.series[name] = Series(missing=len(self))
            elif len(self.left_out) < MAX_SERIES:
                self.left_out.add(name)
        for name, series in self.series.items():
            if name in columns:
                series.extend(columns[name])
            else:
                series.extend_missing(len(steps))
        self.steps.extend(steps)
        self.times.extend(times)
