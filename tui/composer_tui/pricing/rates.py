"""What an hour of a container costs: arithmetic in Decimal, no clock, no network."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec

from composer_engine.config import ModalConfig
from composer_tui.pricing.catalog import catalog, parse_gpu

SNAPSHOT = "snapshot"
_BROAD_REGION, _NARROW_REGION = Decimal("1.5"), Decimal("1.75")
_MIB_PER_GIB = 1024


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Prices by Modal's own keys, in $ per unit-hour.

    ``source`` is "modal" or "snapshot"; ``as_of`` is unix seconds for the former and 0 for the
    latter, whose date is the catalogue's.
    """

    usd_per_hour: Mapping[str, Decimal]
    source: str
    as_of: float


def snapshot_rates() -> Rates:
    """The prices that shipped with the program: a fallback, and to be called so."""
    return Rates(usd_per_hour=catalog().rates, source=SNAPSHOT, as_of=0.0)


def region_multiplier(region: str) -> Decimal:
    """1 anywhere, 1.5 in a broad region (``us``), 1.75 in a narrow one (``us-west``)."""
    if not region:
        return Decimal(1)
    return _NARROW_REGION if "-" in region else _BROAD_REGION


def container_usd_per_hour(
    rates: Rates, gpu: str, count: int, cpu_cores: float, memory_mib: int, region: str = ""
) -> Decimal | None:
    """All of one container: GPUs, cores and memory as reserved. None when a price is not known."""
    prices = rates.usd_per_hour
    try:
        gpus = prices[parse_gpu(gpu).gpu.rate_key] * count if gpu else Decimal(0)
        cores = prices["cpu_hour_cost"] * Decimal(str(cpu_cores))
        memory = prices["mem_gib_hour_cost"] * Decimal(memory_mib) / _MIB_PER_GIB
    except KeyError:
        return None
    return (gpus + cores + memory) * region_multiplier(region)


def dearest_usd_per_hour(rates: Rates, config: ModalConfig) -> Decimal | None:
    """One container at the dearest GPU of the list; None when a price is not known."""
    wanted: Sequence[str] = config.gpu or ("",)
    costs: list[Decimal] = []
    for text in wanted:
        request = parse_gpu(text) if text else None
        name, count = (request.name, request.gpus) if request else ("", 0)
        cost = container_usd_per_hour(
            rates, name, count, config.cpu_cores, config.memory_mib, config.region
        )
        if cost is None:
            return None
        costs.append(cost)
    return max(costs)
