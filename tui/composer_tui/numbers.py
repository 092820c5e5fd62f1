"""Numbers as people read them: a few digits, a unit, and ``missing`` for what is not known."""

import math
import time
from decimal import Decimal

DASH = "—"
_MINUTE = 60
_HOUR = 3600
_DAY = 86_400
_KIB = 1024
_CENT = Decimal("0.01")


def known(value: float | None) -> float | None:
    """None for None and for anything that is not finite."""
    return value if value is not None and math.isfinite(value) else None


def number(value: float | None, missing: str = DASH) -> str:
    """At most eight characters: ``1.214``, ``41.2k``, ``1.9e-5``."""
    value = known(value)
    if value is None:
        return missing
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:  # noqa: PLR2004 - the thresholds are the function
        return _exponent(value)
    for limit, digits in ((0.01, 5), (0.1, 4), (10, 3), (100, 2), (1000, 1), (10_000, 0)):
        if size < limit:
            return f"{value:.{digits}f}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "G")):
        if size < limit:
            return f"{value / limit * 1000:.4g}{unit}"
    return _exponent(value)


def _exponent(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def count(value: int) -> str:
    """``1,204``, and from a million on ``1.2M``."""
    return number(value) if value >= 1_000_000 else f"{value:,}"  # noqa: PLR2004


def memory(size: int | None, missing: str = DASH) -> str:
    """``61.2 GiB``, ``512 MiB``."""
    if size is None:
        return missing
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < _KIB:
            return f"{value:.1f} {unit}" if unit == "GiB" else f"{value:.0f} {unit}"
        value /= _KIB
    return f"{value:.1f} TiB"


def dollars(amount: Decimal | None, missing: str = "?") -> str:
    """``$4.12``, ``$1,204.50``; less than a cent is ``<$0.01``, for it is not nothing."""
    if amount is None:
        return missing
    if 0 < amount < _CENT:
        return f"<${_CENT}"
    return f"${amount:,.2f}"


def duration(seconds: float | None, missing: str = DASH) -> str:
    """``46ms``, ``4.1s``, ``42s``, ``17m31s``, ``2h05m``, ``3d04h``."""
    seconds = known(seconds)
    if seconds is None:
        return missing
    if 0 < seconds < 0.1:  # noqa: PLR2004
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:  # noqa: PLR2004
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def age(seconds: float) -> str:
    """One unit: ``now``, ``42s``, ``18m``, ``7h``, ``3d``."""
    whole = int(seconds)
    if whole < 1:
        return "now"
    for limit, size, unit in ((_MINUTE, 1, "s"), (_HOUR, _MINUTE, "m"), (_DAY, _HOUR, "h")):
        if whole < limit:
            return f"{whole // size}{unit}"
    return f"{whole // _DAY}d"


def clock(moment: float | None) -> str:
    """Local ``16:42:07``; eight spaces where the time is not known."""
    if moment is None:
        return " " * 8
    return time.strftime("%H:%M:%S", time.localtime(moment))


def smoothing_name(smoothing: float) -> str:
    """``.97`` of 0.97; ``off`` of 0."""
    return f"{smoothing:g}".lstrip("0") if smoothing else "off"
