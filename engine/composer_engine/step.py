"""What one micro batch computes, from planned tensors to losses; it knows of no rollout.

The backbone runs once with gradient for GRPO and SDPO together, once without for the teacher,
and once with gradient for both sides of the replayed pairs. The LM head sees loss rows alone. A
channel that is off, or that has no rows, runs nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from transformers import masking_utils

from composer_engine.channels import Divergence
from composer_engine.heads import Knobs, Taught, replay_head, student_head, token_logps
from composer_engine.plan import Batch, ReplayPlan, RowsPlan, StudentPlan
from composer_engine.tiles import head_of

Teacher = Callable[[Any, Batch], Taught]
"""Reads the planned rows with the teacher's weights, given the student; without gradient."""


class StepOptions(NamedTuple):
    """The step's numbers, as `composer_engine.config.LossConfig` has them."""

    sdpo_weight: float = 0.1
    replay_weight: float = 0.05
    dpo_beta: float = 0.1
    jsd_beta: float = 0.5
    clip_epsilon: float = 0.2
    temperature: float = 1.0  # the rollout's; GRPO and SDPO are scored at it
    top_k: int = 0
    top_k_of: Literal["teacher", "student"] = "teacher"
    top_k_tail: bool = False
    channel_backward: Literal["summed", "per_channel"] = "per_channel"


class Losses(NamedTuple):
    """``total`` carries the gradient. All others are detached scalars on the device.

    ``channels`` have no weight. ``squares`` are the squared norms of each channel's gradient at
    the hidden rows, with its weight. ``metrics`` are this micro batch's shares of the step's.
    """

    total: torch.Tensor
    channels: dict[str, torch.Tensor]
    squares: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


def student_loss(
    causal_lm: Any, plan: StudentPlan, options: StepOptions, teacher: Teacher | None = None
) -> Losses:
    """GRPO + ``sdpo_weight`` * SDPO. Without ``teacher`` the model teaches itself, as it is."""
    taught = None
    if plan.teacher is not None and options.sdpo_weight:
        # First, while no activations are held.
        taught = (teacher or live_teacher)(causal_lm, plan.teacher)
    hidden = hidden_rows(causal_lm, plan.batch)  # [M, H]
    rule = Divergence(options.jsd_beta, options.top_k, options.top_k_of, options.top_k_tail)
    knobs = Knobs(options.temperature, options.clip_epsilon, options.sdpo_weight, rule)
    sums = student_head(hidden, head_of(causal_lm), plan.rows, knobs, taught)
    channels, squares = {"grpo": sums.grpo}, {"grpo": sums.grpo_square}
    if taught is not None:
        channels["sdpo"], squares["sdpo"] = sums.sdpo, sums.sdpo_square
    share = plan.rows.share
    metrics = {
        "entropy": sums.entropy * share,
        "clip_ratio/low_mean": sums.clipped_low * share,
        "clip_ratio/high_mean": sums.clipped_high * share,
        "clip_ratio/region_mean": (sums.clipped_low + sums.clipped_high) * share,
    }
    return Losses(sums.total, channels, squares, metrics)


def replay_loss(causal_lm: Any, plan: ReplayPlan, options: StepOptions) -> Losses:
    """``replay_weight`` * DPO of the pairs, both sides in one forward."""
    hidden = hidden_rows(causal_lm, plan.batch)  # [M, H]
    sums = replay_head(hidden, head_of(causal_lm), plan.rows, options.dpo_beta)
    share, weight = plan.rows.share, options.replay_weight
    metrics = {
        "replay_margin": sums.margins.sum() * share,
        "replay_accuracy": (sums.margins > 0).sum() * share,
        "replay_chosen_logp": sums.logps.chunk(2)[0].sum() * share,
    }
    squares = {"replay": sums.square * weight**2}
    return Losses(weight * sums.loss, {"replay": sums.loss.detach()}, squares, metrics)


def backward(
    causal_lm: Any,
    student: StudentPlan,
    replay: ReplayPlan | None,
    options: StepOptions,
    teacher: Teacher | None = None,
) -> tuple[Losses, Losses | None]:
    """One micro batch, forward and backward: the gradients are added to the parameters'.

    ``per_channel`` frees the pairs' activations before the rollouts' are made.
    """
    replayed = None
    if replay is not None and options.replay_weight:
        replayed = replay_loss(causal_lm, replay, options)
        if options.channel_backward == "per_channel":
            replayed.total.backward()  # type: ignore[no-untyped-call]
    losses = student_loss(causal_lm, student, options, teacher)
    total = losses.total
    if replayed is not None and options.channel_backward == "summed":
        total = total + replayed.total
    total.backward()  # type: ignore[no-untyped-call]
    return losses, replayed


@torch.no_grad()
def live_teacher(causal_lm: Any, batch: Batch) -> Taught:
    """The student itself, reading the hinted sequences."""
    return Taught(hidden_rows(causal_lm, batch), head_of(causal_lm))


@torch.no_grad()
def row_logps(causal_lm: Any, plan: RowsPlan, temperature: float, tile_rows: int) -> torch.Tensor:
    """Log-probability [M] of each scored token."""
    hidden = hidden_rows(causal_lm, plan.batch)
    return token_logps(hidden, plan.targets, head_of(causal_lm), temperature, tile_rows)


def hidden_rows(causal_lm: Any, batch: Batch) -> torch.Tensor:  # [M, H]
    """The backbone's last hidden states at the rows that predict a scored token."""
    backbone = causal_lm.base_model
    return rows_of(lambda inputs: backbone(**inputs), backbone, batch)


def rows_of(
    forward: Callable[[dict[str, Any]], Any], backbone: Any, batch: Batch
) -> torch.Tensor:  # [M, H]
    """As `hidden_rows`, with a forward of the caller's: it gets the backbone's arguments."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.segments is not None:
        inputs["attention_mask"] = _own_answer_mask(batch.segments, backbone.dtype)
        inputs["position_ids"] = batch.positions
    with _not_packed():
        hidden: torch.Tensor = forward(inputs).last_hidden_state  # [R, T, H]
    return hidden.flatten(0, 1).index_select(0, batch.rows)


@contextlib.contextmanager
def _not_packed() -> Iterator[None]:
    """Tells transformers that no row holds several sequences, which it would look for.

    To look it waits for the device. Compiled it cannot look, so it assumes them, and the mask
    that this takes keeps the fastest attention kernels from running.
    """
    masks: Any = masking_utils
    before = masks.find_packed_sequence_indices
    masks.find_packed_sequence_indices = _none_are_packed
    try:
        yield
    finally:
        masks.find_packed_sequence_indices = before


def _none_are_packed(_: torch.Tensor) -> None:
    """In place of transformers' ``find_packed_sequence_indices``."""


def _own_answer_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[R, 1, T, T] to be added to the scores: a token reads the prompt and its own answer."""
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    seen = ((key == 0) | (key == query)).tril()
    low = torch.finfo(dtype).min
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, low)
