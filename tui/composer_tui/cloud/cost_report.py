"""Our own meter beside Modal's bill, by run or by GPU, over a period: pure arithmetic in Decimal.

Modal bills whole hours, so what is compared is what both know: our meter up to the last hour that
has closed. A period begins on a whole hour for the same reason. Times are unix seconds.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec

from composer_tui.cloud.billing import HOUR_SECONDS, BilledHour
from composer_tui.runs.cost import CPU, AttemptCost, price

By = Literal["run", "gpu"]

LAG_SECONDS = 2 * HOUR_SECONDS  # so long after its end an hour may still be missing in a report
STARTUP_SECONDS = 60  # a container is paid for before its first word, and after its last
_CLOSE = Decimal("0.02")  # a difference of so much of the whole is none
_CENT = Decimal("0.01")

NOT_CLOSED = "hour not closed"
NOT_BILLED_YET = "not in the report yet"
NOTHING_BILLED = "not in this account's bill"
BEYOND = "CPU or memory used beyond the reservation"
STARTUP = "start-up and exit of containers"
CHEAPER = "a cheaper GPU than the dearest of its list"
UNSEEN = "an end was not seen"
PRICE = "price changed"
OTHERS = "other apps"
PLAY_MONEY = "rehearsal: play money"
NO_RECORD = "no record of its containers"


class CloudCosts(NamedTuple):
    """What is known of one run.

    ``rest_share`` is the part of its price that is cores and memory, None where that is not known.
    """

    run_id: str
    app_id: str
    gpu: str
    is_rehearsal: bool
    attempts: Sequence[AttemptCost]
    rest_share: Decimal | None = None


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run, one GPU type or a sum, within the period.

    ``usd`` is our own meter, at the least where not ``is_whole``; ``closed_usd`` of it is in hours
    that have closed. ``billed_usd`` is None where Modal has billed nothing yet or was not heard;
    ``difference_usd`` is the bill less ``closed_usd``, and ``why`` explains it, or why there is no
    bill, in a few words.
    """

    name: str
    gpu: str = ""
    is_rehearsal: bool = False
    runs: int = 1
    attempts: int = 0
    gpu_seconds: float = 0.0
    usd: Decimal | None = None
    closed_usd: Decimal = Decimal(0)
    is_whole: bool = True
    billed_usd: Decimal | None = None
    difference_usd: Decimal | None = None
    why: str = ""


class CostReport(NamedTuple):
    """``total`` leaves rehearsals out; ``others_usd`` is what the bill has of other apps."""

    rows: tuple[CostRow, ...]
    total: CostRow
    others_usd: Decimal | None


def whole_hour(moment: float) -> float:
    """The beginning of the hour."""
    return moment // HOUR_SECONDS * HOUR_SECONDS


def cost_report(
    runs: Iterable[CloudCosts],
    bill: Iterable[BilledHour] | None,
    start: float,
    now: float,
    by: By = "run",
) -> CostReport:
    """``bill`` is None where it could not be had; ``start`` is a whole hour."""
    hours = None if bill is None else tuple(bill)
    known = list(runs)
    rows = [row for run in known if (row := _row(run, hours, start, now)) is not None]
    total = _sum("total", [row for row in rows if not row.is_rehearsal])
    ours = {run.app_id for run in known}
    others = (
        None
        if hours is None
        else sum((hour.usd for hour in hours if hour.app_id not in ours), Decimal(0))
    )
    if by == "gpu":
        rows = _by_gpu(rows)
    rows.sort(key=lambda row: (row.is_rehearsal, -(row.usd or 0), row.name))
    return CostReport(tuple(rows), total, others)


def within_period(attempt: AttemptCost, start: float, end: float) -> AttemptCost | None:
    """The part of an attempt that is in a period, and of its dollars; None when there is none."""
    first, last = max(attempt.started_at, start), min(attempt.until, end)
    if last < first or attempt.started_at >= end:
        return None
    usd = attempt.usd
    if usd is not None and attempt.seconds > 0:
        usd = usd * Decimal(last - first) / Decimal(attempt.seconds)
    ended_at = last if attempt.ended_at is not None else None
    return msgspec.structs.replace(
        attempt, started_at=first, ended_at=ended_at, seen_at=last, usd=usd
    )


def _row(
    run: CloudCosts, bill: tuple[BilledHour, ...] | None, start: float, now: float
) -> CostRow | None:
    """None for a run that is not of this period."""
    parts = [part for one in run.attempts if (part := within_period(one, start, now))]
    hours = [hour for hour in bill or () if hour.app_id == run.app_id and not run.is_rehearsal]
    if run.attempts and not parts and not hours:
        return None
    closed_at = whole_hour(now)
    closed = [part for one in run.attempts if (part := within_period(one, start, closed_at))]
    row = CostRow(
        name=run.run_id,
        gpu=run.gpu,
        is_rehearsal=run.is_rehearsal,
        attempts=len(parts),
        gpu_seconds=sum(_gpu_seconds(part) for part in parts),
        usd=_usd(parts) if run.attempts else None,
        closed_usd=_usd(closed),
        is_whole=all(part.usd is not None and part.ended_at is not None for part in parts),
    )
    if run.is_rehearsal:
        return msgspec.structs.replace(row, why=PLAY_MONEY)
    if not run.attempts and not hours:
        return msgspec.structs.replace(row, is_whole=False, why=NO_RECORD)
    if bill is None:
        return row
    if not hours:
        return _unbilled(row, closed, closed_at)
    billed = sum((hour.usd for hour in hours), Decimal(0))
    row = msgspec.structs.replace(row, billed_usd=billed, difference_usd=billed - row.closed_usd)
    return msgspec.structs.replace(row, why=_why(row, run, closed, hours))


def _unbilled(row: CostRow, closed: Sequence[AttemptCost], closed_at: float) -> CostRow:
    """Modal's report does not have the run."""
    if not row.closed_usd:
        return msgspec.structs.replace(row, why=NOT_CLOSED)
    if closed_at - max(part.until for part in closed) < LAG_SECONDS:
        return msgspec.structs.replace(row, why=NOT_BILLED_YET)
    nothing = Decimal(0)
    return msgspec.structs.replace(
        row, billed_usd=nothing, difference_usd=-row.closed_usd, why=NOTHING_BILLED
    )


def _why(
    row: CostRow, run: CloudCosts, closed: Sequence[AttemptCost], hours: Sequence[BilledHour]
) -> str:
    difference = row.difference_usd or Decimal(0)
    if abs(difference) <= max(_CENT, _CLOSE * row.closed_usd):
        return NOT_CLOSED if (row.usd or 0) > row.closed_usd else ""
    if not run.attempts:
        return NO_RECORD
    if difference < 0:
        return CHEAPER if "/" in run.attempts[0].gpu else PRICE
    if not row.is_whole:
        return UNSEEN
    if run.rest_share is not None:
        rest = sum((_rest(hour) for hour in hours), Decimal(0))
        if rest - run.rest_share * row.closed_usd > difference / 2:
            return BEYOND
    rate = price(run.attempts[-1].usd_per_hour) or Decimal(0)
    startup = rate * STARTUP_SECONDS * max(1, len(closed)) / HOUR_SECONDS
    return STARTUP if difference <= startup else PRICE


def _rest(hour: BilledHour) -> Decimal:
    """What cores and memory cost."""
    return sum(
        (usd for name, usd in hour.by_resource.items() if name.lower().startswith(("cpu", "mem"))),
        Decimal(0),
    )


def _usd(parts: Iterable[AttemptCost]) -> Decimal:
    return sum((part.usd or Decimal(0) for part in parts), Decimal(0))


def _gpu_seconds(part: AttemptCost) -> float:
    return part.gpus * part.seconds if part.gpu_type != CPU else 0.0


def _by_gpu(rows: Iterable[CostRow]) -> list[CostRow]:
    groups: dict[tuple[bool, str], list[CostRow]] = {}
    for row in rows:
        groups.setdefault((row.is_rehearsal, row.gpu), []).append(row)
    return [_sum(gpu, group) for (_, gpu), group in groups.items()]


def _sum(name: str, rows: Sequence[CostRow]) -> CostRow:
    """Bills and differences of those that have them; the reason that most of the rest give."""
    billed = [row for row in rows if row.billed_usd is not None]
    reasons = Counter(row.why for row in rows if row.why)
    return CostRow(
        name=name,
        gpu=rows[0].gpu if len({row.gpu for row in rows}) == 1 else "",
        is_rehearsal=bool(rows) and all(row.is_rehearsal for row in rows),
        runs=len(rows),
        attempts=sum(row.attempts for row in rows),
        gpu_seconds=sum(row.gpu_seconds for row in rows),
        usd=sum((row.usd or Decimal(0) for row in rows), Decimal(0)),
        closed_usd=sum((row.closed_usd for row in rows), Decimal(0)),
        is_whole=all(row.is_whole for row in rows),
        billed_usd=_sum_of(row.billed_usd for row in billed),
        difference_usd=_sum_of(row.difference_usd for row in billed),
        why=reasons.most_common(1)[0][0] if reasons else "",
    )


def _sum_of(amounts: Iterable[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if known else None
