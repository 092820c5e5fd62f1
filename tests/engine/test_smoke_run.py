"""The smoke preset, run as a person runs it: what it says, learns and leaves."""

import statistics

import psutil
import pytest
from msgspec import json

from composer_engine.protocol import (
    CheckpointSaved,
    MemorySampled,
    PhaseChanged,
    RunFinished,
    RunStarted,
    SampleGenerated,
    StepCompleted,
    decode,
    violations,
)
from tests.engine.conftest import Finished


def rewards(steps: list[StepCompleted]) -> list[float]:
    return [step.reward_mean for step in steps if step.reward_mean is not None]


def test_a_smoke_run_is_lawful_and_ends_well(smoke: Finished) -> None:
    assert smoke.status == 0, smoke.stderr
    assert violations(smoke.events) == []
    last = smoke.events[-1]
    assert isinstance(last, RunFinished)
    assert (last.steps, last.stopped_early, last.reason) == (150, False, "")


def test_stdout_and_the_run_folder_hold_the_same_bytes_and_nothing_else(smoke: Finished) -> None:
    assert smoke.stdout == (smoke.folder / "events.jsonl").read_bytes()


def test_reward_rises(smoke: Finished) -> None:
    values = rewards(smoke.steps)
    assert len(values) == 150
    assert 0.2 < statistics.mean(values[:10]) < 0.6
    assert statistics.mean(values[-10:]) > 0.8


def test_the_replayed_traces_are_learnt(smoke: Finished) -> None:
    replay = [step.channels.replay for step in smoke.steps]
    assert replay[0] == pytest.approx(0.6931, abs=1e-3)  # ln 2: the policy is its own reference
    assert all(value is not None for value in replay)
    assert statistics.mean(filter(None, replay[-10:])) < 0.6
    margin = smoke.steps[-1].metrics["replay_margin"]
    assert margin is not None
    assert margin > 0


def test_a_step_says_everything_it_measured(smoke: Finished) -> None:
    step = smoke.steps[0]
    assert step.channels.grpo is not None
    assert step.channels.sdpo is not None
    assert step.channels.replay is not None
    total = step.channels.grpo + 0.1 * step.channels.sdpo + 0.05 * step.channels.replay
    assert step.loss == pytest.approx(total)
    assert {
        "entropy",
        "clip_ratio/region_mean",
        "completions/mean_length",
        "frac_reward_zero_std",
        "num_tokens",
        "rewards/verified/mean",
        "sdpo_active_tokens",
        "replay_margin",
        "replay_accuracy",
        "replay_chosen_logp",
    } <= step.metrics.keys()
    assert step.learning_rate == pytest.approx(1e-5)
    assert step.grad_norm is not None
    assert step.grad_norm > 0
    assert step.mfu is None  # nobody knows a CPU's peak


def test_a_steps_time_is_made_of_its_parts(smoke: Finished) -> None:
    for step in smoke.steps:
        parts = (step.seconds.rollout, step.seconds.loss, step.seconds.optimizer)
        assert all(part is not None and part > 0 for part in parts)
        assert step.step_seconds is not None
        assert sum(filter(None, parts)) <= step.step_seconds


def test_a_channel_with_nothing_to_learn_is_null_and_never_zero(smoke: Finished) -> None:
    for step in smoke.steps:
        no_advantage = step.metrics["frac_reward_zero_std"] == 1.0
        assert (step.channels.grpo is None) == no_advantage
        assert (step.channels.sdpo is None) == (step.reward_mean == 1.0)


def test_the_phases_come_in_order(smoke: Finished) -> None:
    phases = [event.phase for event in smoke.events if isinstance(event, PhaseChanged)]
    assert phases[:3] == ["loading", "warming", "training"]
    assert phases[3:] == ["saving", "training", "saving", "training", "saving"]


def test_the_start_names_the_run(smoke: Finished) -> None:
    (started,) = [event for event in smoke.events if isinstance(event, RunStarted)]
    assert (started.run_id, started.attempt, started.total_steps) == ("run", 1, 150)
    assert started.device.kind == "cpu"
    assert 100_000 < started.parameters < 200_000


def test_checkpoints_are_whole_model_folders_and_only_the_last_two_are_kept(
    smoke: Finished,
) -> None:
    saved = [event for event in smoke.events if isinstance(event, CheckpointSaved)]
    assert [event.path for event in saved] == [f"checkpoints/step-{n}" for n in (50, 100, 150)]
    kept = sorted(path.name for path in (smoke.folder / "checkpoints").iterdir())
    assert kept == ["step-100", "step-150"]
    files = {path.name: path for path in (smoke.folder / "checkpoints/step-150").iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } <= files.keys()
    assert saved[-1].bytes == sum(path.stat().st_size for path in files.values())


def test_samples_and_memory_are_reported(smoke: Finished) -> None:
    samples = [event for event in smoke.events if isinstance(event, SampleGenerated)]
    assert [event.step for event in samples] == [*range(10, 151, 10)]
    assert all("=" in event.prompt and event.reward in {0.0, 1.0} for event in samples)
    memory = [event for event in smoke.events if isinstance(event, MemorySampled)]
    assert memory
    assert all(event.host_rss_bytes and event.host_rss_bytes > 10**8 for event in memory)


def test_the_process_that_worked_is_written_down(smoke: Finished) -> None:
    who = json.decode((smoke.folder / "process.json").read_bytes())
    assert who.keys() == {"pid", "start_time", "pgid"}
    assert not psutil.pid_exists(who["pid"])
    assert who["start_time"] < smoke.events[0].time


def test_the_log_is_quiet(smoke: Finished) -> None:
    assert smoke.stderr == ""


def test_every_line_of_stdout_is_an_event_of_less_than_4_kib(smoke: Finished) -> None:
    for line in smoke.stdout.splitlines():
        assert len(line) < 4096
        assert decode(line).seq is not None
