"""What is said of apps, their cost and their ends, as functions of values."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from composer_engine.config import ModalConfig, load
from composer_tui.cloud.kill_rules import ACCEPTED, SENDING
from composer_tui.cloud.ledger import CloudRef
from composer_tui.cloud.owner import owner_tag
from composer_tui.cloud.wire import App, Apps, Container, OrphanClass, Problem, StopProgress
from composer_tui.numbers import dollars
from composer_tui.pricing.rates import snapshot_rates
from composer_tui.runs.state import RunState
from composer_tui.runs.store import RunSummary
from composer_tui.screens.app_facts import (
    fact_pairs,
    lease_cost,
    lease_rows,
    stop_command,
)
from composer_tui.screens.kill_banner import alarm_text, banner_lines
from composer_tui.screens.kill_facts import (
    KillSheet,
    app_of_ref,
    kill_sheet,
    money_words,
    saved_words,
    sheet_rows,
    usual_mode,
)
from composer_tui.screens.plan import cost_rows, target_rows, worst_case
from composer_tui.screens.run_cost import app_of, spent_usd
from composer_tui.widgets.app_items import (
    Item,
    columns,
    head_row,
    item_row,
    live_items,
    matching,
    nothing_words,
    problem_words,
    short_dollars,
)
from composer_tui.widgets.app_status import STOPS, app_status, dashboard_url, stop_words
from composer_tui.widgets.burn import burn_words, orphans, stale_words
from composer_tui.widgets.cells import Row, cut_middle, row_cells
from composer_tui.widgets.glyphs import ASCII, UNICODE
from composer_tui.widgets.header import HeaderFacts, header_row, tab_at
from composer_tui.widgets.status import status_of
from tests.screens.cloud_apps import NOW, app, foreign, listed, orphan

ORPHANS: tuple[OrphanClass, ...] = (
    "NO_HEARTBEAT",
    "OWNER_GONE",
    "LEASE_EXPIRED",
    "DEPLOYED_IDLE",
    "STUCK_STOPPING",
)


def text(rows: list[Row]) -> str:
    return "\n".join("".join(span.text for span in row) for row in rows)


def plain(row: Row) -> str:
    return "".join(span.text for span in row)


def summary(run_id: str, **facts: object) -> RunSummary:
    return RunSummary(run_id=run_id, name=run_id, created_at=NOW, life="training", **facts)  # type: ignore[arg-type]


def stop(stage: str, name: str = "a", **facts: object) -> StopProgress:
    return StopProgress(app_id=f"ap-{name}", name=name, stage=stage, seconds=12.0, **facts)  # type: ignore[arg-type]


# ---- money ----


@given(st.decimals(0, 10**6, places=6))
def test_a_sum_never_looks_like_nothing_unless_it_is_nothing(amount: Decimal) -> None:
    assert (dollars(amount) == "$0.00") == (amount == 0)
    assert len(short_dollars(amount)) <= 10


def test_what_is_not_known_is_never_a_number() -> None:
    assert dollars(None) == "?"
    unpriced = listed(app("a"), app("b", usd_per_hour=None))
    assert burn_words(unpriced) == "$4.12+?/h"
    assert burn_words(listed()) == "$0.00/h"
    assert burn_words(None) == burn_words(Apps()) == ""


def test_news_is_stale_when_it_is_old_or_newer_could_not_be_had() -> None:
    problem = Problem(kind="no_network", message="no network")
    assert stale_words(listed(), NOW + 30) == ""
    assert stale_words(listed(), NOW + 200) == "3m ago"
    assert stale_words(listed(problem=problem), NOW + 30) == "30s ago"
    assert stale_words(Apps(problem=problem), NOW) == ""


def test_orphans_are_ours_and_strangers_are_none() -> None:
    apps = listed(app("a"), *(orphan(kind, orphan=kind) for kind in ORPHANS), foreign("f"))
    assert [found.name for found in orphans(apps)] == list(ORPHANS)


@pytest.mark.parametrize("width", range(40, 200, 9))
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_the_header_gives_up_the_name_before_the_money(width: int, glyphs: object) -> None:
    assert glyphs in (UNICODE, ASCII)
    chosen = UNICODE if glyphs is UNICODE else ASCII
    facts = HeaderFacts(
        status_of("training"),
        "a-very-long-run-name-2026",
        "short-name",
        "612/1200",
        burn="$20.50+?/h",
        orphans=2,
        stale="3m ago",
    )
    row = header_row("apps", facts, width, chosen)
    assert row_cells(row) == width
    shown = plain(row)
    assert "4 Apps" in shown
    if "short" in shown or "a-very" in shown:
        assert "$20.50+?/h" in shown
    if width >= 54:
        assert f"$20.50+?/h {chosen.alert}2 3m ago" in shown


@pytest.mark.parametrize("mode", ["launch", "monitor", "runs", "apps"])
@pytest.mark.parametrize("width", [40, 61, 62, 80, 99, 100, 160])
def test_a_click_on_any_tab_of_any_header_is_its_screen(mode: str, width: int) -> None:
    row = plain(header_row(mode, HeaderFacts(), width, UNICODE))
    for digit, name in enumerate(("launch", "monitor", "runs", "apps"), 1):
        assert tab_at(row.index(f"{UNICODE.divider}{digit}") + 1, mode, width) == name


# ---- the table ----


def test_what_burns_most_comes_first_and_this_machine_last() -> None:
    apps = listed(
        app("cheap", usd_per_hour=Decimal("0.8")),
        app("waits", containers=()),
        app("unknown", usd_per_hour=None),
        app("dear", usd_per_hour=Decimal("20.5")),
    )
    runs = [summary("local-1", target="local"), summary("over"), summary("dear", target="modal")]
    items = live_items(apps, {}, runs, frozenset({"local-1", "dear"}))
    assert [item.name for item in items] == ["dear", "cheap", "unknown", "waits", "local-1"]


def test_two_containers_burn_twice_as_much_as_one() -> None:
    boxes = (Container(container_id="1"), Container(container_id="2"))
    apps = listed(app("one", usd_per_hour=Decimal(3)), app("two", usd_per_hour=Decimal(2)))
    two = msgspec.structs.replace(apps.apps[1], containers=boxes)
    items = live_items(listed(apps.apps[0], two), {}, [], frozenset())
    assert [item.name for item in items] == ["two", "one"]


def test_a_stop_stays_on_show_when_its_app_is_listed_no_more() -> None:
    gone = stop("gone", "old", final_usd=Decimal("2.18"))
    assert live_items(listed(app("old")), {"ap-old": gone}, [], frozenset())[0].app is None
    (item,) = live_items(listed(), {"ap-old": gone}, [], frozenset())
    row = plain(item_row(item, NOW, 78, UNICODE))
    assert "✓ gone" in row
    assert "$2.18" in row


def test_a_run_on_modal_that_is_not_listed_has_no_known_price() -> None:
    (item,) = live_items(listed(), {}, [summary("r", target="modal")], frozenset({"r"}))
    assert "?" in plain(item_row(item, NOW, 78, UNICODE))
    (item,) = live_items(listed(), {}, [summary("r", target="rehearsal")], frozenset({"r"}))
    assert "$0.00" in plain(item_row(item, NOW, 78, UNICODE))


@given(
    width=st.integers(40, 220),
    name=st.text(st.characters(min_codepoint=32, max_codepoint=0x30FF, exclude_categories=["C"])),
    gpu=st.sampled_from(["", "L4", "A100-80GB:8", "RTX-PRO-6000"]),
    price=st.none() | st.decimals(0, 5000, places=4),
    kind=st.sampled_from(["", *ORPHANS, "UNTAGGED"]),
    lease=st.integers(-(10**6), 10**6),
)
def test_every_row_is_as_wide_as_its_head(
    width: int, name: str, gpu: str, price: Decimal | None, kind: OrphanClass, lease: int
) -> None:
    one = app(name, gpu=gpu, usd_per_hour=price, spent_usd=price, orphan=kind)
    one = msgspec.structs.replace(one, lease_until=NOW + lease)
    row = item_row(Item(one.app_id, one.name, one), NOW, width, UNICODE, at_cursor=True)
    assert row_cells(row) == row_cells(head_row(width, UNICODE)) <= width
    assert columns(width)[1] >= 8
    if price is not None:
        assert short_dollars(price) in plain(row)


@pytest.mark.parametrize("kind", ORPHANS)
def test_an_orphan_has_a_glyph_and_a_word(kind: OrphanClass) -> None:
    status = app_status(orphan("a", orphan=kind))
    assert status.glyph == "alert"
    assert status.word


def test_accepted_is_never_called_stopped() -> None:
    for stage in STOPS:
        words = f"{STOPS[stage].word} {stop_words(stop(stage, containers=('ta-1',)))}"
        assert "stopped" not in words
        assert ("no container is left" in words) == (stage == "gone")


@pytest.mark.parametrize("stage", ["stopping", "second_path", "escalated", "alarm"])
def test_containers_that_nobody_has_looked_for_are_not_called_none(stage: str) -> None:
    assert "0 container" not in stop_words(stop(stage))


def test_a_stop_that_is_only_being_sent_is_not_called_accepted() -> None:
    assert "accepted" not in stop_words(stop("stopping", message=SENDING))
    assert "accepted" in stop_words(stop("stopping", message=ACCEPTED))


@given(st.text(max_size=60), st.integers(0, 60))
def test_a_name_that_is_cut_keeps_the_end_that_tells_it_apart(name: str, cells: int) -> None:
    shown = cut_middle(name, cells, 5)
    assert cell_len(shown) <= cells
    if cells > 10:
        assert shown[-1:] == name[-1:]


def test_a_filter_finds_by_name_owner_gpu_and_class() -> None:
    items = live_items(listed(app("a"), orphan("b", gpu="L4", owner="you")), {}, [], frozenset())
    assert [item.name for item in matching(items, "l4 you")] == ["b"]
    assert [item.name for item in matching(items, "no_heart")] == ["b"]
    assert matching(items, "nothing-like-it") == []


@pytest.mark.parametrize(
    ("apps", "words"),
    [
        (None, "r asks again"),
        (Apps(problem=Problem(kind="no_token", message="x")), "modal token new"),
        (Apps(problem=Problem(kind="no_token", message="x")), "MODAL_TOKEN_ID"),
        (Apps(problem=Problem(kind="timeout", message="it is slow")), "it is slow"),
        (listed(), "Press 1"),
    ],
)
def test_an_empty_table_says_what_to_do_next(apps: Apps | None, words: str) -> None:
    assert words in "\n".join(nothing_words(apps, "", NOW))


def test_an_empty_list_that_is_old_does_not_say_that_nothing_is_live() -> None:
    assert "Nothing is live" in "\n".join(nothing_words(listed(), "", NOW + 4))
    old = "\n".join(nothing_words(listed(), "", NOW + 25))
    assert "as of 25s ago, asking Modal..." in old
    assert "Nothing is live" not in old
    assert "costs" not in old


def test_a_problem_comes_with_what_to_do() -> None:
    hinted = listed(problem=Problem(kind="wrong_token", message="refused", hint="log in"))
    assert problem_words(hinted) == ("refused", "log in")
    assert problem_words(listed()) == ()


# ---- facts, leases ----


def test_every_fact_of_an_app_is_there_and_the_way_to_end_it_by_hand() -> None:
    one = orphan("a")
    said = "\n".join(words for _, words, _ in fact_pairs(one, listed(one), NOW))
    for words in (
        "ap-a",
        "H100",
        "$4.12/h, $1.20 so far",
        "612 of 1,200, 4s ago",
        "step 600",
        "$5.00",
        "NO_HEARTBEAT: no sign of life",
        "ta-a",
        "snapshot of 20",
        dashboard_url("ap-a"),
        "modal app stop -y ap-a -e main",
    ):
        assert words in said
    assert stop_command(one, "") == "modal app stop -y ap-a"


def test_a_lease_says_what_the_extension_can_cost() -> None:
    one = app("a")
    assert lease_cost(one, 30) == Decimal("2.06")
    said = text(lease_rows(one, 30, NOW, 60))
    assert "up to $2.06 more" in said
    assert "in 1h20m" in said
    assert "cap of $5.00 still ends it" in said
    unpriced = app("a", usd_per_hour=None)
    assert "not known" in text(lease_rows(unpriced, 30, NOW, 60))


def test_an_expired_lease_is_extended_from_now() -> None:
    assert "in 30m00s" in text(lease_rows(app("a", lease_until=NOW - 500), 30, NOW, 60))


# ---- the question before a stop ----


def sheet_of(*apps: App) -> KillSheet:
    return kill_sheet(listed(*apps), [one.app_id for one in apps], NOW)


def test_the_question_names_everything_that_the_contract_asks_for() -> None:
    said = text(sheet_rows(sheet_of(app("a")), "graceful", 62))
    for words in (
        "ap-a",
        "H100, 1 container, up 16m40s",
        "612 of 1,200, 4s ago",
        "step 600",
        "Saves $4.12/h. Spent so far: $1.20.",
        "Volumes stay (composer-runs, composer-cache)",
        "saves a checkpoint",
        "1m00s",
    ):
        assert words in " ".join(said.split())
    assert "12 steps lost" in text(sheet_rows(sheet_of(app("a")), "now", 62))


def test_a_healthy_run_is_asked_to_save_and_an_orphan_is_not() -> None:
    assert usual_mode(sheet_of(app("a"))) == "graceful"
    assert usual_mode(sheet_of(orphan("a"))) == "now"
    assert usual_mode(sheet_of(foreign("a"))) == "now"
    assert usual_mode(sheet_of(orphan("a"), app("b"))) == "graceful"


def test_what_was_not_launched_by_us_cannot_be_asked_to_save() -> None:
    assert "cannot be asked to save" in saved_words(foreign("a"), "graceful", 60)


def test_everything_is_what_its_owner_launched_and_says_what_is_left_alone() -> None:
    theirs = app("e", owner="someone-at-lab")
    apps = listed(app("a"), orphan("b"), foreign("c"), theirs)
    sheet = kill_sheet(apps, None, NOW, mine=owner_tag())
    assert [one.name for one in sheet.apps] == ["a", "b"]
    assert "2 apps that you did not launch from here are left alone" in " ".join(
        text(sheet_rows(sheet, "now", 62)).split()
    )


def test_the_sum_of_several_is_what_they_burn_together() -> None:
    sheet = sheet_of(app("a"), app("b", usd_per_hour=Decimal("0.88")), app("c", usd_per_hour=None))
    assert money_words(sheet).startswith("Saves $5.00/h and more")
    assert "not known" in money_words(sheet_of(app("c", usd_per_hour=None)))
    assert "$4.12/h once" in money_words(sheet_of(app("a", containers=())))


def test_the_longest_grace_of_the_runs_own_settings_is_given() -> None:
    graces = {"a": 30, "b": 90}

    def config_of(one: App) -> object:
        return load("smoke", settings=[f"modal.stop_grace_seconds={graces[one.name]}"])

    apps = listed(app("a"), app("b"))
    sheet = kill_sheet(apps, ["ap-a", "ap-b"], NOW, config_of)  # type: ignore[arg-type]
    assert sheet.grace_seconds == 90
    assert kill_sheet(apps, ["ap-a"], NOW).grace_seconds == ModalConfig().stop_grace_seconds


def test_old_news_is_called_old_in_the_question() -> None:
    problem = Problem(kind="no_network", message="no network")
    sheet = kill_sheet(listed(app("a"), now=NOW - 300, problem=problem), ["ap-a"], NOW)
    assert "5m ago" in text(sheet_rows(sheet, "now", 62))


def test_what_has_ended_meanwhile_is_nothing_to_stop() -> None:
    sheet = kill_sheet(listed(), ["ap-a"], NOW)
    assert sheet.things == 0
    assert "live any more" in text(sheet_rows(sheet, "now", 62))


def test_a_run_that_no_list_names_is_known_from_its_folder() -> None:
    ref = CloudRef(app_name="r", app_id="ap-r", cap_usd="5", lease_until=NOW + 60)
    one = app_of_ref(ref, "r", load("smoke"), RunState())
    assert one.app_id == "ap-r"
    assert one.cap_usd == 5
    assert one.usd_per_hour is None
    nameless = CloudRef(app_name="r", connection="/somewhere")
    rehearsed = app_of_ref(nameless, "r", load("smoke"), RunState())
    assert (rehearsed.app_id, rehearsed.usd_per_hour) == ("r", Decimal(0))


def test_a_run_that_is_not_listed_yet_is_not_said_to_cost_nothing() -> None:
    ref = CloudRef(app_name="r", app_id="ap-r", usd_per_hour="1.5", launched_at=NOW)
    one = app_of_ref(ref, "r", load("smoke"), RunState())
    said = text(sheet_rows(kill_sheet(listed(one), ["ap-r"], NOW), "now", 62))
    assert "Saves up to $1.50/h." in said
    assert "no container" not in said
    assert "Spent" not in said


# ---- how stops stand ----


def test_alarms_come_first_and_name_ids_and_what_is_gone_its_sum() -> None:
    kills = {
        "1": stop("gone", "g", final_usd=Decimal("2.18")),
        "2": stop("stopping", "s", containers=("ta-1",)),
        "3": stop("alarm", "x", containers=("ta-9",)),
    }
    lines = banner_lines(("a local alarm",), kills)
    assert [line.style for line in lines] == ["alarm", "alarm", "warn", "good"]
    assert "ap-x STILL THERE" in lines[1].text
    assert lines[1].key == "c"
    assert "stop accepted" in lines[2].text
    assert "$2.18" in lines[3].text
    copied = alarm_text(kills)
    for words in ("ap-x", "ta-9", dashboard_url("ap-x"), "modal app stop ap-x"):
        assert words in copied
    assert alarm_text({}) == ""


def test_many_stops_take_few_lines() -> None:
    kills = {str(i): stop("alarm", f"a{i}") for i in range(9)}
    kills |= {f"s{i}": stop("asked", f"s{i}") for i in range(9)}
    lines = banner_lines((), kills)
    assert len(lines) == 5
    assert "6 more" in lines[3].text
    assert "stopping 9 apps: 9 saving" in lines[4].text
    assert alarm_text(kills).count("modal app stop") == 9


# ---- a run, before and while it runs ----


def test_the_worst_case_is_the_cap_or_the_lease_whichever_is_less() -> None:
    modal = ModalConfig(cap_usd=5.0, lease_minutes=60, stop_grace_seconds=0)
    assert worst_case(modal, Decimal(20)) == (Decimal(5), "its cap")
    most, by = worst_case(modal, Decimal(2))
    assert most == 2
    assert "1h00m" in by


def test_the_plan_says_price_date_and_bound_or_that_there_is_no_price() -> None:
    config = load("smoke", settings=["modal.gpu=H100,L4", "model.device=auto"])
    said = text(target_rows(config, "modal", snapshot_rates(), 50, UNICODE))
    for words in ("H100 or L4", "/h", "snapshot of 20", "at most $5.00, by its cap", "1h00m"):
        assert words in said
    odd = ModalConfig(gpu=("H1000",))
    assert "the cap cannot hold" in text(cost_rows(odd, snapshot_rates()))
    assert "$0" in text(target_rows(config, "rehearsal", snapshot_rates(), 50, UNICODE))
    assert target_rows(config, "local", snapshot_rates(), 50, UNICODE) == []


def test_a_gpu_that_the_run_would_not_use_is_told() -> None:
    config = load("smoke", settings=["model.device=cpu"])
    assert "device cpu" in text(target_rows(config, "modal", snapshot_rates(), 50, UNICODE))


def test_what_a_run_has_cost_stops_growing_at_its_end() -> None:
    ref = CloudRef(app_name="r", usd_per_hour="3.6", launched_at=NOW)
    ended = RunState(life="finished", ended_at=NOW + 1000)
    assert spent_usd(ref, RunState(), NOW + 2000) == Decimal(2)
    assert spent_usd(ref, ended, NOW + 2000) == Decimal(1)
    assert spent_usd(CloudRef(app_name="r"), RunState(), NOW) is None


def test_the_app_of_a_run_is_found_by_its_name_on_modal() -> None:
    one = app("a")
    assert app_of("a", listed(one)) is one
    assert app_of("b", listed(one)) is None
    assert app_of("a", None) is None
