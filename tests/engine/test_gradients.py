"""The step's gradient is the formula's: an independent, naive computation on the same rollout.

This is the whole trainer, from TRL's rollout to the gradient that the optimizer gets; the step's
own options are gone through in test_equal.py. The naive side knows nothing of plans, tiles or
micro batches.
"""

import copy
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional as f
from transformers import TrainerCallback

from composer_engine.checkpoint import Checkpoints
from composer_engine.config import RunConfig, load
from composer_engine.data import Data, load_data
from composer_engine.emitter import Emitter
from composer_engine.model import Loaded, load_model, unwrapped
from composer_engine.plan import Scored
from composer_engine.record import StepRecord
from composer_engine.trainer import ComposerTrainer

TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """So little work is slower on two, and much slower on two that others use."""
    torch.set_num_threads(1)


class OneStep(TrainerCallback):
    """Keeps the gradient that the optimizer would get."""

    gradient: torch.Tensor

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.gradient = flat_gradient(model)


class Watched(ComposerTrainer):
    """Counts the backbone's forwards inside the loss, with and without gradient."""

    forwards: list[bool]
    batches: list[dict[str, Any]]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.batches.append(inputs)
        with watched_forwards(unwrapped(model).base_model) as forwards:
            loss = super()._compute_loss(model, inputs)
        self.forwards += forwards
        return loss


class Step(NamedTuple):
    """A step that was taken, and the model as it was before."""

    before: Any
    data: Data
    trainer: Watched
    gradient: torch.Tensor
    record: StepRecord


@contextmanager
def watched_forwards(backbone: Any) -> Iterator[list[bool]]:
    forwards: list[bool] = []
    handle = backbone.register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    try:
        yield forwards
    finally:
        handle.remove()


def flat_gradient(model: Any) -> torch.Tensor:
    return torch.cat(
        [
            (p.grad if p.grad is not None else torch.zeros_like(p)).flatten()
            for p in model.parameters()
            if p.requires_grad
        ]
    )


def take_step(folder: Path, *settings: str) -> Step:
    """One real optimizer step of the smoke preset with settings, from weights that have moved."""
    base = ("optimizer.steps=1", "optimizer.max_grad_norm=1e9", "optimizer.seed=3")
    config = load("smoke", settings=(*base, *settings))
    data = load_data(config.data.path)
    loaded = load_model(config.model, config.optimizer.seed)
    trainer = make_trainer(config, loaded, data, folder)
    trainer.precompute_reference()
    torch.manual_seed(7)
    with torch.no_grad():
        # Away from the reference, or DPO's ratios would all be 1; LoRA's B must not stay 0.
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    before = copy.deepcopy(loaded.model)
    # TRL's fused forward is bound to the model it was made for, and a copy keeps that binding.
    del unwrapped(before).forward
    keeper = OneStep()
    trainer.add_callback(keeper)
    trainer.train()
    return Step(before, data, trainer, keeper.gradient, trainer.record)


def make_trainer(config: RunConfig, loaded: Loaded, data: Data, folder: Path) -> Watched:
    emitter = Emitter(None, None)
    trainer = Watched(config, loaded, data, Checkpoints(folder, 1, emitter))
    trainer.forwards, trainer.batches = [], []
    return trainer


# ---------------------------------------------------------------- the naive computation


def log_probs(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of every token of the vocabulary at every place, [B, T, V]."""
    # Not through the fused head: the plain forward of the model under any adapter.
    return f.log_softmax(model(input_ids=ids, attention_mask=mask).logits.float(), -1)


def of_tokens(logp: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token after the first, [B, T-1]."""
    return logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]


def naive_grpo(model: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    """TRL's default (DAPO): summed over all tokens of the step, divided by their number."""
    total, tokens = torch.zeros(()), 0
    for batch in batches:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        width = batch["completion_ids"].size(1)
        logp = of_tokens(log_probs(model, ids, mask), ids)[:, -width:]
        ratio = torch.exp(logp - logp.detach())
        scored = batch["completion_mask"]
        total = total - (ratio * batch["advantages"][:, None] * scored).sum()
        tokens += int(scored.sum())
    return total / tokens


def naive_sdpo(model: Any, teachers: list[Scored], contexts: list[str], beta: float) -> Any:
    """One rollout at a time, the student's and the teacher's sequence each on its own."""
    total, tokens = torch.zeros(()), 0
    for teacher, prompt in zip(teachers, contexts, strict=True):
        completion = list(teacher.ids[teacher.start :])
        student_ids = torch.tensor([[*encode(prompt), *completion]])
        teacher_ids = torch.tensor([teacher.ids])
        count = len(completion)
        student = log_probs(model, student_ids, torch.ones_like(student_ids))[0, -count - 1 : -1]
        with torch.no_grad():
            taught = log_probs(model, teacher_ids, torch.ones_like(teacher_ids))[0, -count - 1 : -1]
        total = total + divergence(student, taught, beta).sum()
        tokens += count
    return total / tokens


def divergence(ps: torch.Tensor, pt: torch.Tensor, beta: float) -> torch.Tensor:
    """Generalised JSD of log-probabilities, a token."""
    if beta == 0:
        return (pt.exp() * (pt - ps)).sum(-1)
    if beta == 1:
        return (ps.exp() * (ps - pt)).sum(-1)
    mixed = torch.logaddexp(ps + math.log(1 - beta), pt + math.log(beta))
    to_teacher = (pt.exp() * (pt - mixed)).sum(-1)
    return beta * to_teacher + (1 - beta) * (ps.exp() * (ps - mixed)).sum(-1)


def naive_replay(model: Any, reference: Any, step: Step, dpo_beta: float) -> torch.Tensor:
    losses = []
    for index in step.record.pairs:
        pair = step.data.pairs[index]
        ratios = []
        for answer in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*encode(pair.prompt), *encode(answer), eos()]])
            scored = ids.size(1) - len(encode(pair.prompt))
            policy = of_tokens(log_probs(model, ids, torch.ones_like(ids)), ids)[0, -scored:].sum()
            with torch.no_grad():
                start = of_tokens(log_probs(reference, ids, torch.ones_like(ids)), ids)
            ratios.append(policy - start[0, -scored:].sum())
        losses.append(-f.logsigmoid(dpo_beta * (ratios[0] - ratios[1])))
    return torch.stack(losses).mean()


@functools.cache
def tokenizer() -> Any:
    from composer_engine.builtin.make_checkpoint import make_tokenizer

    return make_tokenizer()


def encode(text: str) -> list[int]:
    ids: list[int] = tokenizer().encode(text)
    return ids


def eos() -> int:
    return int(tokenizer().eos_token_id)


def naive_gradient(step: Step, config: RunConfig) -> tuple[float, torch.Tensor]:
    """Total loss and gradient of the step, from the rollout alone."""
    model, loss = step.before, config.loss
    model.zero_grad(set_to_none=True)
    total = naive_grpo(model, step.trainer.batches)
    if loss.sdpo_weight:
        teachers, prompts = [], []
        for batch in step.trainer.batches:
            for row, rollout in enumerate(batch["rollouts"]):
                if (teacher := rollout.teacher) is not None:
                    kept = batch["prompt_mask"][row].bool()
                    prompts.append(tokenizer().decode(batch["prompt_ids"][row][kept]))
                    teachers.append(teacher)
        total = total + loss.sdpo_weight * naive_sdpo(model, teachers, prompts, loss.jsd_beta)
    if loss.replay_weight:
        reference = load_model(config.model, config.optimizer.seed).model
        total = total + loss.replay_weight * naive_replay(model, reference, step, loss.dpo_beta)
    total.backward()
    return float(total.detach()), flat_gradient(model)


# ---------------------------------------------------------------- the claims

CASES = {
    "as it comes": (),
    "in sixteen micro batches": ("optimizer.micro_batches=16",),
    "grpo alone": ("loss.sdpo_weight=0", "loss.replay_weight=0"),
    "reverse KL, one backward": (
        "loss.jsd_beta=1",
        "loss.sdpo_weight=2",
        "loss.channel_backward=summed",
        "optimizer.micro_batches=2",
    ),
    "heavy weights, gradient checkpointing": (
        "loss.sdpo_weight=1",
        "loss.replay_weight=1",
        "model.gradient_checkpointing=true",
    ),
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_the_gradient_is_that_of_the_formula(settings: tuple[str, ...], tmp_path: Path) -> None:
    step = take_step(tmp_path, *settings)
    config = step.trainer.run_config
    loss, gradient = naive_gradient(step, config)
    difference = (step.gradient - gradient).norm() / gradient.norm()
    assert difference < TOLERANCE
    assert step.record.numbers.loss == pytest.approx(loss, rel=1e-5, abs=1e-7)


def test_a_checkpointed_adapters_gradient_is_that_of_the_formula(
    random_model: Path, tmp_path: Path
) -> None:
    step = take_step(
        tmp_path,
        f"model.path={random_model}",
        "model.lora_rank=4",
        "model.gradient_checkpointing=true",
        "optimizer.micro_batches=2",
        "loss.sdpo_weight=1",
        "loss.replay_weight=1",
        "hints.success_reward=2",  # a random model solves nothing: teach on everything
    )
    _, gradient = naive_gradient(step, step.trainer.run_config)
    assert gradient.norm() > 0
    assert (step.gradient - gradient).norm() / gradient.norm() < TOLERANCE


@pytest.mark.parametrize(
    ("settings", "with_gradient", "without"),
    [
        ((), 2, 1),
        (("loss.sdpo_weight=0",), 2, 0),
        (("loss.replay_weight=0",), 1, 1),
        (("loss.sdpo_weight=0", "loss.replay_weight=0"), 1, 0),
    ],
    ids=["three channels", "no sdpo", "no replay", "grpo alone"],
)
def test_a_channel_that_is_off_costs_no_forward(
    settings: tuple[str, ...], with_gradient: int, without: int, tmp_path: Path
) -> None:
    step = take_step(tmp_path, *settings)
    assert step.trainer.forwards.count(True) == with_gradient
    assert step.trainer.forwards.count(False) == without
    if "loss.replay_weight=0" in settings:
        assert len(step.trainer.reference) == 0
