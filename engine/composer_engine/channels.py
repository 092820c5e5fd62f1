"""The channels' losses a row or a pair, each with its own derivative: plain tensors, no autograd.

    total = GRPO + sdpo_weight * SDPO + replay_weight * DPO

`composer_engine.heads` makes the rows tile by tile and turns the derivatives into gradients.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional


class Divergence(NamedTuple):
    """What SDPO measures between the student's next-token distribution ps and the teacher's pt.

    With b = ``jsd_beta``:

        b = 0: KL(pt || ps)        b = 1: KL(ps || pt)
        else:  b KL(pt || m) + (1 - b) KL(ps || m),   m = (1 - b) ps + b pt

    The divergence is GKD's (Agarwal et al., arXiv:2306.13649, eq. 1) with OPSD's and TRL's sign of
    beta; self-distillation from hints is SDPO (Huebotter et al., arXiv:2601.20802).

    ``top_k`` of 0 compares the whole vocabulary. Otherwise the ``top_k`` likeliest tokens of one
    side are picked, at each row, and both sides are read at those tokens:

    - ``top_k_of="teacher"``, no tail: OPSD (Zhao et al., arXiv:2601.18734). Both sides are
      renormalised over the picked tokens.
    - ``top_k_of="student"``: SDPO as TRL 1.16 has it (``trl.experimental.sdpo``), with the tail
      or, without it, renormalised. The pick itself has no gradient.
    - ``top_k_tail``: instead of renormalising, all other tokens are one more bucket that holds
      the rest of each side's probability. The bucket is exact here; TRL takes it as
      1 - sum and bounds it below by 1e-7.
    """

    jsd_beta: float = 0.5
    top_k: int = 0
    top_k_of: str = "teacher"  # or "student"
    top_k_tail: bool = False


class Surrogate(NamedTuple):
    """GRPO's clipped loss a row, and where the clip holds it."""

    losses: torch.Tensor  # [n]
    slopes: torch.Tensor  # [n] d loss / d logp
    is_low: torch.Tensor  # [n] bool: ratio under 1 - epsilon, with a negative advantage
    is_high: torch.Tensor  # [n] bool: ratio over 1 + epsilon, with a positive advantage


class PairTerms(NamedTuple):
    """DPO's loss and its implicit reward margin, a pair, and its derivative, a sequence."""

    losses: torch.Tensor  # [N]
    margins: torch.Tensor  # [N] dpo_beta * (chosen - rejected log-ratio)
    slopes: torch.Tensor  # [2N] d loss / d sequence's log-probability


def clipped_surrogate(
    logps: torch.Tensor,  # [n]
    old_logps: torch.Tensor | None,  # [n] at rollout time; None: the policy has not moved since
    advantages: torch.Tensor,  # [n]
    epsilon: float,
) -> Surrogate:
    """-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A), ratio = exp(logp - old)."""
    ratio = torch.ones_like(logps) if old_logps is None else torch.exp(logps - old_logps)
    free = ratio * advantages
    held = ratio.clamp(1 - epsilon, 1 + epsilon) * advantages
    return Surrogate(
        losses=-torch.minimum(free, held),
        # Inside the clip both are equal; outside, only the unclipped side has a slope.
        slopes=-free * (free <= held),
        is_low=(ratio < 1 - epsilon) & (advantages < 0),
        is_high=(ratio > 1 + epsilon) & (advantages > 0),
    )


def preference(
    logps: torch.Tensor,  # [2N] chosen first, then rejected
    reference: torch.Tensor,  # [2N] at the initial weights
    dpo_beta: float,
) -> PairTerms:
    """Trace-replay DPO: Rafailov et al., arXiv:2305.18290, eq. 7, on stored pairs.

    -log sigmoid(dpo_beta * [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)])
    """
    chosen, rejected = (logps - reference).chunk(2)  # [N] each
    margins = dpo_beta * (chosen - rejected)  # [N]
    slope = -dpo_beta * torch.sigmoid(-margins)  # [N]
    return PairTerms(-functional.logsigmoid(margins), margins, torch.cat([slope, -slope]))


def divergence(
    student: torch.Tensor,  # [n, V] log-probabilities
    teacher: torch.Tensor,  # [n, V] log-probabilities; used up
    rule: Divergence,
) -> tuple[torch.Tensor, torch.Tensor]:  # [n] nats; [n, V] its gradient by the student's logits
    """The divergence of each row. The teacher gets no gradient."""
    if not 0 < rule.top_k < student.size(-1):
        return _of_distributions(student, teacher, rule.jsd_beta)
    side = teacher if rule.top_k_of == "teacher" else student
    picked = side.topk(rule.top_k, dim=-1).indices  # [n, k]
    if rule.top_k_tail:
        return _with_tail(student, teacher, picked, rule.jsd_beta)
    ls, lt = (functional.log_softmax(z.gather(-1, picked), -1) for z in (student, teacher))
    losses, slopes = _of_distributions(ls, lt, rule.jsd_beta)
    return losses, torch.zeros_like(student).scatter_(-1, picked, slopes)


def _of_distributions(
    ls: torch.Tensor, lt: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the columns given; the derivative is by the logits of ``ls``."""
    losses, slopes = _between(ls, lt, beta)
    return losses, slopes.addcmul_(ls.exp(), slopes.sum(-1, keepdim=True), value=-1)


def _with_tail(
    student: torch.Tensor, teacher: torch.Tensor, picked: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides as k + 1 buckets: the picked tokens, and all others together."""
    ls, lt = (
        torch.cat(
            [z.gather(-1, picked), z.scatter(-1, picked, -math.inf).logsumexp(-1, keepdim=True)], -1
        )
        for z in (student, teacher)
    )  # [n, k+1]
    losses, slopes = _between(ls, lt, beta)
    total = slopes.sum(-1, keepdim=True)  # [n, 1]
    of_picked = slopes[:, :-1] - ls[:, :-1].exp() * total
    # A token of the tail moves its bucket by its share of the bucket. Of the picked tokens, whose
    # share this is not, the values may overflow: they are written over.
    of_tail = (student - ls[:, -1:]).exp_().mul_(slopes[:, -1:])
    of_tail.addcmul_(student.exp(), total, value=-1)
    return losses, of_tail.scatter_(-1, picked, of_picked)


def _between(
    ls: torch.Tensor,  # [n, K] the student's log-probabilities
    lt: torch.Tensor,  # [n, K] the teacher's; used up
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # [n]; [n, K]
    """The divergence, and its derivative by ``ls`` up to a multiple of the probabilities.

    Such a multiple falls out when the derivative is carried on to the logits.
    """
    if beta == 0:
        pt = lt.exp()
        return lt.sub_(ls).mul_(pt).sum(-1), pt.neg_()
    if beta == 1:
        slopes = lt.neg_().add_(ls).mul_(ls.exp())
        return slopes.sum(-1), slopes
    mixed = torch.logaddexp(ls + math.log1p(-beta), lt + math.log(beta))
    pt = lt.exp()
    of_teacher = lt.sub_(mixed).mul_(pt).sum(-1)  # KL(pt || m)
    slopes = mixed.neg_().add_(ls).mul_(ls.exp()).mul_(1 - beta)  # its sum: (1 - b) KL(ps || m)
    return of_teacher.mul_(beta).add_(slopes.sum(-1)), slopes
