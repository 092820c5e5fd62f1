"""Other places get a run's numbers under clear names, and cannot end it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState, TrainingArguments

from composer_engine.callback import worth_showing
from composer_engine.config import load
from composer_engine.emitter import Emitter
from composer_engine.failures import SetupError
from composer_engine.protocol import AlertRaised, Channels, StepCompleted, StepSeconds
from composer_engine.record import Sample
from composer_engine.requirements import check_optional
from composer_engine.sink_places import prepare_sinks
from composer_engine.sinks import Sinks, scalars
from tests.engine.engine_process import read_events

STEP = StepCompleted(
    step=3,
    loss=0.5,
    channels=Channels(grpo=0.0, sdpo=0.2),
    reward_mean=0.75,
    metrics={"entropy": 1.5, "replay_margin": None},
    step_seconds=2.0,
    seconds=StepSeconds(rollout=1.0),
)


def test_a_step_has_clear_names_and_only_what_is_known() -> None:
    assert scalars(STEP) == {
        "loss": 0.5,
        "reward": 0.75,
        "channels/grpo": 0.0,
        "channels/sdpo": 0.2,
        "entropy": 1.5,
        "seconds/step": 2.0,
        "seconds/rollout": 1.0,
    }


class Breaks:
    """A sink whose disk, network or service goes away."""

    def __init__(self) -> None:
        self.calls = 0

    def on_log(self, *_: object, **__: object) -> None:
        self.calls += 1
        raise ConnectionError("the service went away\nfor a long time")


def test_a_sink_that_fails_is_left_out_with_one_alert(tmp_path: Path) -> None:
    with Emitter(None, tmp_path) as emitter:
        sinks = Sinks(load("smoke"), "r", emitter)
        broken = sinks._open["wandb"] = Breaks()
        sinks.log(STEP)
        sinks.log(STEP)
    assert broken.calls == 1
    alerts = [e for e in read_events(tmp_path / "events.jsonl") if isinstance(e, AlertRaised)]
    assert [(alert.rule, alert.step) for alert in alerts] == [("sink", 3)]
    assert alerts[0].message == (
        "wandb gets no more of this run: ConnectionError: the service went away"
    )


@pytest.mark.parametrize(
    ("setting", "words", "hint"),
    [
        ("report.sinks=tensorboard", "report.sinks: tensorboard is not installed", "pip install"),
        ("report.sinks=wandb", "report.sinks: wandb is not installed", "composer-tui[wandb]"),
        ("report.sinks=trackio", "report.sinks: trackio is not installed", "pip install"),
        ("rollout.backend=vllm", "rollout.backend: vllm is not installed", "to hf"),
    ],
)
def test_what_is_not_installed_is_refused_with_the_command(
    setting: str, words: str, hint: str
) -> None:
    if importlib.util.find_spec(words.split()[1]) is not None:
        pytest.skip("it is installed")
    with pytest.raises(SetupError, match=words) as caught:
        check_optional(load(settings=(setting,)))
    assert hint in caught.value.hint


def test_sinks_write_into_the_run_folder_unless_told_otherwise(tmp_path: Path) -> None:
    environ = {"WANDB_PROJECT": "mine", "WANDB_MODE": "offline"}
    prepare_sinks(("tensorboard", "wandb", "trackio"), tmp_path, "r-1", environ)
    assert environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "sinks" / "tensorboard")
    assert environ["WANDB_DIR"] == str(tmp_path / "sinks")
    assert environ["TRACKIO_DIR"] == str(tmp_path / "sinks" / "trackio")
    assert (environ["WANDB_PROJECT"], environ["WANDB_MODE"]) == ("mine", "offline")
    assert {folder.name for folder in (tmp_path / "sinks").iterdir()} == {
        "tensorboard",
        "wandb",
        "trackio",
    }
    nothing: dict[str, str] = {}
    prepare_sinks((), tmp_path, "r-1", nothing)
    assert nothing == {}


def test_tensorboard_can_read_what_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = "tensorboard.backend.event_processing.event_accumulator"
    event_accumulator: Any = pytest.importorskip(reader)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    environ: dict[str, str] = {}
    prepare_sinks(("tensorboard",), tmp_path, "r", environ)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")
    state, control = TrainerState(global_step=3), TrainerControl()
    with Emitter(None, tmp_path) as emitter:
        sinks = Sinks(load("smoke", settings=("report.sinks=tensorboard",)), "r", emitter)
        sinks.on_train_begin(arguments, state, control, model=SimpleNamespace(config=None))
        sinks.log(STEP)
        sinks.on_train_end(arguments, state, control)
    assert not [e for e in read_events(tmp_path / "events.jsonl") if isinstance(e, AlertRaised)]
    written = event_accumulator.EventAccumulator(environ["TENSORBOARD_LOGGING_DIR"])
    written.Reload()
    (point,) = written.Scalars("train/channels/sdpo")
    assert (point.step, round(point.value, 6)) == (3, 0.2)
    assert "config/text_summary" in written.Tags()["tensors"]


REWARDS = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(REWARDS, st.integers(1, 30), st.integers(0, 100))
def test_the_rollouts_shown_hold_the_best_and_the_worst(
    rewards: list[float], count: int, step: int
) -> None:
    samples = [Sample("p", str(place), reward) for place, reward in enumerate(rewards)]
    shown = worth_showing(samples, count, step)
    assert len(shown) == len(set(shown)) == min(count, len(samples))
    if count > 1:
        assert max(s.reward for s in shown) == max(rewards)
        assert min(s.reward for s in shown) == min(rewards)


def test_a_single_rollout_is_another_one_each_time_and_repeats_come_last() -> None:
    samples = [Sample("p", text, 0.0) for text in "aabc"]
    assert [worth_showing(samples, 1, step)[0].completion for step in range(4)] == [*"aabc"]
    assert {sample.completion for sample in worth_showing(samples, 3, 0)} == {*"abc"}
