"""The true norm of each channel's own parameter gradient, measured apart from training.

It costs each channel's forwards and backwards once more, and holds one gradient at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch

from composer_engine.plan import ReplayPlan, StudentPlan
from composer_engine.processes import mean_over, sum_over
from composer_engine.step import Losses, StepOptions, Teacher, replay_loss, student_loss


def channel_norms(
    causal_lm: Any,
    plans: Sequence[StudentPlan | ReplayPlan],  # this process's, of all micro batches of a step
    options: StepOptions,
    teacher: Teacher,
    accelerator: Any,
) -> dict[str, torch.Tensor]:  # scalars on the device
    """Of the channels with a weight, of the step as a whole, as they are added to the gradient.

    No gradient may be held when it is called, and none is after it. All processes must ask. A
    channel that learns nothing in the step, in any process, is left out.
    """
    # What float16 gradients need to be large enough is taken out again.
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
    norms = {}
    for channel in ("grpo", "sdpo", "replay"):
        parts = [(plan, only) for plan in plans if (only := _only(channel, plan)) is not None]
        if not sum_over(accelerator, [len(parts)])[0]:
            continue
        for _, only in parts:
            losses = _losses(causal_lm, only, options, teacher)
            (losses.total * scale).backward()  # type: ignore[no-untyped-call]
        norms[channel] = _norm(causal_lm, accelerator) / scale
        causal_lm.zero_grad(set_to_none=True)
    return norms


def _only(channel: str, plan: StudentPlan | ReplayPlan) -> StudentPlan | ReplayPlan | None:
    """The plan without the other channels; none where nothing is left of it."""
    if isinstance(plan, ReplayPlan):
        return plan if channel == "replay" else None
    if channel == "grpo":
        return plan._replace(teacher=None)
    if channel == "sdpo" and plan.teacher is not None:
        return plan._replace(rows=plan.rows._replace(weights=torch.zeros_like(plan.rows.weights)))
    return None


def _losses(
    causal_lm: Any, plan: StudentPlan | ReplayPlan, options: StepOptions, teacher: Teacher
) -> Losses:
    if isinstance(plan, ReplayPlan):
        return replay_loss(causal_lm, plan, options)
    return student_loss(causal_lm, plan, options, teacher)


def _norm(causal_lm: Any, accelerator: Any) -> torch.Tensor:
    trained = [parameter for parameter in causal_lm.parameters() if parameter.requires_grad]
    square = torch.zeros((), device=trained[0].device)
    for parameter in trained:
        gradient = parameter.grad
        if gradient is None:
            gradient = torch.zeros_like(parameter)
        square += mean_over(accelerator, gradient.float()).square().sum()
    return square.sqrt()
