"""A series as pixel columns: which points are shown, in which buckets, smoothed how.

All of it costs the same for a hundred points and for a million: the work is per column.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from composer_tui.runs.series import Series, bucket_for

SMOOTHINGS = (0.0, 0.6, 0.9, 0.97, 0.99)
_LEAST_DOMAIN = 12
_LEAST_SPAN = 8

Values = list[float | None]


class View(NamedTuple):
    """What a person chose: the last ``span`` points (0: all), smoothing 0..1, a logarithmic axis.

    ``live``: more points will come, so a little room is kept for them on the right.
    """

    span: int = 0
    smoothing: float = 0.0
    log: bool = False
    live: bool = False

    def smoother(self) -> "View":
        """The next smoothing; after the strongest comes none."""
        later = [s for s in SMOOTHINGS if s > self.smoothing]
        return self._replace(smoothing=later[0] if later else 0.0)

    def rougher(self) -> "View":
        """The smoothing before; before none comes the strongest."""
        earlier = [s for s in SMOOTHINGS if s < self.smoothing]
        return self._replace(smoothing=earlier[-1] if earlier else SMOOTHINGS[-1])

    def zoomed_in(self, points: int) -> "View":
        """Half as many of the ``points`` there are."""
        shown = min(self.span or points, points)
        return self._replace(span=max(_LEAST_SPAN, shown // 2))

    def zoomed_out(self, points: int) -> "View":
        """Twice as many, and all of them once they fit."""
        span = self.span * 2
        return self._replace(span=0 if span >= points else span)


class Curve(NamedTuple):
    """Values per pixel column. ``start`` and ``stop`` are the indices of the points shown.

    ``gaps`` are the pixel columns of buckets without a single value, ``last_column`` is where the
    newest point stands, ``average`` is empty when nothing is smoothed.
    """

    start: int
    stop: int
    low: Values
    high: Values
    mean: Values
    average: Values
    gaps: list[int]
    last_column: int


def curve(series: Series, columns: int, view: View) -> Curve:
    """The part of the series that the view shows, on ``columns`` pixel columns."""
    stop = len(series)
    whole = not 0 < view.span < stop
    points = stop if whole else view.span
    # Buckets begin at multiples of their size, so up to two more of them touch a part.
    bucket = bucket_for(points, columns if whole else columns - 2)
    first = 0 if whole else (stop - points) // bucket
    used = -(-stop // bucket) - first
    envelope = series.envelope(first * bucket, bucket, used)
    domain = _domain(used, columns, bucket, live=view.live and whole)
    spread = _Spread(used, domain, columns)
    average: Values = []
    if view.smoothing:
        average = spread.values(_average(series, first, used, bucket, view.smoothing))
    return Curve(
        first * bucket,
        stop,
        spread.values(envelope.low),
        spread.values(envelope.high),
        spread.values(envelope.mean),
        average,
        [spread.column(i) for i, mean in enumerate(envelope.mean) if mean is None],
        spread.column(used - 1) if used else 0,
    )


def smoothed(means: Sequence[float | None], counts: Sequence[int], smoothing: float) -> Values:
    """The debiased exponential moving average after each bucket of ``counts`` points.

    For buckets of one point it is the textbook average; a bucket of k points decays by
    ``smoothing ** k`` and counts as k points at its mean. A bucket without a value is skipped.
    """
    total = weight = 0.0
    found: Values = []
    for mean, count in zip(means, counts, strict=True):
        if mean is None:
            found.append(None)
            continue
        decay = smoothing**count
        total = total * decay + (1 - decay) * mean
        weight = weight * decay + (1 - decay)
        found.append(total / weight)
    return found


def last_average(series: Series, smoothing: float) -> float | None:
    """The moving average at the newest value; None for a series without values."""
    lead = _lead(smoothing)
    start = max(0, len(series) - lead)
    values = [v for v in series.values(start, len(series)) if not math.isnan(v)]
    return smoothed(values, [1] * len(values), smoothing)[-1] if values else None


def _lead(smoothing: float) -> int:
    """How many points back an average still remembers more than two percent."""
    return math.ceil(4 / (1 - smoothing))


def _average(series: Series, first: int, used: int, bucket: int, smoothing: float) -> Values:
    """Averages of the buckets shown, begun far enough before them to have forgotten its start."""
    lead = min(first, -(-_lead(smoothing) // bucket))
    means = series.envelope((first - lead) * bucket, bucket, used + lead).mean
    counts = [bucket] * len(means)
    if counts:
        counts[-1] = len(series) - (first + used - 1) * bucket
    return smoothed(means, counts, smoothing)[lead:]


def _domain(used: int, columns: int, bucket: int, *, live: bool) -> int:
    """How many buckets the width stands for."""
    if not live:
        return used
    if bucket > 1:
        return columns
    size = _LEAST_DOMAIN
    while size < used:
        size += size // 2
    return min(size, columns)


class _Spread(NamedTuple):
    """``used`` buckets on the part of ``columns`` pixel columns that a ``domain`` gives them."""

    used: int
    domain: int
    columns: int

    def column(self, index: int) -> int:
        if self.domain <= 1:
            return 0
        return int(index * (self.columns - 1) / (self.domain - 1) + 0.5)

    def values(self, values: Sequence[float | None]) -> Values:
        """A value for each pixel column, on straight lines between the buckets' own columns."""
        if self.domain == self.columns:
            return [*values, *[None] * (self.columns - self.used)]
        found: Values = [None] * self.columns
        before: tuple[int, float] | None = None
        for index, value in enumerate(values):
            if value is None:
                before = None
                continue
            column = self.column(index)
            found[column] = value
            if before is not None:
                start, from_value = before
                slope = (value - from_value) / (column - start)
                for between in range(start + 1, column):
                    found[between] = from_value + slope * (between - start)
            before = column, value
        return found
