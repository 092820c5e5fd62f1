"""The kill switch: nothing ends by accident, and what is confirmed is what was on show."""

import time
from decimal import Decimal

import pytest
from textual.widgets import Button, Input

from composer_tui.cloud.wire import App
from composer_tui.messages import AppsListed, AppsStopAsked, KillAsked
from composer_tui.runners.local import LocalRunner
from composer_tui.screens import dialog
from composer_tui.screens.apps import AppsScreen
from composer_tui.screens.kill_dialog import KillDialog
from tests.screens.cloud_apps import Noting, app, asked_of, foreign, listed, orphan, tell
from tests.screens.conftest import PATIENCE_SECONDS, Opening, Stage, alive
from tests.screens.test_stopping import focused_button, launched, settled


async def asked_to_kill(stage: Stage, *apps: App, keys: tuple[str, ...] = ("K",)) -> KillDialog:
    """The dialog, open and taking keys."""
    now = time.time()
    tell(stage, AppsListed(listed(*apps, now=now)))
    await stage.until_shown(apps[0].name, "K Stop")
    await stage.press(*keys)
    await stage.until(lambda: isinstance(stage.app.screen, KillDialog))
    await settled(stage)
    top = stage.app.screen
    assert isinstance(top, KillDialog)
    return top


def stops(stage: Stage) -> list[AppsStopAsked]:
    return [one for one in asked_of(stage) if isinstance(one, AppsStopAsked)]


async def test_enter_stops_nothing_for_cancel_has_the_focus(opened: Opening) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        await asked_to_kill(stage, app("a", time.time()))
        assert focused_button(stage).startswith("Cancel")
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, AppsScreen))
        assert stops(stage) == []


async def test_one_app_is_stopped_by_one_key_in_the_way_that_suits_it(opened: Opening) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        await asked_to_kill(stage, app("a", time.time()))
        await stage.until_shown("graceful: saves first, up to 1m00s", "Stop app (y)")
        await stage.press("y")
        await stage.until(lambda: stops(stage))
        (asked,) = stops(stage)
        assert (asked.app_ids, asked.mode, asked.grace_seconds) == (("ap-a",), "graceful", 60)


async def test_tab_and_enter_confirm_as_well_and_an_orphan_ends_now(opened: Opening) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        await asked_to_kill(stage, orphan("a", time.time()))
        await stage.until_shown("now: does not save")
        await stage.press("tab", "enter")
        await stage.until(lambda: stops(stage))
        assert stops(stage)[0].mode == "now"


async def test_the_mode_is_changed_with_one_key_and_its_price_is_told(opened: Opening) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        await asked_to_kill(stage, app("a", time.time()))
        await stage.press("n")
        await stage.until_shown("12 steps lost", "now: does not save")
        await stage.press("g")
        await stage.until_shown("graceful: saves first")
        await stage.press("n", "y")
        await stage.until(lambda: stops(stage))
        assert stops(stage)[0].mode == "now"


async def test_a_held_key_does_not_answer(opened: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialog, "REPEAT_SECONDS", PATIENCE_SECONDS)
    async with opened(start="apps", kind=Noting) as stage:
        tell(stage, AppsListed(listed(app("a", time.time()), now=time.time())))
        await stage.until_shown("K Stop")
        await stage.press("K", "K", "y", "y", "tab", "enter")
        assert isinstance(stage.app.screen, KillDialog)
        assert stops(stage) == []


async def test_of_several_the_count_has_to_be_typed(opened: Opening) -> None:
    now = time.time()
    apps = (orphan("a", now), orphan("b", now), app("c", now))
    async with opened(start="apps", kind=Noting) as stage:
        top = await asked_to_kill(stage, *apps, keys=("asterisk", "K"))
        assert focused_button(stage).startswith("Cancel")
        assert top.query_one("#stop", Button).disabled
        await stage.press("y", "tab", "enter")
        assert isinstance(stage.app.screen, KillDialog)
        await stage.press("2")
        await stage.until(lambda: not top.query_one("#stop", Button).disabled)
        await stage.press("2")
        await stage.until(lambda: top.query_one("#stop", Button).disabled)
        await stage.press("enter")
        assert isinstance(stage.app.screen, KillDialog)
        await stage.press("backspace", "enter")
        await stage.until(lambda: stops(stage))
        assert stops(stage)[0].app_ids == ("ap-a", "ap-b")


async def test_a_list_of_many_scrolls_and_never_hides_the_buttons(opened: Opening) -> None:
    now = time.time()
    apps = tuple(orphan(f"lost-{i}", now) for i in range(30))
    async with opened(start="apps", kind=Noting) as stage:
        await asked_to_kill(stage, *apps, keys=("asterisk", "K"))
        await stage.until_shown(
            "Stop 30 apps?", "Saves $123.60/h", "type 30 to confirm", "Cancel (esc)", "Stop 30 apps"
        )
        await stage.press(*["pagedown"] * 20)
        await stage.until_shown("lost-29", "Cancel (esc)", "Stop 30 apps")


async def test_facts_are_renewed_while_it_is_open_and_the_dead_are_not_stopped(
    opened: Opening,
) -> None:
    now = time.time()
    async with opened(start="apps", kind=Noting) as stage:
        top = await asked_to_kill(stage, orphan("a", now), orphan("b", now), keys=("asterisk", "K"))
        tell(stage, AppsListed(listed(orphan("a", now, spent_usd=Decimal(9)), now=time.time())))
        await stage.until_shown("Stop 1 app?", "$9.00")
        await stage.press("2", "enter")
        assert isinstance(stage.app.screen, KillDialog)
        await stage.press("backspace", "1")
        await stage.until(lambda: top.query_one("#typed", Input).value == "1")
        await stage.press("enter")
        await stage.until(lambda: stops(stage))
        assert stops(stage)[0].app_ids == ("ap-a",)


async def test_what_has_ended_meanwhile_cannot_be_stopped(opened: Opening) -> None:
    async with opened(start="apps", kind=Noting) as stage:
        await asked_to_kill(stage, app("a", time.time()))
        tell(stage, AppsListed(listed(now=time.time())))
        await stage.until_shown("Nothing of it is live any more")
        await stage.press("y")
        assert isinstance(stage.app.screen, KillDialog)
        await stage.press("escape")
        await stage.until(lambda: isinstance(stage.app.screen, AppsScreen))
        assert stops(stage) == []


async def test_everything_takes_the_word_and_leaves_others_alone(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps", kind=Noting) as stage:
        tell(stage, AppsListed(listed(app("a", now), foreign("f", now), now=now)))
        await stage.until_shown("K Stop")
        await stage.press("colon")
        await stage.pilot.pause(0.1)
        await stage.press(*"panic")
        await stage.until_shown("Stop everything")
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, KillDialog))
        await settled(stage)
        await stage.until_shown("Stop everything?", "left alone", "type STOP to confirm")
        await stage.press("y", "1", "enter")
        await stage.until(lambda: isinstance(stage.app.screen, AppsScreen))  # enter was Cancel's
        assert stops(stage) == []


async def test_everything_is_stopped_after_the_word(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps", kind=Noting) as stage:
        tell(stage, AppsListed(listed(app("a", now), orphan("b", now), foreign("f", now), now=now)))
        await stage.until_shown("K Stop")
        (command,) = [
            one
            for one in stage.app.get_system_commands(stage.app.screen)
            if one.title.startswith("Stop everything")
        ]
        command.callback()
        await stage.until(lambda: isinstance(stage.app.screen, KillDialog))
        await settled(stage)
        await stage.press(*"STOP", "enter")
        await stage.until(lambda: stops(stage))
        assert stops(stage)[0].app_ids == ("ap-a", "ap-b")


async def test_everything_includes_the_engines_of_this_machine(
    opened: Opening, runner: LocalRunner
) -> None:
    folder = await launched(runner)
    now = time.time()
    async with opened(kind=Noting) as stage:
        await stage.until_shown("● training")
        tell(stage, AppsListed(listed(app("a", now), now=now)))
        await stage.until_shown("$4.12/h")
        stage.app.post_message(KillAsked(None))
        await stage.until(lambda: isinstance(stage.app.screen, KillDialog))
        await settled(stage)
        await stage.until_shown("Stop everything? 2 live")
        await stage.press(*"STOP", "enter")
        await stage.until(lambda: stops(stage))
        await stage.until(lambda: not alive(folder))


async def test_a_read_only_app_cannot_be_talked_into_a_stop(opened: Opening) -> None:
    now = time.time()
    async with opened(start="apps", kind=Noting, readonly=True) as stage:
        tell(stage, AppsListed(listed(app("a", now), now=now)))
        await stage.until_shown("● detached")
        stage.app.post_message(KillAsked(["ap-a"]))
        await stage.until_shown("this program is read-only")
        titles = [one.title for one in stage.app.get_system_commands(stage.app.screen)]
        assert not [title for title in titles if title.startswith("Stop")]
