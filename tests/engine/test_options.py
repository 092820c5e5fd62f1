"""The options of a step in real runs: who teaches, whose turn it is, how often a rollout serves."""

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as f
from transformers import TrainerCallback

from composer_engine.config import load
from composer_engine.data import load_data
from composer_engine.model import load_model
from composer_engine.plan import Planner, Rollout, Scored
from composer_engine.record import StepRecord
from composer_engine.step import hidden_rows, live_teacher
from composer_engine.teacher import KeptTeacher, Teacher
from tests.engine.test_gradients import Watched, flat_gradient, make_trainer

BASE = (
    "optimizer.max_grad_norm=1e9",
    "optimizer.learning_rate=1e-3",
    "optimizer.seed=3",
    "loss.sdpo_weight=1",
    "loss.replay_weight=1",
    "hints.success_reward=2",  # every rollout failed: teach on all
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """So little work is slower on two, and much slower on two that others use."""
    torch.set_num_threads(1)


class Journal(TrainerCallback):
    """What each step had, before and after its optimizer moved."""

    def __init__(self, trainer: Watched) -> None:
        self._trainer = trainer
        self.records: list[StepRecord] = []
        self.gradients: list[torch.Tensor] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.teachers: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.gradients.append(flat_gradient(model))
        self.weights.append(copies(model.named_parameters()))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.records.append(self._trainer.record)
        self.teachers.append(copies(self._trainer.teacher.state().items()))


def copies(named: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named}


def run(folder: Path, steps: int, *settings: str) -> tuple[Watched, Journal]:
    folder.mkdir(exist_ok=True)
    config = load("smoke", settings=(*BASE, f"optimizer.steps={steps}", *settings))
    loaded = load_model(config.model, config.optimizer.seed)
    trainer = make_trainer(config, loaded, load_data(config.data.path), folder)
    trainer.precompute_reference()
    journal = Journal(trainer)
    trainer.add_callback(journal)
    trainer.train()
    return trainer, journal


# ---------------------------------------------------------------- turns and ways


def test_channels_that_alternate_run_only_in_their_turn(tmp_path: Path) -> None:
    trainer, journal = run(tmp_path, 4, "loss.alternate_channels=true")
    had = [(n.channels.sdpo is not None, n.channels.replay is not None) for n in numbers(journal)]
    assert had == [(True, False), (False, True)] * 2
    assert trainer.forwards.count(True) == 4 + 2
    assert trainer.forwards.count(False) == 2
    replayed = [record.pairs for record in journal.records]
    assert replayed[1] == trainer.plans.schedule.at(0)
    assert replayed[3] == trainer.plans.schedule.at(1)


def numbers(journal: Journal) -> list[Any]:
    return [record.numbers for record in journal.records]


def test_one_backward_or_one_a_channel_is_the_same_run(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / way, 2, f"loss.channel_backward={way}", "optimizer.micro_batches=2")[1]
        for way in ("summed", "per_channel")
    ]
    for one, other in zip(*(journal.gradients for journal in runs), strict=True):
        assert (one - other).norm() / one.norm() < 1e-4
    assert numbers(runs[0])[1].loss == pytest.approx(numbers(runs[1])[1].loss, rel=1e-4)


def test_a_compiled_backbone_takes_the_same_step_and_samples_eagerly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builtin = Path(str(resources.files("composer_engine") / "builtin"))
    copy = shutil.copytree(builtin, tmp_path / "model")  # the builtin one is never compiled
    alone = ("loss.sdpo_weight=0", "loss.replay_weight=0", f"model.path={copy}")
    plain = run(tmp_path / "plain", 1, *alone)[1].gradients
    graphs: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    honest = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: honest(self, backend=backend, dynamic=True)
    )
    trainer, journal = run(tmp_path / "compiled", 1, *alone, "model.torch_compile=true")
    assert len(graphs) == 1  # sampling would have compiled as well
    assert (journal.gradients[0] - plain[0]).norm() / plain[0].norm() < 1e-5
    assert trainer.record.numbers.loss is not None


def test_the_builtin_model_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    trainer, _ = run(tmp_path, 1, "model.torch_compile=true")
    assert compiled == []
    assert trainer.record.numbers.loss is not None


def test_a_compiled_backbone_keeps_the_attention_that_needs_no_mask() -> None:
    model = load_model(load("smoke").model, 0).causal_lm
    planner, attended = Planner(0, torch.device("cpu")), list[Any]()

    def backend(graph: Any, _: Any) -> Any:
        attended.extend(
            (node.kwargs["attn_mask"], node.kwargs["is_causal"])
            for node in graph.graph.nodes
            if node.target is torch.nn.functional.scaled_dot_product_attention
        )
        return graph.forward

    model.base_model.compile(backend=backend, dynamic=True)
    for longest in (9, 12):  # which is no reason to compile anew
        batch = planner.rows([Scored((4,) * longest, 2), Scored((5,) * 5, 1)]).batch
        hidden_rows(model, batch)
    assert attended == [(None, True)] * model.config.num_hidden_layers


# ---------------------------------------------------------------- one rollout, several updates


def naive_off_policy(model: Any, rollouts: list[Rollout], epsilon: float) -> torch.Tensor:
    """Each sequence on its own, against the log-probabilities that the rollout kept."""
    total, tokens = torch.zeros(()), 0
    for rollout in rollouts:
        ids = torch.tensor([rollout.sequence.ids])
        count = len(rollout.sequence.ids) - rollout.sequence.start
        logp = f.log_softmax(model(input_ids=ids).logits[:, :-1], -1)
        logp = logp.gather(-1, ids[:, 1:, None])[0, -count:, 0]
        assert rollout.old_logps is not None
        ratio = torch.exp(logp - torch.tensor(rollout.old_logps))
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        total = total - torch.min(ratio * rollout.advantage, clipped * rollout.advantage).sum()
        tokens += count
    return total / tokens


def test_a_rollout_used_again_is_off_policy_and_learns_what_the_formula_says(
    tmp_path: Path,
) -> None:
    alone = ("loss.sdpo_weight=0", "loss.replay_weight=0", "optimizer.learning_rate=3e-3")
    trainer, journal = run(
        tmp_path,
        4,
        *alone,
        "rollout.updates_per_rollout=2",
        "loss.clip_epsilon=0.1",
        "optimizer.micro_batches=2",
    )
    seen = [
        [row for batch in trainer.batches[2 * i : 2 * i + 2] for row in batch["rollouts"]]
        for i in range(4)
    ]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    config = load("smoke").model
    for step in (0, 1, 3):
        model = load_model(config, 0).model
        model.load_state_dict(journal.weights[step], strict=False)  # the head is tied
        naive_off_policy(model, seen[step], 0.1).backward()
        expected = flat_gradient(model)
        assert (journal.gradients[step] - expected).norm() / expected.norm() < 1e-5
    clipped = [n.metrics["clip_ratio/region_mean"] for n in numbers(journal)]
    assert clipped[0] == clipped[2] == 0
    assert clipped[1] > 0


def test_the_second_use_of_a_rollout_keeps_its_rewards_and_took_no_time_to_roll_out(
    tmp_path: Path,
) -> None:
    _, journal = run(tmp_path, 4, "rollout.updates_per_rollout=2")
    first, again, other, _ = journal.records
    assert torch.equal(first.rewards, again.rewards)
    assert first.samples == again.samples != other.samples
    assert first.rollout_seconds > 0
    assert again.rollout_seconds == 0
    assert first.pairs != again.pairs  # each step replays its own
    assert first.tokens == again.tokens
    assert all(n.loss is not None for n in numbers(journal))


# ---------------------------------------------------------------- teachers


def test_a_frozen_teacher_is_the_model_as_it_was(tmp_path: Path) -> None:
    trainer, journal = run(tmp_path, 3, "loss.teacher=frozen")
    start = load_model(trainer.run_config.model, 0).causal_lm
    plan = trainer.plans.planner.rows([Scored((4, 5, 6, 7, 8), 2)])
    ours = trainer.teacher(trainer.model, plan.batch)
    expected = live_teacher(start, plan.batch)
    assert torch.equal(ours.hidden, expected.hidden)
    assert torch.equal(ours.head.weight, expected.head.weight)
    assert not torch.equal(live_teacher(trainer.model, plan.batch).hidden, expected.hidden)
    assert journal.teachers[-1] == {}  # it can be had again from the model that the run starts with


def test_a_moving_average_follows_each_step(tmp_path: Path) -> None:
    rate = 0.25
    trainer, journal = run(tmp_path, 3, "loss.teacher=ema", f"loss.teacher_ema_rate={rate}")
    average = journal.weights[0]  # where both begin
    model: Any = trainer.model
    after = [*journal.weights[1:], copies(model.named_parameters())]
    for weights, teacher in zip(after, journal.teachers, strict=True):
        average = {name: a + rate * (weights[name] - a) for name, a in average.items()}
        for name, tensor in teacher.items():
            assert torch.allclose(tensor, average[name], rtol=1e-5, atol=1e-7)
    assert journal.teachers[-1].keys() == average.keys()


def test_an_average_that_was_saved_is_the_one_that_goes_on() -> None:
    model = load_model(load("smoke").model, 0).causal_lm
    teacher = KeptTeacher(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    teacher.follow()
    saved = copies(teacher.state().items())
    other = KeptTeacher(model, 0.5)
    other.load(saved)
    for one in (teacher, other):
        one.follow()
    assert all(torch.equal(teacher.state()[name], other.state()[name]) for name in saved)
    with pytest.raises(ValueError, match="another model"):
        other.load({"wrong": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"loss\.teacher"):
        Teacher("live", 0.5, model).load(saved)


def test_an_average_of_bfloat16_weights_is_not_rounded_away() -> None:
    model = load_model(load("smoke").model, 0).causal_lm.bfloat16()
    teacher = KeptTeacher(model, 0.001)
    name = next(iter(teacher.state()))
    before = teacher.state()[name].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    for _ in range(10):
        teacher.follow()
    assert teacher.state()[name].dtype == torch.float32
    moved = (teacher.state()[name] - before) / before
    assert moved[before.abs() > 1e-3].mean() == pytest.approx(0.5 * (1 - 0.999**10), rel=1e-3)


@pytest.mark.parametrize("kind", ["frozen", "ema"])
def test_an_adapters_teacher_keeps_no_copy_of_the_model(
    kind: Any, random_model: Path, tmp_path: Path
) -> None:
    trainer, journal = run(
        tmp_path,
        2,
        f"model.path={random_model}",
        "model.lora_rank=2",
        f"loss.teacher={kind}",
        "loss.teacher_ema_rate=1",  # so that it ends where the student ends
    )
    held = sum(tensor.numel() for tensor in trainer.teacher.state().values())
    model: Any = trainer.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert held == (trained if kind == "ema" else 0)
    plan = trainer.plans.planner.rows([Scored((4, 5, 6, 7, 8), 2)])
    inner = model.get_base_model()
    ours, student = trainer.teacher(inner, plan.batch), live_teacher(inner, plan.batch)
    with model.disable_adapter():
        start = live_teacher(inner, plan.batch)
    expected = student if kind == "ema" else start
    assert torch.equal(ours.hidden, expected.hidden)
    assert not torch.equal(student.hidden, start.hidden)
    assert all(n.channels.sdpo is not None for n in numbers(journal))


# ---------------------------------------------------------------- each channel's own gradient


def test_the_channels_own_gradients_are_measured_without_touching_the_step(
    tmp_path: Path,
) -> None:
    settings = ("optimizer.micro_batches=2",)
    plain = run(tmp_path / "plain", 2, *settings)[1]
    _, journal = run(tmp_path / "measured", 2, *settings, "report.channel_norms_every_steps=2")
    assert all(map(torch.equal, plain.gradients, journal.gradients))
    first, second = (n.metrics for n in numbers(journal))
    names = [f"grad_norm_{channel}" for channel in ("grpo", "sdpo", "replay")]
    assert not first.keys() & {*names}
    norms = [second[name] for name in names]
    total = float(journal.gradients[1].norm())
    assert total <= sum(norms) * 1.0001
    assert total >= 2 * max(norms) - sum(norms)  # what the triangle leaves
    # One channel alone is the whole gradient.
    alone = ("loss.sdpo_weight=0", "loss.replay_weight=0", "report.channel_norms_every_steps=1")
    _, journal = run(tmp_path / "alone", 1, *settings, *alone)
    (only,) = numbers(journal)
    whole = float(journal.gradients[0].double().norm())
    assert only.metrics["grad_norm_grpo"] == pytest.approx(whole, rel=1e-5)
    assert "grad_norm_sdpo" not in only.metrics
    assert only.metrics["grad_share_grpo"] == 1
