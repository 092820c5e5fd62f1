"""What containers have cost: pure arithmetic in Decimal."""

from collections.abc import Iterable, Mapping
from decimal import Decimal

from composer_tui.cloud.wire import Container

_HOUR_SECONDS = 3600
_MILLIS = 1000
_SMALLEST = Decimal("0.000001")


def spent_usd(
    usd_per_hour: Decimal | None, containers: Iterable[Container], now: float
) -> Decimal | None:
    """From each container's start to ``now``; None where the price is not known.

    One that has not started has cost nothing, and a clock that is behind makes nothing cheaper
    than nothing.
    """
    if usd_per_hour is None:
        return None
    starts = (box.started_at for box in containers if box.started_at is not None)
    total = sum((_cost(usd_per_hour, now - start) for start in starts), Decimal(0))
    return total.quantize(_SMALLEST)


def _cost(usd_per_hour: Decimal, seconds: float) -> Decimal:
    return usd_per_hour * Decimal(max(0, round(seconds * _MILLIS))) / (_MILLIS * _HOUR_SECONDS)


class Meter:
    """What the containers of one app cost until each was seen to be gone. Times: unix seconds."""

    def __init__(self, usd_per_hour: Decimal | None, containers: Iterable[Container] = ()) -> None:
        self._usd_per_hour = usd_per_hour
        self._live: dict[str, Container] = {box.container_id: box for box in containers}
        self._total = Decimal(0)

    def costs(self, usd_per_hour: Decimal | None) -> None:
        """From here on what runs is counted at this price, from its start."""
        self._usd_per_hour = usd_per_hour

    def saw(self, containers: Iterable[Container], now: float) -> None:
        """A list of those that live now: what is no longer on it has cost its share."""
        live: Mapping[str, Container] = {box.container_id: box for box in containers}
        over = [box for container_id, box in self._live.items() if container_id not in live]
        self._total += spent_usd(self._usd_per_hour, over, now) or 0
        self._live = dict(live)

    def total(self, now: float) -> Decimal | None:
        """None where the price is not known."""
        running = spent_usd(self._usd_per_hour, self._live.values(), now)
        return None if running is None else self._total + running
