"""While something is stopped the list of apps and the stop say one and the same."""

from decimal import Decimal
from typing import Any

from composer_tui.cloud.spending import Meter
from composer_tui.cloud.wire import Container, StopProgress
from composer_tui.widgets.stopped_apps import with_stops
from tests.screens.cloud_apps import NOW, app, listed


def stop(name: str, *containers: str, **facts: Any) -> StopProgress:
    given: dict[str, Any] = {"stage": "stopping", "seconds": 9.0, **facts}
    return StopProgress(app_id=f"ap-{name}", name=name, containers=containers, **given)


def test_a_container_that_a_stop_sees_is_in_the_list_and_costs() -> None:
    apps = listed(app("a", containers=(), spent_usd=Decimal("0.00")), app("b"))
    one = stop("a", "ta-x", final_usd=Decimal("0.05"))
    found = with_stops(apps, {one.app_id: one})
    assert found is not None
    a, b = found.apps
    assert a.containers == (Container(container_id="ta-x"),)
    assert a.burn_usd_per_hour == Decimal("4.12")
    assert a.spent_usd == Decimal("0.05")
    assert b == apps.apps[1]


def test_an_app_that_is_listed_no_more_is_there_as_long_as_its_containers() -> None:
    one = stop("a", "ta-x", "ta-y", usd_per_hour=Decimal("8.24"))
    found = with_stops(listed(), {one.app_id: one})
    assert found is not None
    assert found.burn_usd_per_hour == Decimal("8.24")
    none_left = stop("a", stage="gone")
    assert with_stops(listed(), {one.app_id: none_left}) == listed()


def test_what_was_spent_stays_spent_when_a_container_is_gone() -> None:
    meter = Meter(Decimal(36))
    meter.saw([Container(container_id="ta-x", started_at=NOW)], NOW + 100)
    before = meter.total(NOW + 100)
    meter.saw([], NOW + 100)
    meter.costs(Decimal(36))
    assert meter.total(NOW + 500) == before == Decimal("1.000000")
