"""Columns of numbers that stay cheap to draw, however long a run becomes.

A `Series` keeps every value and, above them, a pyramid: entry i of level k sums up the values
``[i * 16**k, (i + 1) * 16**k)`` as low, high, mean and how many were there. A chart asks for an
envelope and reads a few entries a column. Low and high are kept, never sampled, so a spike of one
step shows at every zoom.

Values are float32 (seven digits: enough to look at, half the memory); NaN means missing, and a
number beyond float32's range is held at its edge. Times are float64, since unix seconds need it.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import NamedTuple, cast, overload

FAN_OUT = 16
MAX_SERIES = 512  # of a table: a stream that invents names must not eat the memory
NICE_MULTIPLES = (1, 2, 3, 4, 6, 8, 12)
_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_GROUPS_AT_ONCE = 1024  # bounds what a bulk load boxes into Python floats


class Envelope(NamedTuple):
    """Low, high and mean of each bucket; ``None`` where a bucket has no value."""

    low: list[float | None]
    high: list[float | None]
    mean: list[float | None]


class _Bucket(NamedTuple):
    low: float
    high: float
    mean: float
    there: int  # how many values are not NaN


_NOTHING = _Bucket(math.nan, math.nan, math.nan, 0)


class _Level:
    """One floor of the pyramid; an entry stands for ``size`` values, ``count`` of them not NaN."""

    __slots__ = ("count", "high", "low", "mean", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.low, self.high, self.mean = array("f"), array("f"), array("f")
        self.count: array[int] = array("B" if size < 1 << 8 else "H" if size < 1 << 16 else "I")

    def append(self, bucket: _Bucket) -> None:
        self.low.append(bucket.low)
        self.high.append(bucket.high)
        self.mean.append(bucket.mean)
        self.count.append(bucket.there)

    def append_missing(self, entries: int) -> None:
        for column in (self.low, self.high, self.mean):
            column.extend(array("f", [math.nan]) * entries)
        self.count.extend(array(self.count.typecode, [0]) * entries)

    def truncate(self, entries: int) -> None:
        del self.low[entries:], self.high[entries:], self.mean[entries:], self.count[entries:]

    def summary(self, first: int, last: int) -> _Bucket:
        """Entries ``[first, last)`` as one."""
        lows, highs = self.low[first:last], self.high[first:last]
        means, counts = self.mean[first:last], self.count[first:last]
        total = sum(counts)
        if total == (last - first) * self.size:
            return _Bucket(min(lows), max(highs), sum(means) / (last - first), total)
        if total == 0:
            return _NOTHING
        there = [i for i, count in enumerate(counts) if count]
        return _Bucket(
            min(lows[i] for i in there),
            max(highs[i] for i in there),
            sum(means[i] * counts[i] for i in there) / total,
            total,
        )


def _summary(values: Sequence[float]) -> _Bucket:
    total = sum(values)
    if math.isfinite(total):
        return _Bucket(min(values), max(values), total / len(values), len(values))
    there = [value for value in values if not math.isnan(value)]
    return _summary(there) if there else _NOTHING


def _merged(parts: Sequence[_Bucket]) -> _Bucket:
    filled = [part for part in parts if part.there]
    if len(filled) <= 1:
        return filled[0] if filled else _NOTHING
    there = sum(part.there for part in filled)
    mean = sum(part.mean * part.there for part in filled) / there
    return _Bucket(min(p.low for p in filled), max(p.high for p in filled), mean, there)


def _number(value: float | None) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number that no float can hold
        return _FLOAT32_MAX if value > 0 else -_FLOAT32_MAX


def to_floats(values: Sequence[float | None]) -> "array[float]":
    """The values as float32: ``None`` becomes NaN, and what is too big the biggest there is."""
    try:
        floats = array("f", cast("Sequence[float]", values))  # None is the TypeError below
    except (TypeError, OverflowError):
        floats = array("f", map(_number, values))
    if math.inf in floats or -math.inf in floats:
        # The value stands first: min and max answer their first argument for NaN.
        floats = array("f", [max(min(value, _FLOAT32_MAX), -_FLOAT32_MAX) for value in floats])
    return floats


class Series:
    """One metric over the rows of a table. Appending costs O(1) a value, drawing O(columns)."""

    __slots__ = ("_levels", "_missing", "_values")

    def __init__(self, missing: int = 0) -> None:
        """A series that begins with ``missing`` rows without a value."""
        self._missing = missing  # rows, while none has a value: nothing is stored for them
        self._values: array[float] = array("f")
        self._levels: list[_Level] = []

    def __len__(self) -> int:
        return self._missing or len(self._values)

    @property
    def empty(self) -> bool:
        """No row has ever had a value."""
        return not self._values

    @property
    def last(self) -> float | None:
        """The newest row's value; ``None`` when it has none, or there is no row."""
        if not self._values or math.isnan(self._values[-1]):
            return None
        return self._values[-1]

    @property
    def newest(self) -> float | None:
        """The value of the newest row that has one, among the last 256."""
        return next((v for v in reversed(self._values[-256:]) if not math.isnan(v)), None)

    def values(self, i0: int, i1: int) -> "array[float]":
        """A copy of rows ``[i0, i1)`` as float32, cut to what there is; NaN means missing."""
        i0, i1 = max(0, i0), min(len(self), max(0, i1))
        if self._missing:
            return array("f", [math.nan]) * max(0, i1 - i0)
        return self._values[i0:i1]

    def extend(self, values: Sequence[float | None]) -> None:
        """Appends rows. ``None`` and NaN mean missing."""
        floats = to_floats(values)
        if not self._values and len(floats):
            if all(map(math.isnan, floats)):
                self._missing += len(floats)
                return
            self._store_missing()
        self._values.extend(floats)
        self._grow()

    def extend_missing(self, rows: int) -> None:
        """Appends rows without a value."""
        if self._values:
            self.extend(array("f", [math.nan]) * rows)
        else:
            self._missing += rows

    def truncate(self, length: int) -> None:
        """Forgets rows from ``length`` on."""
        self._missing = min(self._missing, length)
        del self._values[length:]
        for level in self._levels:
            level.truncate(length // level.size)

    def envelope(self, start: int, bucket: int, columns: int) -> Envelope:
        """Low, high and mean of the buckets ``[start + c * bucket, start + (c + 1) * bucket)``.

        O(columns) whatever the length, when ``bucket`` comes from `bucket_for` and ``start`` is a
        multiple of it; a few times that otherwise. Raises ValueError for a negative start or a
        bucket below 1.
        """
        if start < 0 or bucket < 1:
            raise ValueError(f"no bucket of {bucket} rows from row {start}")
        low: list[float | None] = [None] * columns
        high, mean = low.copy(), low.copy()
        end = len(self._values)
        depth = self._depth(start, bucket)
        for column in range(columns):
            first = start + column * bucket
            if first >= end:
                break
            last = first + bucket
            found = self._entries(depth, first, last) if last <= end else self._range(first, end)
            if found.there:
                low[column], high[column], mean[column], _ = found
        return Envelope(low, high, mean)

    def _store_missing(self) -> None:
        """From the first value on, rows are stored one by one."""
        rows, self._missing = self._missing, 0
        self._values = array("f", [math.nan]) * rows
        size = FAN_OUT
        while rows >= size:
            level = _Level(size)
            level.append_missing(rows // size)
            self._levels.append(level)
            size *= FAN_OUT

    def _grow(self) -> None:
        """Completes each level as far as the values reach."""
        below, depth = len(self._values), 0
        while below >= FAN_OUT:
            if depth == len(self._levels):
                self._levels.append(_Level(FAN_OUT ** (depth + 1)))
            level = self._levels[depth]
            first, last = len(level.low), below // FAN_OUT
            if first == last:
                return
            if depth == 0:
                self._absorb(level, first * FAN_OUT, last * FAN_OUT)
            else:
                for i in range(first * FAN_OUT, last * FAN_OUT, FAN_OUT):
                    level.append(self._levels[depth - 1].summary(i, i + FAN_OUT))
            below, depth = last, depth + 1

    def _absorb(self, level: _Level, first: int, last: int) -> None:
        """Adds values ``[first, last)``, a whole number of groups, to the lowest level."""
        groups = zip(*[iter(self._values[first:last])] * FAN_OUT, strict=True)
        while some := list(islice(groups, _GROUPS_AT_ONCE)):
            totals = list(map(sum, some))
            if not math.isfinite(sum(totals)):
                for group in some:
                    level.append(_summary(group))
                continue
            level.low.extend(map(min, some))
            level.high.extend(map(max, some))
            level.mean.extend([total / FAN_OUT for total in totals])
            level.count.frombytes(bytes([FAN_OUT]) * len(some))

    def _depth(self, start: int, bucket: int) -> int:
        """How high in the pyramid buckets of this size and place are still whole entries."""
        depth, size = 0, FAN_OUT
        while depth < len(self._levels) and bucket % size == 0 and start % size == 0:
            depth, size = depth + 1, size * FAN_OUT
        return depth

    def _entries(self, depth: int, first: int, last: int) -> _Bucket:
        """Rows ``[first, last)``, whole entries of level ``depth`` (0: the values themselves)."""
        size = FAN_OUT**depth
        if (last - first) // size > FAN_OUT:
            return self._range(first, last)
        if depth == 0:
            return _summary(self._values[first:last])
        return self._levels[depth - 1].summary(first // size, last // size)

    def _range(self, first: int, last: int) -> _Bucket:
        """Rows ``[first, last)``: fine entries at the edges, coarse ones between."""
        parts: list[_Bucket] = []
        while first < last:
            depth, size = 0, 1
            while (
                depth < len(self._levels)
                and first % (size * FAN_OUT) == 0
                and first + size * FAN_OUT <= last
            ):
                depth, size = depth + 1, size * FAN_OUT
            entries = min((last - first) // size, FAN_OUT - first // size % FAN_OUT)
            parts.append(self._entries(depth, first, first + entries * size))
            first += entries * size
        return _merged(parts)


def bucket_for(n: int, columns: int) -> int:
    """The smallest nice bucket with which ``n`` rows fit in ``columns``.

    Sizes are {1, 2, 3, 4, 6, 8, 12} * 16**k, so a chart's buckets stay the same, and its picture
    still, while a run grows by a third or more. Raises ValueError when ``columns`` is below 1.
    """
    if columns < 1:
        raise ValueError(f"no chart has {columns} columns")
    size = 1
    while True:
        for multiple in NICE_MULTIPLES:
            if multiple * size * columns >= n:
                return multiple * size
        size *= FAN_OUT


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
