"""A list of apps, with what the stops that are under way have seen of them since."""

from collections.abc import Iterable, Mapping

import msgspec

from composer_tui.cloud.wire import App, Apps, Container, StopProgress


def with_stops(apps: Apps | None, stops: Mapping[str, StopProgress]) -> Apps | None:
    """The apps with the containers that their stops saw last, and at least what they cost by then.

    A stop looks more often than the list is asked for, and sees the containers of an app that
    Modal does not list any more.
    """
    live = {stop.app_id: stop for stop in stops.values() if stop.stage != "gone"}
    if apps is None or not live:
        return apps
    listed = {app.app_id for app in apps.apps}
    return msgspec.structs.replace(
        apps,
        apps=(
            *(_as_seen(app, live[app.app_id]) if app.app_id in live else app for app in apps.apps),
            *_unlisted(stop for stop in live.values() if stop.app_id not in listed),
        ),
    )


def _as_seen(app: App, stop: StopProgress) -> App:
    known = {box.container_id: box for box in app.containers}
    seen = tuple(known.get(one, Container(container_id=one)) for one in stop.containers)
    costs = [cost for cost in (app.spent_usd, stop.final_usd) if cost is not None]
    return msgspec.structs.replace(
        app, containers=seen or app.containers, spent_usd=max(costs, default=None)
    )


def _unlisted(stops: Iterable[StopProgress]) -> Iterable[App]:
    for stop in stops:
        if not stop.containers:
            continue
        burn = stop.usd_per_hour
        yield App(
            app_id=stop.app_id,
            name=stop.name,
            state="stopping",
            created_at=0.0,
            containers=tuple(Container(container_id=one) for one in stop.containers),
            usd_per_hour=None if burn is None else burn / len(stop.containers),
            spent_usd=stop.final_usd,
        )
