"""Screen 2, over recordings: a run from its file is the run as it was live."""

from functools import partial

import msgspec
import pytest
from textual.screen import Screen
from textual.widgets import Input

from composer_engine.protocol import (
    AlertRaised,
    Channels,
    Event,
    Logged,
    RunFailed,
    SampleGenerated,
)
from composer_tui.runs.store import RunStore
from composer_tui.screens.launch import LaunchScreen
from composer_tui.screens.monitor import MonitorScreen
from composer_tui.screens.runs import RunsScreen
from composer_tui.widgets.chart import BandChart
from composer_tui.widgets.log_view import LogView
from composer_tui.widgets.palette import Palette
from composer_tui.widgets.pane import Pane
from tests.runs import lines, numbered, started, step, whole_run
from tests.screens.conftest import Opening, Stage, record

SIZES = [(80, 24), (100, 32), (120, 40), (200, 60)]


def is_on(stage: Stage, kind: type[Screen[None]]) -> bool:
    return isinstance(stage.app.screen, kind)


def headline(stage: Stage) -> str:
    return stage.app.screen.query_one("#headline", BandChart).text


async def test_the_frame_shows_at_once_where_the_focus_is(opened: Opening, store: RunStore) -> None:
    folder = record(store, whole_run(20))
    async with opened(run=folder, size=(120, 40)) as stage:
        await stage.until_shown("finished")
        for _ in range(3):
            await stage.press("tab")
            await stage.pilot.pause()
            assert [pane.id for pane in framed(stage)] == [stage.focused]


def framed(stage: Stage) -> list[Pane]:
    """The panes on show whose frame is the focus's."""
    screen = stage.app.screen
    focus = screen.query_one(Palette).ink("focus").color
    panes = [pane for pane in screen.query(Pane) if pane.display and pane.region]
    return [pane for pane in panes if corner(pane) == focus]


def corner(pane: Pane) -> object:
    style = next(iter(pane.render_line(0))).style
    return style.color if style is not None else None


async def test_digits_go_to_the_screens(opened: Opening) -> None:
    async with opened() as stage:
        for key, screen in (("2", MonitorScreen), ("3", RunsScreen), ("1", LaunchScreen)):
            await stage.press(key)
            await stage.until(partial(is_on, stage, screen))
        await stage.press("2")
        await stage.until_shown("No run is open.")


async def test_a_recording_shows_its_reward_numbers_memory_and_end(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, whole_run(10))
    async with opened(start="monitor", run=folder, size=(120, 40)) as stage:
        await stage.until_shown("✓ finished", "10/10", "100%", "0.625", "1 MiB", "off we go")
        assert "reward" in headline(stage)


async def test_a_null_channel_is_a_dash_with_its_meaning(opened: Opening, store: RunStore) -> None:
    taught = msgspec.structs.replace(step(1), channels=Channels(grpo=0.1, sdpo=0.2, replay=0.3))
    run = numbered([started(), taught, step(2), RunFailed(kind="killed", message="gone")])
    folder = record(store, run)
    async with opened(start="monitor", run=folder, size=(120, 40)) as stage:
        await stage.until_shown("sdpo             —", "— no signal in this step")


async def test_a_failed_run_says_what_happened_what_to_do_and_the_evidence(
    opened: Opening, store: RunStore
) -> None:
    failure = RunFailed(
        kind="oom",
        message="CUDA out of memory",
        hint="set optimizer.micro_batches to 4",
        detail="Traceback\n  line one\ntorch.OutOfMemoryError: no more",
    )
    folder = record(store, numbered([started(), step(1), failure]))
    for size in ((80, 24), (120, 40)):
        async with opened(start="monitor", run=folder, size=size) as stage:
            await stage.until_shown("✗ failed", "oom", "CUDA out of memory")
            await stage.until_shown("optimizer.micro_batches", "torch.OutOfMemoryError")


async def test_before_step_one_the_ladder_counts_the_seconds(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, [])
    async with opened(start="monitor") as stage:
        await stage.until_shown("before step 1", "launching", "loading", "since the launch")
        folder.events_path.write_bytes(lines(numbered([started(), step(1)])))
        await stage.until_shown("reward", "channels")
        assert "before step 1" not in stage.shown


async def test_what_is_missing_doubled_or_unreadable_is_said(
    opened: Opening, store: RunStore
) -> None:
    run = whole_run(6)
    folder = record(store, [*run[:6], *run[8:], run[5]])
    with folder.events_path.open("ab") as file:
        file.write(b"no event\n")
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("2 events missing", "1 duplicate", "1 bad line")


async def test_the_chosen_metric_is_drawn_in_the_big_chart(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, whole_run(10))
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("✓ finished")
        await stage.press("right_square_bracket")
        await stage.until(lambda: "loss total" in headline(stage))
        await stage.press("left_square_bracket", "left_square_bracket")
        await stage.until(lambda: "kl" in headline(stage))


async def test_smoothing_log_axis_and_zoom_say_that_they_are_on(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, whole_run(64))
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("✓ finished")
        await stage.press("s", "s")
        await stage.until(lambda: "ema .9" in headline(stage))
        await stage.press("y")
        await stage.until(lambda: "log" in headline(stage))
        await stage.press("plus")
        await stage.until(lambda: "last 32" in headline(stage) and " 33 " in headline(stage))
        await stage.press("0", "s", "s", "s", "y")
        await stage.until(lambda: "ema" not in headline(stage) and "last" not in headline(stage))


async def test_a_pane_takes_the_whole_screen_and_gives_it_back(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, whole_run(10))
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("channels")
        await stage.press("f")
        await stage.until(lambda: "channels" not in stage.shown and "reward" in stage.shown)
        assert "2 Monitor" in stage.shown
        await stage.press("escape")
        await stage.until_shown("channels")


async def test_rollouts_have_the_whole_screen_even_where_they_have_no_pane(
    opened: Opening, store: RunStore
) -> None:
    sample = SampleGenerated(step=1, prompt="what is 2+2?", completion="four", reward=0.5)
    log = Logged(level="info", message="hello")
    run: list[Event] = [started(), log, step(1), sample, RunFailed(kind="killed", message="gone")]
    folder = record(store, numbered(run))
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("✗ failed")
        assert "what is 2+2?" not in stage.shown
        await stage.press("o")
        await stage.until_shown("what is 2+2?", "four", "0.500")
        await stage.press("o")
        await stage.until(lambda: "what is 2+2?" not in stage.shown)


async def test_the_log_is_filtered_and_its_end_followed_again(
    opened: Opening, store: RunStore
) -> None:
    said = [Logged(level="info", message=f"line {n}") for n in range(100)]
    said.insert(50, Logged(level="warning", message="beware"))
    folder = record(
        store, numbered([started(), *said, step(1), RunFailed(kind="killed", message="gone")])
    )
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("line 99")
        await stage.press("l")
        await stage.press("slash", *"bewar")
        await stage.until_shown("WARN  beware", "/bewar")
        assert "line 99" not in stage.shown
        assert isinstance(stage.app.screen.focused, Input)
        await stage.press("K", "1")
        assert isinstance(stage.app.screen, MonitorScreen)
        await stage.press("escape")
        await stage.until_shown("line 99", "follow")
        await stage.press("pageup")
        await stage.until_shown("paused")
        await stage.press("end")
        await stage.until(lambda: stage.app.screen.query_one(LogView).window.following)


async def test_help_explains_the_focused_pane_and_its_keys(
    opened: Opening, store: RunStore
) -> None:
    folder = record(store, whole_run(10))
    async with opened(start="monitor", run=folder, size=(120, 40)) as stage:
        await stage.until_shown("✓ finished")
        await stage.press("tab", "question_mark")
        await stage.until_shown("Help: channels", "silent 0", "this pane", "everywhere")
        await stage.press("escape")
        await stage.until(lambda: isinstance(stage.app.screen, MonitorScreen))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("environ", [{}, {"COMPOSER_ASCII": "1"}], ids=["unicode", "ascii"])
async def test_no_label_is_cut_at_any_size(
    opened: Opening, store: RunStore, size: tuple[int, int], environ: dict[str, str]
) -> None:
    folder = record(store, whole_run(10))
    async with opened(start="monitor", run=folder, size=size, environ=environ) as stage:
        await stage.until_shown("finished", "reward", "channels", "memory", "alerts", "off we go")
        rows = stage.shown.split("\n")
        assert len(rows) == size[1]
        assert {len(row) for row in rows} == {size[0]}
        for words in ("Smooth", "Log y", "Metric", "Rollouts", "Help", "Quit"):
            assert words in rows[-1]
        assert not stage.app.screen.show_vertical_scrollbar
        if environ:
            assert stage.shown.isascii()


async def test_a_storm_of_resizes_ends_in_a_whole_screen(opened: Opening, store: RunStore) -> None:
    folder = record(store, whole_run(50))
    async with opened(start="monitor", run=folder) as stage:
        await stage.until_shown("✓ finished")
        for n in range(40):
            await stage.pilot.resize_terminal(20 + n * 37 % 180, 5 + n * 13 % 55)
        await stage.pilot.resize_terminal(80, 24)
        await stage.until_shown("reward", "channels", "memory", "off we go")
        assert {len(row) for row in stage.shown.split("\n")} == {80}


async def test_alerts_show_their_level_as_more_than_a_colour(
    opened: Opening, store: RunStore
) -> None:
    alerts = [
        AlertRaised(rule="spike", level="warning", step=1, message="grad_norm"),
        AlertRaised(rule="non_finite", level="error", step=1, message="loss"),
    ]
    end = RunFailed(kind="killed", message="gone")
    folder = record(store, numbered([started(), step(1), *alerts, step(2), end]))
    async with opened(start="monitor", run=folder, size=(120, 40)) as stage:
        await stage.until_shown("⚠ @1 grad_norm", "✗ @1 loss")
