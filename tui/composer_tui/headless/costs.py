"""`cost`: what the runs of this machine cost by our own meter, and what Modal has billed."""

import re
import sys
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

import msgspec

from composer_tui.cloud.billing import BilledHour, billed_hours
from composer_tui.cloud.cost_report import (
    OTHERS,
    By,
    CloudCosts,
    CostReport,
    CostRow,
    cost_report,
    whole_hour,
)
from composer_tui.cloud.ledger import CloudRef, cloud_runs
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.rates_cache import kept_rates
from composer_tui.cloud.wire import Problem
from composer_tui.headless.tables import local_time, print_table
from composer_tui.headless.troubles import print_problem
from composer_tui.numbers import DASH, dollars
from composer_tui.pricing.catalog import UnknownGpu
from composer_tui.pricing.rates import Rates, container_usd_per_hour
from composer_tui.runs.cost import CPU, AttemptCost, paid_gpu, read_costs, so_far
from composer_tui.runs.folder import DamagedFolder, RunFolder, RunRecord
from composer_tui.runs.journal import read_end
from composer_tui.runs.store import RunStore

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGO = re.compile(r"(\d+(?:\.\d+)?)([mhdw])")


class BadPeriod(ValueError):  # noqa: N818  # says what the text is
    """The text names no moment in the past; the message says what would."""


def moment_of(text: str, now: float) -> float:
    """``7d``, ``12h`` before ``now``, or a date (and time) of this place. Raises `BadPeriod`."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            moment = now - float(ago[1]) * _SECONDS[ago[2]]
        else:
            moment = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise BadPeriod(f"{text!r} is no time: 7d, 12h or 2026-11-01") from None
    if not 0 <= moment <= now:
        raise BadPeriod(f"{text!r} is not in the past")
    return moment


def print_cost(store: RunStore, since: str, by: By, *, as_json: bool, now: float) -> int:
    """0, also when Modal's bill cannot be had. Raises `BadPeriod`."""
    start = whole_hour(moment_of(since, now))
    runs = list(_runs(store, kept_rates(now).rates, start))
    bill: tuple[BilledHour, ...] | None = None
    problem: Problem | None = None
    if any(not run.is_rehearsal for run in runs):
        try:
            bill = billed_hours(start, now)
        except CloudProblem as failure:
            problem = failure.problem
    report = cost_report(runs, bill, start, now, by)
    if as_json:
        _print_json(report, start, now, by, problem)
    elif not report.rows:
        print(f"no run on Modal since {local_time(start)}")
    else:
        _print_tables(report, start, by)
        if problem is not None:
            print(f"billed is not known: {problem.message}")
    if as_json and problem is not None:
        print_problem(problem)
    return 0


def _runs(store: RunStore, rates: Rates, start: float) -> Iterator[CloudCosts]:
    """Every run that was launched, and has cost something since ``start`` or may have."""
    for folder, ref in cloud_runs(store):
        try:
            record = folder.read_record()
        except DamagedFolder:
            continue
        attempts = _attempts(folder, ref)
        if attempts or ref.launched_at >= max(start, 1.0):
            yield _costs(record, ref, attempts, rates)


def _attempts(folder: RunFolder, ref: CloudRef) -> tuple[AttemptCost, ...]:
    attempts = read_costs(folder)
    if ref.ended:
        return attempts
    try:
        return so_far(attempts, read_end(folder.events_path))
    except OSError:
        return attempts


def _costs(
    record: RunRecord, ref: CloudRef, attempts: tuple[AttemptCost, ...], rates: Rates
) -> CloudCosts:
    modal = record.config.modal
    asked = "/".join(modal.gpu)
    paid = paid_gpu(asked, attempts[-1].device if attempts else "")
    gpu = "" if paid.name == CPU else paid.name
    try:
        whole, rest = (
            container_usd_per_hour(rates, *gpus, modal.cpu_cores, modal.memory_mib, modal.region)
            for gpus in ((gpu, paid.gpus), ("", 0))
        )
    except UnknownGpu:
        whole = rest = None
    return CloudCosts(
        run_id=record.run_id,
        app_id=ref.app_id,
        gpu=paid.name,
        is_rehearsal=record.target == "rehearsal",
        attempts=attempts,
        rest_share=rest / whole if rest is not None and whole else None,
    )


def _print_json(
    report: CostReport, start: float, now: float, by: By, problem: Problem | None
) -> None:
    answer = {
        "since": start,
        "until": now,
        "by": by,
        "rows": report.rows,
        "total": report.total,
        "others_billed_usd": report.others_usd,
        "problem": problem,
    }
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")


def _print_tables(report: CostReport, start: float, by: By) -> None:
    print(f"since {local_time(start)}; billed are hours that have closed")
    first = ("RUN", "GPU") if by == "run" else ("GPU", "RUNS")
    headings = (*first, "ATTEMPTS", "GPU-MIN", "METER", "BILLED", "DIFFERENCE", "WHY")
    rows = [_cells(row, by) for row in report.rows]
    if report.others_usd:
        billed = dollars(report.others_usd)
        rows.append((OTHERS, DASH, DASH, DASH, DASH, billed, DASH, "of the same workspace"))
    rows.append(_cells(msgspec.structs.replace(report.total, why="", gpu=""), by))
    print_table(headings, rows, "RUNS ATTEMPTS GPU-MIN METER BILLED DIFFERENCE")


def _cells(row: CostRow, by: By) -> tuple[str, ...]:
    second = row.gpu or DASH if by == "run" else str(row.runs)
    return (
        row.name,
        second,
        str(row.attempts),
        f"{row.gpu_seconds / 60:.1f}",
        dollars(row.usd) + ("" if row.is_whole or row.usd is None else "+?"),
        dollars(row.billed_usd, DASH),
        _signed(row.difference_usd),
        row.why,
    )


def _signed(amount: Decimal | None) -> str:
    """``+$0.02``, ``-$0.10``; a difference below a cent is none to speak of."""
    if amount is None:
        return DASH
    sign = "-" if amount < 0 else "+"
    return f"{sign}{dollars(abs(amount))}" if amount else dollars(amount)
