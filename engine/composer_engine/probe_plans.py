"""The plans of a micro batch whose sequences are all as long as the longest; no tokens are real."""

from typing import Any

from composer_engine.config import RunConfig
from composer_engine.memory import Lengths, Work


def plans(config: RunConfig, lengths: Lengths, work: Work, causal_lm: Any) -> tuple[Any, Any]:
    """The student's plan and the replay's, if there is one, on the CPU.

    All sequences are as long as the longest.
    """
    import torch

    from composer_engine.plan import Planner, Rollout, can_share_prompts, sharing_pays

    planner, completion = Planner(0, torch.device("cpu")), lengths.completion
    rollout = Rollout(_scored(lengths.prompt, completion), 1.0)
    taught = rollout._replace(teacher=_scored(lengths.teacher_prompt, completion))
    if config.rollout.updates_per_rollout > 1:
        old = (0.0,) * completion
        rollout, taught = rollout._replace(old_logps=old), taught._replace(old_logps=old)
    rollouts = [taught] * work.taught + [rollout] * (work.completions - work.taught)
    student = planner.student(
        rollouts, work.completions * completion, max(1, work.taught * completion)
    )
    if not work.pairs:
        return student, None
    chosen = [_scored(lengths.pair_prompt, lengths.chosen)] * work.pairs
    rejected = [_scored(lengths.pair_prompt, lengths.rejected)] * work.pairs
    shares = config.loss.share_prompts and can_share_prompts(causal_lm)
    width = causal_lm.config.get_text_config().hidden_size
    reference = [0.0] * (2 * work.pairs)
    pays = shares and sharing_pays(chosen, rejected, width)
    return student, planner.replay(chosen, rejected, reference, work.pairs, share_prompts=pays)


def _scored(prompt: int, answer: int) -> Any:
    from composer_engine.plan import Scored

    return Scored((0,) * (prompt + answer), prompt)
