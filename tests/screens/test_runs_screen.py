"""Screen 3: every run, live or ended, from one list."""

from composer_engine.protocol import RunFailed
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.store import RunStore
from composer_tui.screens.monitor import MonitorScreen
from tests.runs import numbered, started, whole_run
from tests.screens.conftest import Opening, alive, config, record, soon


async def test_an_empty_list_tells_a_newcomer_what_to_press(opened: Opening) -> None:
    async with opened(start="runs") as stage:
        await stage.until_shown("No run yet.", "Press 1", "F5")


async def test_a_finished_run_opens_in_the_monitor(opened: Opening, store: RunStore) -> None:
    folder = record(store, whole_run(10))
    async with opened(start="runs") as stage:
        await stage.until_shown(folder.run_id, "✓ finished", "10/10", "0.625", "R Replay")
        assert "K Stop" not in stage.shown
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, MonitorScreen))
        await stage.until_shown("100%", "reward")


async def test_a_failed_or_damaged_run_says_why(opened: Opening, store: RunStore) -> None:
    failed = numbered([started(), RunFailed(kind="oom", message="it ran out of memory")])
    record(store, failed, name="apple")
    damaged = record(store, whole_run(3), name="pear")
    damaged.record_path.write_text("{")
    async with opened(start="runs", size=(120, 24)) as stage:
        await stage.until_shown("apple-", "pear-")
        shown = set()
        for _ in range(2):
            shown |= {words for words in ("out of memory", "run.json") if words in stage.shown}
            await stage.press("down")
        assert shown == {"out of memory", "run.json"}


async def test_the_list_is_filtered_by_what_is_typed(opened: Opening, store: RunStore) -> None:
    record(store, whole_run(3), name="apple")
    record(store, whole_run(3), name="pear")
    async with opened(start="runs") as stage:
        await stage.until_shown("apple-", "pear-")
        await stage.press("slash", *"pear")
        await stage.until(lambda: "apple-" not in stage.shown and "pear-" in stage.shown)
        await stage.press("escape")
        await stage.until_shown("apple-", "pear-")


async def test_a_live_run_offers_to_be_stopped_not_to_be_replayed(
    opened: Opening, runner: LocalRunner
) -> None:
    folder = runner.start(config(name="good")).folder
    await soon(lambda: alive(folder))
    async with opened(start="runs") as stage:
        await stage.until_shown(folder.run_id, "● training", "K Stop")
        assert "R Replay" not in stage.shown
        await stage.press("K")
        await stage.until_shown("Stop this run?", "pid")


async def test_a_replay_plays_the_recording_into_a_run_of_its_own(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, whole_run(10))
    async with opened(start="runs") as stage:
        await stage.until_shown("R Replay")
        await stage.press("R")
        await stage.until_shown("Replay", "16x", folder.run_id)
        await stage.press("right", "right")
        await stage.until_shown("at once")
        await stage.pilot.pause(0.35)
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, MonitorScreen))
        await stage.until_shown("✓ finished", "10/10")
        assert len(store.folders()) == 2
        assert stage.app.watched is not None
        assert stage.app.watched.folder != folder
