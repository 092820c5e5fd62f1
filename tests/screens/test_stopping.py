"""Nothing ends by accident, and "ended" is said of what was verified."""

import msgspec
import pytest
from textual.widgets import Button

from composer_tui.runners.local import LocalRunner
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from composer_tui.screens import dialog
from composer_tui.screens.monitor import MonitorScreen
from composer_tui.screens.quit_dialog import QuitDialog
from composer_tui.screens.stop_dialog import StopDialog
from tests.runs import numbered, started, step
from tests.screens.conftest import PATIENCE_SECONDS, Opening, Stage, alive, config, record, soon


def focused_button(stage: Stage) -> str:
    focused = stage.app.screen.focused
    assert isinstance(focused, Button)
    return str(focused.label)


async def settled(stage: Stage) -> None:
    """Wait until the dialog on top takes keys."""
    top = stage.app.screen
    assert isinstance(top, dialog.Dialog)
    await stage.until(lambda: top.is_settled)


async def launched(runner: LocalRunner, name: str = "good") -> RunFolder:
    folder = runner.start(config(name=name)).folder
    await soon(lambda: alive(folder))
    return folder


async def test_the_live_run_is_found_at_the_start_and_opened(
    opened: Opening, runner: LocalRunner
) -> None:
    folder = await launched(runner)
    async with opened() as stage:
        await stage.until_shown("● training")
        assert isinstance(stage.app.screen, MonitorScreen)
        assert stage.app.live == {folder.run_id}


async def test_enter_in_the_stop_dialog_stops_nothing(opened: Opening, runner: LocalRunner) -> None:
    folder = await launched(runner)
    async with opened() as stage:
        await stage.until_shown("● training", "K Stop")
        await stage.press("K")
        await stage.until_shown("Stop this run?", folder.run_id, "pid", "checkpoint", "graceful")
        assert focused_button(stage).startswith("Cancel")
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, MonitorScreen))
        await stage.pilot.pause(0.2)
        assert alive(folder)
        assert stage.app.live == {folder.run_id}


async def test_a_key_that_repeats_does_not_answer_the_dialog_it_opened(
    opened: Opening, runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialog, "REPEAT_SECONDS", PATIENCE_SECONDS)
    folder = await launched(runner)
    async with opened() as stage:
        await stage.until_shown("K Stop")
        await stage.press("K", "K", "K", "y")
        assert isinstance(stage.app.screen, StopDialog)
        assert alive(folder)


async def test_a_graceful_stop_is_verified_before_it_is_called_an_end(
    opened: Opening, runner: LocalRunner
) -> None:
    folder = await launched(runner, "slow")
    async with opened() as stage:
        await stage.until_shown("● training", "K Stop")
        await stage.press("K")
        await stage.until(lambda: isinstance(stage.app.screen, StopDialog))
        await settled(stage)
        await stage.press("y")
        await stage.until_shown("◍ stopping")
        await stage.until_shown("ended: saved and exited", "■ stopped")
        assert not alive(folder)
        assert not stage.app.live


async def test_a_run_that_does_not_end_is_an_alarm_on_every_screen(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, numbered([started(total_steps=9), step(1)]))
    elsewhere = msgspec.structs.replace(folder.read_record(), host="another-machine")
    folder.write_record(elsewhere)
    async with opened() as stage:
        await stage.until_shown("● training")
        await stage.press("2")
        await stage.until_shown("K Stop")
        await stage.press("K")
        await stage.until(lambda: isinstance(stage.app.screen, StopDialog))
        await settled(stage)
        await stage.press("y")
        for screen in ("2", "1", "3"):
            await stage.press(screen)
            await stage.until_shown("⚠", "was asked to stop")


async def test_quitting_asks_and_leaves_the_run_running_by_default(
    opened: Opening, runner: LocalRunner
) -> None:
    folder = await launched(runner)
    async with opened() as stage:
        await stage.until_shown("● training")
        await stage.press("q")
        await stage.until_shown("A run is still live", folder.run_id)
        assert focused_button(stage) == "Leave running"
        await stage.press("escape")
        await stage.until(lambda: isinstance(stage.app.screen, MonitorScreen))
        await stage.press("q")
        await stage.until(lambda: isinstance(stage.app.screen, QuitDialog))
        await settled(stage)
        await stage.press("enter")
        await stage.until(lambda: stage.app._exit)
    assert alive(folder)


async def test_quitting_can_stop_the_run_first_and_waits_for_its_end(
    opened: Opening, runner: LocalRunner
) -> None:
    folder = await launched(runner, "slow")
    async with opened() as stage:
        await stage.until_shown("● training")
        await stage.press("q")
        await stage.until(lambda: isinstance(stage.app.screen, QuitDialog))
        await settled(stage)
        await stage.press("s")
        await stage.until(lambda: isinstance(stage.app.screen, StopDialog))
        assert focused_button(stage).startswith("Cancel")
        await settled(stage)
        await stage.press("y")
        await stage.until(lambda: stage.app._exit)
        assert not alive(folder)


async def test_without_a_live_run_quitting_asks_nothing(opened: Opening) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        await stage.press("q")
        await stage.until(lambda: stage.app._exit)


async def test_ctrl_c_quits_at_the_second_press(opened: Opening, runner: LocalRunner) -> None:
    folder = await launched(runner)
    async with opened() as stage:
        await stage.until_shown("● training")
        await stage.press("ctrl+c")
        await stage.until_shown("ctrl+c again quits")
        assert not stage.app._exit
        await stage.press("ctrl+c")
        await stage.until(lambda: stage.app._exit)
    assert alive(folder)
