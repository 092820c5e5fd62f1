"""How stops of apps stand, in few lines that are on every screen, and in full to be copied."""

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

from composer_tui.cloud.kill_rules import stop_command
from composer_tui.cloud.wire import StopProgress
from composer_tui.numbers import dollars, duration
from composer_tui.widgets.app_status import ALARMS, STOPS, UNDER_WAY, dashboard_url, stop_words
from composer_tui.widgets.banner import BannerLine

_MOST_ALARMS = 3


def banner_lines(
    alarms: tuple[str, ...], kills: Mapping[str, StopProgress]
) -> tuple[BannerLine, ...]:
    """Every alarm (of many the first, and their number), one line of what goes on, one of ends."""
    loud = [stop for stop in kills.values() if stop.stage in ALARMS]
    lines = [BannerLine(alarm) for alarm in alarms]
    lines += [
        BannerLine(_alarm_line(stop), key="c", does="copies what to do")
        for stop in loud[:_MOST_ALARMS]
    ]
    if len(loud) > _MOST_ALARMS:
        more = len(loud) - _MOST_ALARMS
        lines.append(BannerLine(f"and {more} more do not end", key="4", does="shows them"))
    under_way = [stop for stop in kills.values() if stop.stage in UNDER_WAY]
    if under_way:
        lines.append(BannerLine(_under_way_line(under_way), "saving", "warn"))
    gone = [stop for stop in kills.values() if stop.stage == "gone"]
    if gone:
        lines.append(BannerLine(_gone_line(gone), "done", "good"))
    return tuple(lines)


def _alarm_line(stop: StopProgress) -> str:
    burns = f", {dollars(stop.usd_per_hour)}/h" if stop.usd_per_hour else ""
    if stop.stage == "failed":
        return f"{stop.app_id} NOT stopped, could not be asked{burns}: {stop.message}"
    return f"{stop.app_id} STILL THERE after {duration(stop.seconds)}{burns}: {stop.name}"


def _under_way_line(stops: list[StopProgress]) -> str:
    longest = duration(max(stop.seconds for stop in stops))
    if len(stops) == 1:
        return f"{longest} {stops[0].name}: {stop_words(stops[0])}"
    counts = Counter(STOPS[stop.stage].word for stop in stops)
    words = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"stopping {len(stops)} apps: {words}, {longest}"


def _gone_line(stops: list[StopProgress]) -> str:
    costs = [stop.final_usd for stop in stops if stop.final_usd is not None]
    total = f", final {dollars(sum(costs, Decimal(0)))}" if len(costs) == len(stops) else ""
    if len(stops) == 1:
        saved = ", saved" if stops[0].saved else ""
        return f"{stops[0].name} is {stop_words(stops[0])}{saved}{total}"
    return f"{len(stops)} apps are gone, no container is left{total}"


def alarm_text(kills: Mapping[str, StopProgress]) -> str:
    """Of everything that does not end, what support asks for, and what to try; "" for nothing."""
    return "\n".join(
        f"{stop.app_id} {stop.name}: {stop_words(stop)} after {duration(stop.seconds)}"
        f" ({' '.join(stop.containers) or 'no id of a container'}){_burn_words(stop)}"
        f" {dashboard_url(stop.app_id)}\n{stop.by_hand or stop_command(stop.app_id)}"
        for stop in kills.values()
        if stop.stage in ALARMS
    )


def _burn_words(stop: StopProgress) -> str:
    if stop.usd_per_hour is None:
        return ", at a price that is not known"
    return f", {dollars(stop.usd_per_hour)}/h"
