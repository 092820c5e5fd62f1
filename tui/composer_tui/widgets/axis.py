"""Where a chart's values and steps stand: ranges that hold still, and labels at round numbers."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

_HELD_WHILE = 2.5  # a range is kept until the data needs less than this part of it
_PADDING = 0.06


class Scale(NamedTuple):
    """A vertical axis from ``low`` to ``high``, in values or (``log``) in their logarithms."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float | None:
        """The value's place on the axis; None where a logarithm does not exist."""
        if not self.log:
            return value
        return math.log10(value) if value > 0 else None

    def pixel(self, value: float | None, pixels: int) -> int | None:
        """The pixel row of a value, 0 at the top; values outside stick to the edge."""
        place = None if value is None else self.place(value)
        if place is None:
            return None
        part = (self.high - place) / (self.high - self.low)
        return min(pixels - 1, max(0, int(part * (pixels - 1) + 0.5)))


def scale_for(values: Iterable[float | None], held: Scale | None, *, log: bool) -> Scale:
    """An axis that shows all values.

    ``held``, the last axis, is answered again while it still fits: an axis that moves with every
    step cannot be read. A logarithmic axis needs a positive value; without one it is linear.
    """
    finite = [v for v in values if v is not None]
    if log and any(v > 0 for v in finite):
        finite = [math.log10(v) for v in finite if v > 0]
    else:
        log = False
    if not finite:
        return held or Scale(0.0, 1.0)
    low, high = min(finite), max(finite)
    if held is not None and held.log == log and held.low <= low and high <= held.high:
        needed = max(high - low, 1e-9 * max(abs(high), 1e-30))
        if held.high - held.low <= _HELD_WHILE * needed:
            return held
    padding = (high - low) * _PADDING or abs(high) * 0.1 or 0.5
    return Scale(low - padding, high + padding, log)


class Tick(NamedTuple):
    """A label and the cell row that it stands on."""

    row: int
    label: str


def ticks(scale: Scale, rows: int) -> list[Tick]:
    """Labels at round values, one every two rows or fewer if that makes two; row 0 is the top."""
    for wanted in (rows // 2, rows, 2 * rows, 4 * rows):
        step = round_step((scale.high - scale.low) / max(2, wanted))
        if scale.log and step < 1:
            return _few_decades(scale, rows)
        found = _ticks(scale, rows, step)
        if len(found) > 1:
            break
    return found


def _ticks(scale: Scale, rows: int, step: float) -> list[Tick]:
    label: Callable[[float], str] = _power if scale.log else _decimals(scale, step)
    found: dict[int, str] = {}
    index = math.ceil(scale.low / step - 1e-9)
    while (value := index * step) <= scale.high + step * 1e-9:
        row = _row(scale, value, rows)
        found.setdefault(row, label(value))
        index += 1
    return [Tick(row, found[row]) for row in sorted(found)]


def _row(scale: Scale, place: float, rows: int) -> int:
    """The cell row in which a curve with four pixels a cell passes a place on the axis."""
    pixel = (scale.high - place) / (scale.high - scale.low) * (rows * 4 - 1) + 0.5
    return min(rows - 1, max(0, int(pixel) // 4))


def _few_decades(scale: Scale, rows: int) -> list[Tick]:
    """A logarithmic axis over less than some decades: its ends and its middle, as they are."""
    places = {0: scale.high, rows - 1: scale.low}
    if rows >= 5:  # noqa: PLR2004 - room for three labels
        places[rows // 2] = (scale.high + scale.low) / 2
    return [Tick(row, _short(10 ** places[row])) for row in sorted(places)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least ``least``."""
    if least <= 0 or not math.isfinite(least):
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1, 2, 2.5, 5, 10):
        if factor * power >= least * (1 - 1e-9):
            return factor * power
    return 10 * power


def _decimals(scale: Scale, step: float) -> Callable[[float], str]:
    largest = max(abs(scale.low), abs(scale.high))
    if largest >= 1e5 or step < 1e-4:  # noqa: PLR2004
        return _short
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:  # noqa: PLR2004
        digits += 1  # a step of 2.5 of its last digit
    return lambda value: f"{value if abs(value) > step / 2 else 0.0:.{digits}f}"


def _power(value: float) -> str:
    return f"1e{round(value)}"


def _short(value: float) -> str:
    text = f"{value:.2g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text
