"""Numbers as a person reads them: the same everywhere, on screen and in a shell."""

import math

DASH = "—"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_KIB = 1024


def number(value: float | None) -> str:
    """Four significant digits; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:  # noqa: PLR2004  where plain digits stop being readable
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.4g}" if size < 1e4 else f"{value:.0f}"  # noqa: PLR2004  %g turns to e+04


def duration(seconds: float | None) -> str:
    """``8.2s``, ``3m05s``, ``2h10m``, ``3d04h``; a dash for unknown."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    seconds = max(0.0, seconds)
    if seconds < 10:  # noqa: PLR2004  tenths matter only there
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02d}h"


def memory(count: float | None) -> str:
    """Binary units with their names: ``512 B``, ``1.2 GiB``; a dash for unknown."""
    if count is None:
        return DASH
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < _KIB or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIB
    raise AssertionError
