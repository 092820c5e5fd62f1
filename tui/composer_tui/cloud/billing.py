"""What Modal has billed, by app and hour: whole hours only, and some time after they closed."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from composer_engine.contract import TAG_RUN
from composer_tui.cloud.modal_thread import within

HOUR_SECONDS = 3600
_REACH_SECONDS = 3.0
_REPORT_SECONDS = 20.0


class BilledHour(NamedTuple):
    """One app's bill of one hour; ``start`` is unix seconds, ``by_resource`` in Modal's words."""

    app_id: str
    start: float
    usd: Decimal
    by_resource: Mapping[str, Decimal]


def billed_hours(start: float, end: float) -> tuple[BilledHour, ...]:
    """All of this process's account, of the hours from ``start`` that ``end`` has closed.

    Raises `CloudProblem`, also when the report takes too long.
    """
    workspace = within(_REACH_SECONDS, _workspace(), "the way to Modal")
    return within(_REPORT_SECONDS, _report(workspace, start, end), "the billing report")


async def _workspace() -> Any:
    """Reached: whether there is an account and a network is known before the long question."""
    import modal

    workspace = modal.Workspace.from_context()
    await workspace.hydrate.aio()
    return workspace


async def _report(workspace: Any, start: float, end: float) -> tuple[BilledHour, ...]:
    items = await workspace.billing.report.aio(
        start=datetime.fromtimestamp(start, UTC),
        end=datetime.fromtimestamp(end, UTC),
        resolution="h",
        tag_names=[TAG_RUN],
    )
    return tuple(
        BilledHour(
            item.object_id,
            item.interval_start.replace(tzinfo=UTC).timestamp(),
            Decimal(item.cost),
            dict(item.cost_by_resource or {}),
        )
        for item in items
    )
