"""The rehearsal's bill: what its containers would have cost. It is play money; nobody pays it.

Rates are US dollars for one unit and hour, by the keys of Modal's own rates API. Times are unix
seconds.
"""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import NamedTuple

from composer_tui.pricing.catalog import parse_gpu
from composer_tui.rehearsal.metering import Usage

Rates = Mapping[str, Decimal]

INTERVAL_SECONDS: Mapping[str, int] = {"h": 3600, "d": 86400}
_HOUR = Decimal(3600)
_CENTS = Decimal("0.00000001")


class Row(NamedTuple):
    """What one app cost in one interval, in US dollars, by resource."""

    app_id: str
    description: str
    environment: str
    tags: Mapping[str, str]
    interval_start: int
    usd_by_resource: Mapping[str, Decimal]

    @property
    def usd(self) -> Decimal:
        return sum(self.usd_by_resource.values(), Decimal(0))


def usd_per_hour(usage: Usage, rates: Rates) -> dict[str, Decimal]:
    """What the container costs in an hour, by resource. Raises `UnknownGpu` or KeyError."""
    costs = {
        "CPU": Decimal(str(usage.cpu_cores)) * rates["cpu_hour_cost"],
        "Memory": Decimal(str(usage.memory_gib)) * rates["mem_gib_hour_cost"],
    }
    if usage.gpu:
        request = parse_gpu(usage.gpu)
        costs[request.name] = usage.gpu_count * rates[request.gpu.rate_key]
    return costs


def report(
    usages: Iterable[Usage],
    rates: Rates,
    start: float,
    end: float,
    interval_seconds: int,
    now: float,
) -> list[Row]:
    """The rows of every whole interval from ``start`` (its interval counts) to ``end``.

    The interval that is still going on is not in it, as on Modal.
    """
    first = int(start // interval_seconds) * interval_seconds
    after_last = int(min(end, now) // interval_seconds) * interval_seconds
    rows: dict[tuple[int, str], Row] = {}
    for usage in usages:
        for interval, seconds in _intervals(usage, first, after_last, interval_seconds, now):
            row = rows.setdefault(
                (interval, usage.app_id),
                Row(usage.app_id, usage.description, usage.environment, usage.tags, interval, {}),
            )
            costs = dict(row.usd_by_resource)
            for resource, usd in usd_per_hour(usage, rates).items():
                costs[resource] = costs.get(resource, Decimal(0)) + usd * seconds / _HOUR
            rows[interval, usage.app_id] = row._replace(usd_by_resource=costs)
    return [rows[key] for key in sorted(rows)]


def metered(usages: Iterable[Usage], rates: Rates, start: float, end: float, now: float) -> Decimal:
    """What all containers cost between two times, in US dollars; running ones until now."""
    total = Decimal(0)
    for usage in usages:
        seconds = _overlap(usage, start, end, now)
        total += sum(usd_per_hour(usage, rates).values(), Decimal(0)) * seconds / _HOUR
    return total


def text(usd: Decimal) -> str:
    """A plain decimal number, in hundred millionths of a dollar."""
    return f"{usd.quantize(_CENTS):f}"


def _intervals(
    usage: Usage, first: int, after_last: int, interval_seconds: int, now: float
) -> Iterator[tuple[int, Decimal]]:
    """The intervals in which the container ran, each with its seconds there."""
    interval = max(first, int(usage.started_at // interval_seconds) * interval_seconds)
    end = min(after_last, usage.finished_at if usage.finished_at is not None else now)
    while interval < end:
        seconds = _overlap(usage, interval, interval + interval_seconds, now)
        if seconds:
            yield interval, seconds
        interval += interval_seconds


def _overlap(usage: Usage, start: float, end: float, now: float) -> Decimal:
    finished_at = usage.finished_at if usage.finished_at is not None else now
    seconds = min(end, finished_at) - max(start, usage.started_at)
    return Decimal(str(max(0.0, seconds)))
