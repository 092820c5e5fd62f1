"""Columns of numbers that stay cheap to draw, however long a run becomes.

A `Series` keeps every value and, above them, a pyramid: entry i of level k sums up the values
``[i * 16**k, (i + 1) * 16**k)`` as low, high, mean and how many were there. A chart asks for an
envelope and reads a few entries a column. Low and high are kept, never sampled, so a spike of one
step shows at every zoom.

Values are float32 (seven digits: enough to look at, half the memory); NaN means missing, and a
number beyond float32's range is held at its edge.
"""

import math
from array import array
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, cast

FAN_OUT = 16
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
