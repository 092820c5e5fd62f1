"""Screen 4: everything that is live, what it costs, and nothing by accident."""

import time
from decimal import Decimal

import msgspec
import pytest

from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.cloud.wire import App, Apps, Problem, StopProgress
from composer_tui.messages import AppsListed, AppsRefreshAsked, AppStopTold, LeaseAsked
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.store import RunStore
from composer_tui.screens.app_dialogs import AppDialog, LeaseDialog
from composer_tui.screens.apps import AppsScreen
from composer_tui.screens.kill_dialog import KillDialog
from composer_tui.screens.monitor import MonitorScreen
from composer_tui.widgets.app_table import AppTable
from tests.runs import numbered, started, step
from tests.screens.cloud_apps import Noting, app, asked_of, foreign, listed, orphan, tell
from tests.screens.conftest import Opening, Stage, alive, config, record, soon
from tests.screens.test_stopping import settled

NO_TOKEN = Problem(kind="no_token", message="no token")
NO_NETWORK = Problem(kind="no_network", message="Modal cannot be reached", hint="is there a net?")


def fresh(*apps: App, **facts: object) -> AppsListed:
    return AppsListed(listed(*apps, now=time.time(), **facts))


def table(stage: Stage) -> AppTable:
    return stage.app.screen.query_one(AppTable)


def chosen(stage: Stage) -> str:
    item = table(stage).selected
    return item.key if item is not None else ""


async def test_all_that_is_live_is_one_table_with_its_price(
    opened: Opening, runner: LocalRunner
) -> None:
    folder = runner.start(config(name="good")).folder
    await soon(lambda: alive(folder))
    now = time.time()
    async with opened(size=(120, 40)) as stage:
        tell(stage, fresh(app("sft", now), orphan("lost", now), foreign("theirs", now)))
        await stage.press("4")
        await stage.until_shown(
            "sft", "● detached", "lost", "no heartbeat", "theirs", "this machine", folder.run_id
        )
        await stage.until_shown("3 apps", "$12.36/h", "1 orphan")
        rows = stage.shown.split("\n")
        (local,) = [row for row in rows if folder.run_id in row and "local" in row]
        assert "$0.00" in local


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("environ", [{}, {"COMPOSER_ASCII": "1"}], ids=["unicode", "ascii"])
async def test_money_and_state_are_there_at_every_size(
    opened: Opening, size: tuple[int, int], environ: dict[str, str]
) -> None:
    async with opened(start="apps", size=size, environ=environ) as stage:
        tell(stage, fresh(app("sft", time.time()), orphan("lost", time.time())))
        mark = "!" if environ else "⚠"
        await stage.until_shown("sft", "detached", "$4.12", "$1.20", f"$8.24/h {mark}1", "K Stop")
        assert {len(row) for row in stage.shown.split("\n")} == {size[0]}
        if environ:
            assert stage.shown.isascii()


async def test_an_empty_list_of_a_while_ago_does_not_say_that_nothing_is_live(
    opened: Opening,
) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        tell(stage, AppsListed(listed(now=time.time() - 25)))
        await stage.until_shown("as of 2", "s ago, asking Modal...")
        assert "Nothing is live" not in stage.shown


@pytest.mark.parametrize(
    ("apps", "words"),
    [
        (Apps(problem=NO_TOKEN), ("no token", "modal token new", "MODAL_TOKEN_ID")),
        (Apps(problem=NO_NETWORK), ("cannot be reached", "is there a net?")),
        (None, ("Nothing is live", "Press 1")),
    ],
)
async def test_an_empty_screen_says_what_to_do(
    opened: Opening, apps: Apps | None, words: tuple[str, ...]
) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        tell(stage, fresh() if apps is None else AppsListed(apps))
        await stage.until_shown(*words)
        await stage.press("r")
        await stage.until(lambda: [type(one) for one in asked_of(stage)] == [AppsRefreshAsked])


async def test_old_news_shows_its_age_on_every_screen(opened: Opening) -> None:
    async with opened(start="apps") as stage:
        old = listed(app("sft"), now=time.time() - 200, problem=NO_NETWORK)
        tell(stage, AppsListed(old))
        await stage.until_shown("$4.12/h 3m ago", "cannot be reached", "sft")
        for key in ("1", "2", "3"):
            await stage.press(key)
            await stage.until_shown("$4.12/h 3m ago")


async def test_the_cursor_stays_on_its_app_while_the_list_changes(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("a", now), app("b", now), app("c", now)))
        await stage.until(lambda: chosen(stage) == "ap-a")
        await stage.press("down")
        assert chosen(stage) == "ap-b"
        dearer = msgspec.structs.replace(app("c", now), usd_per_hour=Decimal(9))
        tell(stage, fresh(dearer, app("b", now), app("new", now, usd_per_hour=Decimal(99))))
        await stage.until_shown("new")
        await stage.until(lambda: chosen(stage) == "ap-b")
        assert stage.shown.index("new") < stage.shown.index("▸  b")


async def test_every_orphan_is_marked_and_never_what_is_not_ours(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("a", now), orphan("b", now), orphan("c", now), foreign("f", now)))
        await stage.until_shown("* Orphans")
        await stage.press("asterisk")
        await stage.until_shown("2 marked")
        assert table(stage).marked == ["ap-b", "ap-c"]
        await stage.press("escape")
        await stage.until(lambda: table(stage).marked == [])


async def test_marks_are_kept_under_a_filter_and_dropped_with_their_app(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("apple", now), app("pear", now)))
        await stage.until_shown("apple", "pear")
        await stage.press("space", "space")
        assert table(stage).marked == ["ap-apple", "ap-pear"]
        await stage.press("slash", *"pear")
        await stage.until(lambda: "apple" not in stage.shown)
        assert table(stage).marked == ["ap-apple", "ap-pear"]
        await stage.press("enter", "escape")
        await stage.until_shown("apple", "2 marked")
        tell(stage, fresh(app("pear", now)))
        await stage.until_shown("1 marked")


async def test_keys_typed_into_the_filter_stop_nothing(opened: Opening) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        tell(stage, fresh(app("a", time.time()), orphan("b", time.time())))
        await stage.until_shown("K Stop")
        await stage.press("slash", *"K*+y")
        assert isinstance(stage.app.screen, AppsScreen)
        assert stage.app.screen.query_one("#filter").value == "K*+y"  # type: ignore[attr-defined]
        assert table(stage).marked == []
        assert asked_of(stage) == []


async def test_a_run_whose_folder_is_here_opens_in_the_monitor_and_others_in_details(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, numbered([started(), step(1)]))
    now = time.time()
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("a", now, run_id=folder.run_id), app("b", now)))
        await stage.until_shown("a ", "b ")
        await stage.press("down", "enter")
        await stage.until(lambda: isinstance(stage.app.screen, AppDialog))
        await stage.until_shown("ap-b", "modal app stop -y ap-b", "https://modal.com/id/ap-b")
        await stage.press("escape")
        await stage.until(lambda: isinstance(stage.app.screen, AppsScreen))
        await stage.press("up")
        await stage.pilot.pause(1.1)  # the runs folder is read once a second
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, MonitorScreen))
        assert stage.app.watched is not None
        assert stage.app.watched.run_id == folder.run_id


async def test_a_lease_is_extended_after_a_question_that_names_the_price(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps", kind=Noting) as stage:
        tell(stage, fresh(foreign("theirs", now, usd_per_hour=Decimal(50)), app("a", now)))
        await stage.until_shown("theirs", "/ Filter")
        assert "+ Lease" not in stage.shown
        await stage.press("down", "plus")
        await stage.until(lambda: isinstance(stage.app.screen, LeaseDialog))
        await stage.until_shown("by 30 minutes?", "up to $2.06 more", "Cancel")
        await settled(stage)
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, AppsScreen))
        assert asked_of(stage) == []
        await stage.press("plus")
        await stage.until(lambda: isinstance(stage.app.screen, LeaseDialog))
        await settled(stage)
        await stage.press("y")
        await stage.until(lambda: asked_of(stage))
        (asked,) = asked_of(stage)
        assert isinstance(asked, LeaseAsked)
        assert (asked.app_id, asked.minutes) == ("ap-a", 30)


async def test_what_is_being_stopped_is_not_asked_for_twice(opened: Opening) -> None:
    told = StopProgress(app_id="ap-a", name="a", stage="stopping", seconds=3, containers=("ta-a",))
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("a", time.time())), AppStopTold(told))
        await stage.until_shown("◍ stopping")
        await stage.press("K")
        await stage.until_shown("a is being stopped already")
        assert isinstance(stage.app.screen, AppsScreen)
        tell(stage, AppStopTold(msgspec.structs.replace(told, stage="asked")))
        await stage.until_shown("◍ saving")
        await stage.press("K")
        await stage.until_shown("Stop this app?")


async def test_stops_are_followed_on_every_screen_until_they_are_verified(opened: Opening) -> None:
    now = time.time()
    told = StopProgress(app_id="ap-a", name="a", stage="stopping", seconds=3, containers=("ta-a",))
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("a", now)), AppStopTold(told))
        await stage.until_shown("◍ stopping", "a: stop accepted, 1 container still there")
        for key in ("1", "2", "3", "4"):
            await stage.press(key)
            await stage.until_shown("stop accepted", "$4.12/h")
        replace = msgspec.structs.replace
        tell(stage, AppStopTold(replace(told, stage="alarm", seconds=125)))
        for key in ("1", "2", "3"):
            await stage.press(key)
            await stage.until_shown(
                "ap-a STILL THERE after 2m05s", "c copies what to do", "$4.12/h"
            )
        await stage.press("c")
        copied = stage.app.clipboard
        assert "ap-a" in copied
        assert "ta-a" in copied
        assert "https://modal.com/id/ap-a" in copied
        gone = replace(told, stage="gone", containers=(), final_usd=Decimal("2.18"), saved=True)
        tell(stage, AppStopTold(gone))
        await stage.press("4")
        await stage.until_shown("$0.00/h")
        await stage.until_shown("a is gone, no container is left, saved, final $2.18", "✓ gone")
        assert "c copies" not in stage.shown


async def test_the_id_of_an_app_is_copied(opened: Opening) -> None:
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("a", time.time())))
        await stage.until_shown("● detached")
        await stage.press("c")
        assert stage.app.clipboard == "ap-a"


async def test_a_read_only_app_has_no_key_that_acts(
    opened: Opening, runner: LocalRunner, store: RunStore
) -> None:
    folder = runner.start(config(name="good")).folder
    await soon(lambda: alive(folder))
    now = time.time()
    async with opened(readonly=True, kind=Noting) as stage:
        await stage.until_shown("● training")
        tell(stage, fresh(orphan("a", now)))
        await stage.press("4")
        await stage.until_shown("read-only", "no beat")
        await stage.press("asterisk", "space", "plus", "K")
        assert isinstance(stage.app.screen, AppsScreen)
        assert table(stage).marked == []
        await stage.press("question_mark")
        await stage.until_shown("Help")
        await stage.press(*["pagedown"] * 3)
        await stage.until_shown("not while read-only")
        await stage.press("escape")
        for key in ("1", "2", "3"):
            await stage.press(key, "f5", "K")
            assert "F5 Launch" not in stage.shown
            assert "K Stop" not in stage.shown
        assert asked_of(stage) == []
        assert len(store.folders()) == 1
        await stage.press("q")
        await stage.until_shown("A run is still live")
        assert "Stop..." not in stage.shown
    assert alive(folder)


async def test_a_click_chooses_an_app_and_a_second_opens_it(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps") as stage:
        tell(stage, fresh(app("a", now), app("b", now)))
        await stage.until_shown("● detached")
        await stage.pilot.click(AppTable, offset=(10, 3))
        assert chosen(stage) == "ap-b"
        await stage.pilot.click(AppTable, offset=(10, 2), times=2)
        await stage.until(lambda: isinstance(stage.app.screen, AppDialog))
        await stage.until_shown("ap-a")


async def test_the_monitor_shows_where_a_run_is_and_what_it_costs(
    opened: Opening, store: RunStore
) -> None:
    folder = store.create(config(**{"modal.gpu": "H100"}), "modal", time.time())
    write_ref(
        folder,
        CloudRef(
            app_name=folder.run_id,
            app_id="ap-x",
            usd_per_hour="3.60",
            cap_usd="5",
            launched_at=time.time() - 1000,
            lease_until=time.time() + 3000,
        ),
    )
    async with opened(start="monitor", run=folder, size=(120, 40)) as stage:
        await stage.until_shown(
            "modal H100", "about $1.00 so far", "$3.60/h", "cap $5.00", "lease 4"
        )
        await stage.press("3")
        await stage.until_shown(folder.run_id)


async def test_a_run_on_modal_is_stopped_by_the_dialog_for_apps(
    opened: Opening, store: RunStore
) -> None:
    folder = store.create(config(), "modal", time.time())
    write_ref(folder, CloudRef(app_name=folder.run_id, app_id="ap-x"))
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("modal L4")
        from composer_tui.messages import StopAsked

        stage.app.post_message(StopAsked(folder.run_id))
        await stage.until(lambda: isinstance(stage.app.screen, KillDialog))
        await stage.until_shown("ap-x", "price not known", "Volumes stay")
