"""What a step plans, measures, skips and saves; in this process, on the builtin model."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from composer_engine import heads
from composer_engine.channels import PairTerms, preference
from composer_engine.checkpoint import Checkpoints
from composer_engine.config import RunConfig, load
from composer_engine.contract import EVENTS_FILE
from composer_engine.data import Data, load_data
from composer_engine.emitter import Emitter
from composer_engine.failures import NonFiniteError
from composer_engine.model import load_model
from composer_engine.protocol import AlertRaised, Event, StepCompleted
from composer_engine.record import StepRecord
from composer_engine.run import train
from composer_engine.safety import NonFiniteGuard, StopRequest
from composer_engine.trainer import ComposerTrainer
from tests.engine.engine_process import read_events


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """So little work is slower on two, and much slower on two that others use."""
    torch.set_num_threads(1)


# ---------------------------------------------------------------- the numbers


def record(**shares: list[float]) -> StepRecord:
    made = StepRecord(
        torch.zeros(1, 2), samples=[], rollout_seconds=0.0, tokens=1, has_advantage=True
    )
    for channel, values in shares.items():
        for value in values:
            made.note({channel: torch.tensor(value)}, {}, {})
    return made


WEIGHTS = {"grpo": 1.0, "sdpo": 0.5, "replay": 0.25}


def test_a_channels_value_is_the_sum_of_its_micro_batches() -> None:
    numbers = record(grpo=[1.0, 2.0], sdpo=[4.0]).close(torch.tensor(3.0), WEIGHTS)
    assert (numbers.channels.grpo, numbers.channels.sdpo) == (3.0, 4.0)
    assert numbers.channels.replay is None
    assert numbers.loss == 5.0
    assert numbers.grad_norm == 3.0
    assert numbers.is_live


@pytest.mark.parametrize(
    ("shares", "norm", "guilty"),
    [
        ({"grpo": [1.0], "sdpo": [math.nan]}, 1.0, "sdpo"),
        ({"grpo": [1.0, math.inf], "replay": [math.nan, 1.0]}, 1.0, "grpo, replay"),
        ({"grpo": [1.0]}, math.nan, "gradient"),
        ({"grpo": [1.0]}, math.inf, "gradient"),
    ],
)
def test_what_is_not_finite_is_named_and_crosses_as_null(
    shares: dict[str, list[float]], norm: float, guilty: str
) -> None:
    numbers = record(**shares).close(torch.tensor(norm), WEIGHTS)
    assert numbers.guilty == guilty
    assert numbers.loss is None


def test_without_an_advantage_grpo_is_absent_and_not_zero() -> None:
    made = record(grpo=[0.0])
    made.has_advantage = False
    numbers = made.close(torch.tensor(0.0), WEIGHTS)
    assert numbers.channels.grpo is None
    assert numbers.loss is None
    assert not numbers.is_live


def test_the_guard_counts_in_a_row() -> None:
    guard = NonFiniteGuard(patience=2)
    for guilty in ("sdpo", "", "replay"):
        guard.judge(guilty)
        assert not guard.exhausted
    guard.judge("gradient")
    assert guard.exhausted
    assert guard.last_guilty == "gradient"


# ---------------------------------------------------------------- steps that must not move


class Weights(TrainerCallback):
    """Copies of the weights and of the optimizer's state before and after each step."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.after: list[Any] = []

    def on_step_begin(self, *_: Any, model: Any = None, optimizer: Any = None, **__: Any) -> None:
        self.before.append(snapshot(model, optimizer))

    def on_step_end(self, *_: Any, model: Any = None, optimizer: Any = None, **__: Any) -> None:
        self.after.append(snapshot(model, optimizer))


def snapshot(model: Any, optimizer: Any) -> list[torch.Tensor]:
    state = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *state)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def configured(*settings: str) -> tuple[RunConfig, Data]:
    config = load("smoke", settings=settings)
    return config, load_data(config.data.path)


def trained(folder: Path, *settings: str, watch: TrainerCallback | None = None) -> list[Event]:
    """The events of a run in this process. Raises what the run raises."""
    config, data = configured(*settings)
    loaded = load_model(config.model, config.optimizer.seed)
    emitter = Emitter(None, folder)
    checkpoints = Checkpoints(folder, config.checkpoint.keep, emitter)
    original = ComposerTrainer.train

    def watched(self: ComposerTrainer, *args: Any, **kwargs: Any) -> Any:
        if watch is not None:
            self.add_callback(watch)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComposerTrainer, "train", watched)
        train(config, data, loaded, checkpoints, emitter, StopRequest(emitter, folder))
    return read_events(folder / EVENTS_FILE)


@pytest.fixture
def bad_steps(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Calls of the DPO loss, counted from 1, that come out as NaN."""
    calls, bad, honest = 0, set[int](), preference

    def sometimes(logps: torch.Tensor, reference: torch.Tensor, beta: float) -> PairTerms:
        nonlocal calls
        calls += 1
        terms = honest(logps, reference, beta)
        factor = math.nan if calls in bad else 1
        return terms._replace(losses=terms.losses * factor, slopes=terms.slopes * factor)

    monkeypatch.setattr(heads, "preference", sometimes)
    return bad


def test_a_step_that_is_not_finite_moves_neither_weights_nor_momentum(
    bad_steps: set[int], tmp_path: Path
) -> None:
    bad_steps |= {3, 4}
    weights = Weights()
    events = trained(tmp_path, "optimizer.steps=6", "optimizer.weight_decay=0.5", watch=weights)
    steps = [event for event in events if isinstance(event, StepCompleted)]
    assert [step.loss is None for step in steps] == [False, False, True, True, False, False]
    moved = [
        not equal(before, after)
        for before, after in zip(weights.before, weights.after, strict=True)
    ]
    assert moved == [True, True, False, False, True, True]
    for step in steps[2:4]:
        assert step.channels.replay is None
        assert step.channels.sdpo is not None
    alerts = [event for event in events if isinstance(event, AlertRaised)]
    assert [(alert.rule, alert.step) for alert in alerts] == [("non_finite", 3), ("non_finite", 4)]
    assert "(2 of 3 in a row)" in alerts[1].message


def test_one_bad_micro_batch_spoils_the_whole_step_and_no_other(
    bad_steps: set[int], tmp_path: Path
) -> None:
    bad_steps |= {2}  # of four micro batches in the first step
    weights = Weights()
    events = trained(tmp_path, "optimizer.steps=2", "optimizer.micro_batches=4", watch=weights)
    steps = [event for event in events if isinstance(event, StepCompleted)]
    assert [step.loss is None for step in steps] == [True, False]
    assert equal(weights.before[0], weights.after[0])
    assert not equal(weights.before[1], weights.after[1])


def test_patience_ends_the_run(bad_steps: set[int], tmp_path: Path) -> None:
    bad_steps |= {*range(2, 10)}
    with pytest.raises(NonFiniteError, match="2 steps in a row were not finite"):
        trained(tmp_path, "optimizer.steps=9", "safety.non_finite_patience=2")
    events = read_events(tmp_path / EVENTS_FILE)
    assert sum(isinstance(event, StepCompleted) for event in events) == 3


def test_micro_batches_change_the_memory_and_not_the_run(tmp_path: Path) -> None:
    runs = []
    for count in (1, 2, 8):
        folder = tmp_path / str(count)
        folder.mkdir()
        events = trained(folder, "optimizer.steps=3", f"optimizer.micro_batches={count}")
        runs.append([event for event in events if isinstance(event, StepCompleted)])
    for whole, *split in zip(*runs, strict=True):
        for step in split:
            assert step.loss == pytest.approx(whole.loss, rel=1e-3, abs=1e-5)
            assert step.channels.sdpo == pytest.approx(whole.channels.sdpo, rel=1e-3)
            assert step.channels.replay == pytest.approx(whole.channels.replay, rel=1e-4)
            assert step.grad_norm == pytest.approx(whole.grad_norm, rel=1e-3)
            assert step.metrics["sdpo_active_tokens"] == whole.metrics["sdpo_active_tokens"]


def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    losses = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        events = trained(tmp_path / name, "optimizer.steps=3", "optimizer.seed=9")
        losses.append([event.loss for event in events if isinstance(event, StepCompleted)])
    assert losses[0] == losses[1]


def test_a_checkpoint_loads_as_the_model_that_was_trained(tmp_path: Path) -> None:
    weights = Weights()
    trained(tmp_path, "optimizer.steps=2", watch=weights)
    config, _ = configured(f"model.path={tmp_path / 'checkpoints' / 'step-2'}")
    loaded = load_model(config.model, 0)
    parameters = [*loaded.model.parameters()]
    assert equal([p.detach() for p in parameters], weights.after[-1][: len(parameters)])
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hint:7. 3+4=")) == "hint:7. 3+4="


def test_the_reference_is_taken_without_touching_the_model(tmp_path: Path) -> None:
    config, data = configured("optimizer.steps=1")
    loaded = load_model(config.model, 0)
    trainer = ComposerTrainer(config, loaded, data, Checkpoints(tmp_path, 1, Emitter(None, None)))
    before = copy.deepcopy([*loaded.model.parameters()])
    trainer.precompute_reference()
    assert len(trainer.reference) == 8  # of the pairs, those that one step replays
    assert equal([p.detach() for p in before], [p.detach() for p in loaded.model.parameters()])
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
