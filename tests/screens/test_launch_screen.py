"""Screen 1: from the first look to a run that trains."""

import sys
from pathlib import Path

import pytest
from textual.widgets import Input

from composer_tui.app import ComposerApp
from composer_tui.messages import LaunchAsked
from composer_tui.runners import local
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.store import RunStore
from composer_tui.screens.draft import ESSENTIALS, label
from composer_tui.screens.launch import LaunchScreen
from composer_tui.widgets.choice import Choice
from composer_tui.widgets.field import Field
from tests.screens.cloud_apps import Noting, asked_of
from tests.screens.conftest import Opening, Stage, alive


def field(stage: Stage, path: str) -> Field:
    return next(f for f in stage.app.screen.query(Field) if f.path == path)


async def type_into(stage: Stage, path: str, text: str) -> None:
    """Replace what a field says, by keys."""
    control = field(stage, path).control
    assert isinstance(control, Input)
    control.focus()
    await stage.press("end", *["backspace"] * len(control.value), *text)


async def test_a_newcomer_launches_the_smoke_run_with_one_key(
    opened: Opening, store: RunStore
) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch", "F5 Launch")
        await stage.press("f5")
        await stage.until_shown("2 Monitor", "● training", "channels", "elapsed")
        (folder,) = store.folders()
        assert stage.app.watched is not None
        assert stage.app.watched.folder == folder
        assert alive(folder)


async def test_the_real_engine_trains_and_its_reward_is_drawn(
    opened: Opening, store: RunStore
) -> None:
    async with opened(by=LocalRunner(store), size=(120, 40)) as stage:
        await stage.until_shown("ready to launch")
        await type_into(stage, "optimizer.steps", "2")
        await stage.press("f5")
        await stage.until_shown("before step 1", "since the launch")
        await stage.until_shown("✓ finished", "2/2", "reward", "rollouts", "host")


@pytest.mark.parametrize("size", [(80, 24), (100, 32), (120, 40)])
@pytest.mark.parametrize("environ", [{}, {"COMPOSER_ASCII": "1"}], ids=["unicode", "ascii"])
async def test_no_label_of_the_form_is_cut_and_everything_usual_is_in_sight(
    opened: Opening, size: tuple[int, int], environ: dict[str, str]
) -> None:
    async with opened(size=size, environ=environ) as stage:
        await stage.until_shown("ready to launch", "what will happen", "32 completions")
        for path in ESSENTIALS:
            assert f" {label(path)} " in stage.shown
        for words in ("Launch F5", "Save F4", "Diff F3", "advanced fields: F2", "F5 Launch"):
            assert words in stage.shown
        assert {len(row) for row in stage.shown.split("\n")} == {size[0]}


async def test_a_mistake_is_shown_under_its_field_as_it_is_typed(opened: Opening) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        await type_into(stage, "optimizer.steps", "many")
        await stage.until_shown("1 field needs another value", "expected a whole number")
        assert "expected a whole number" in field(stage, "optimizer.steps").error
        await type_into(stage, "optimizer.steps", "20")
        await stage.until_shown("ready to launch", "1 change")
        assert field(stage, "optimizer.steps").error == ""


async def test_a_form_with_a_mistake_does_not_launch_and_leads_to_it(
    opened: Opening, store: RunStore
) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        await type_into(stage, "loss.sdpo_weight", "-1")
        field(stage, "name").control.focus()
        await stage.press("f5")
        await stage.until(lambda: field(stage, "loss.sdpo_weight").control.has_focus)
        assert not store.folders()


async def test_fields_that_contradict_each_other_say_so_at_the_field_to_change(
    opened: Opening,
) -> None:
    async with opened(size=(120, 40)) as stage:
        await stage.until_shown("ready to launch")
        await stage.press("f2")
        await stage.until(lambda: stage.app.screen.query("#advanced"))
        await type_into(stage, "optimizer.micro_batches", "5")
        await stage.until_shown("must divide the 32 completions")


async def test_the_field_in_focus_is_explained_with_its_unit_range_and_default(
    opened: Opening,
) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        field(stage, "rollout.max_completion_tokens").control.focus()
        await stage.until_shown("a longer completion is cut", "tokens, 1 to 1e+09")
        await stage.until_shown("preset 3 (default 256)")


async def test_letters_and_digits_typed_into_a_field_are_text(opened: Opening) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        await type_into(stage, "name", "K1q2R3a")
        assert isinstance(stage.app.screen, LaunchScreen)
        assert stage.app.screen.draft.texts["name"] == "K1q2R3a"


async def test_the_differences_to_the_preset_are_listed(opened: Opening) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        await type_into(stage, "rollout.prompts_per_step", "6")
        await stage.press("f3")
        await stage.until_shown("Changes to preset smoke", "rollout.prompts_per_step", "- 4", "+ 6")
        await stage.press("enter")
        await stage.until(lambda: isinstance(stage.app.screen, LaunchScreen))


async def test_a_saved_preset_is_offered_and_holds_what_was_typed(opened: Opening) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        await type_into(stage, "optimizer.steps", "33")
        await stage.press("f4")
        await stage.until_shown("Save as a preset")
        await stage.press(*["backspace"] * 5, *"mine", "enter")
        await stage.until_shown("as preset mine")
        assert field(stage, "optimizer.steps").control.value == "33"
        stage.app.screen.query_one("#preset").focus()
        await stage.press("left")
        await stage.until_shown("as preset smoke")
        assert field(stage, "optimizer.steps").control.value == "150"


async def test_a_damaged_preset_is_refused_with_its_file_and_line(
    opened: Opening, store: RunStore
) -> None:
    folder = store.root.parent / "presets"
    folder.mkdir()
    (folder / "broken.toml").write_text("[optimizer]\nsteps = 'x'\n")
    async with opened(size=(120, 40)) as stage:
        await stage.until_shown("ready to launch")
        await stage.press("right")
        await stage.until_shown("preset broken", "broken.toml:2", "whole number")


async def choose_target(stage: Stage, target: str) -> None:
    stage.app.screen.query_one("#target").focus()
    while field_of_target(stage) != target:
        await stage.press("right")


def field_of_target(stage: Stage) -> str:
    return stage.app.screen.query_one("#target", Choice).value


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_a_run_on_modal_shows_its_fields_its_price_and_its_bound(
    opened: Opening, size: tuple[int, int]
) -> None:
    async with opened(size=size) as stage:
        await stage.until_shown("ready to launch", "◂ local ▸")
        assert "cap usd" not in stage.shown
        await choose_target(stage, "modal")
        await stage.until_shown("cap usd", "lease minutes", "timeout seconds", "modal, L4")
        await stage.until_shown("$1.12/h", "snapshot of 20", "at most $2.25, by the 2h00m lease")
        await type_into(stage, "modal.cap_usd", "2")
        await stage.until_shown("at most $2.00, by its cap")
        await choose_target(stage, "local")
        await stage.until(lambda: "cap usd" not in stage.shown)
        assert "at most $2.00" not in stage.shown


async def test_a_machine_without_a_token_says_so_before_f5(opened: Opening) -> None:
    async with opened(size=(120, 40)) as stage:
        await stage.until_shown("ready to launch")
        await choose_target(stage, "modal")
        await stage.until_shown("this machine has no Modal token", "modal token new")
        assert "ready to launch" not in stage.shown
        await choose_target(stage, "rehearsal")
        await stage.until_shown("ready to launch")


async def test_a_slim_window_has_no_plan_but_the_price(opened: Opening) -> None:
    async with opened(size=(60, 24)) as stage:
        await stage.until_shown("Launch")
        await choose_target(stage, "modal")
        await stage.until_shown("$1.12/h, at most $2.25 by the 2h00m lease")
        await stage.pilot.resize_terminal(100, 24)
        await stage.until_shown("what will happen")
        assert "$1.12/h, at most" not in stage.shown


async def test_a_gpu_that_modal_does_not_have_is_a_mistake_only_there(opened: Opening) -> None:
    async with opened(size=(120, 40)) as stage:
        await stage.until_shown("ready to launch")
        await choose_target(stage, "modal")
        await type_into(stage, "modal.gpu", "H1000")
        await stage.until_shown("1 field needs another value", "there is no such GPU")
        assert "no such GPU" in field(stage, "modal.gpu").error
        await choose_target(stage, "rehearsal")
        await stage.until_shown("ready to launch", "the real modal client", "$0")
        assert field(stage, "modal.gpu").error == ""


async def test_where_to_run_goes_with_the_launch_and_outlives_a_preset(
    opened: Opening,
) -> None:
    async with opened(kind=Noting) as stage:
        await stage.until_shown("ready to launch")
        await choose_target(stage, "modal")
        await type_into(stage, "modal.gpu", "h100:2")
        await stage.press("f5")
        await stage.until(lambda: asked_of(stage))
        (asked,) = asked_of(stage)
        assert isinstance(asked, LaunchAsked)
        assert asked.target == "modal"
        assert asked.config.modal.gpu == ("h100:2",)
        stage.app.screen.query_one("#preset").focus()
        await stage.press("right")
        await stage.until_shown("modal, L4")
        assert field_of_target(stage) == "modal"


async def test_a_mistake_in_a_field_of_modal_is_never_hidden(opened: Opening) -> None:
    async with opened() as stage:
        await stage.until_shown("ready to launch")
        await choose_target(stage, "modal")
        await type_into(stage, "modal.cap_usd", "-1")
        await choose_target(stage, "local")
        await stage.until_shown("1 field needs another value", "cap usd")
        await stage.press("f5")
        await stage.until(lambda: field(stage, "modal.cap_usd").control.has_focus)


async def test_data_that_cannot_be_trained_on_is_told_in_its_field_until_it_is_changed(
    opened: Opening, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").write_bytes(b'{"prompt":"x","answer":"y"}\n{"answer":"y"}\n')
    async with opened(size=(120, 40)) as stage:
        await stage.until_shown("ready to launch")
        await type_into(stage, "data.path", "r.jsonl")
        await stage.press("f5")
        await stage.until_shown("it cannot be run so", "r.jsonl line 2: prompt: missing")
        told = field(stage, "data.path")
        assert told.error == "r.jsonl line 2: prompt: missing"
        assert told.control.has_focus
        assert store.folders() == []
        await stage.press("x")
        await stage.until(lambda: not told.error)


async def test_a_missing_engine_is_answered_with_the_one_command(
    opened: Opening, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ENGINE_PACKAGES", ("no_package_has_this_name",))
    async with opened(by=LocalRunner(store, python=sys.executable)) as stage:
        await stage.until_shown("ready to launch")
        await stage.press("f5")
        await stage.until_shown("the engine is not installed", "composer-tui[engine]")
        assert isinstance(stage.app.screen, LaunchScreen)


async def test_a_broken_preset_of_a_shipped_name_is_told_and_the_app_starts(
    store: RunStore, runner: LocalRunner, tmp_path: Path
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "smoke.toml").write_text("[optimizer]\nsteps = 0\n")
    app = ComposerApp(store, runner=runner, presets_dir=tmp_path / "presets", environ={})
    async with app.run_test(size=(120, 40)) as pilot:
        stage = Stage(app, pilot)
        await stage.until_shown("preset smoke", "toml:2: optimizer.steps")
