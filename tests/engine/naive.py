"""The step as a textbook has it, to be equalled: nothing is shared, fused, tiled or planned.

Five forwards of the whole model: the student's twice, the teacher's, the chosen side's and the
rejected side's. Every logit of every token is held, and autograd does the rest, in the model's own
precision: that of a double model is the truth. It shares no code with the engine: it takes plain
lists, pads them with a mask, and reads the model's own logits.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as f

Text = tuple[tuple[int, ...], int]
"""Token ids, and the first of them that is scored."""


class Work(NamedTuple):
    """One step's data, in plain Python."""

    rollouts: Sequence[Text]  # B
    advantages: Sequence[float]  # B
    old_logps: Sequence[Sequence[float]] | None  # B, a scored token each
    teachers: Sequence[Text | None]  # B
    chosen: Sequence[Text]  # N
    rejected: Sequence[Text]  # N
    reference: Sequence[float]  # 2N


class Numbers(NamedTuple):
    grpo: torch.Tensor
    sdpo: torch.Tensor | None
    replay: torch.Tensor | None
    total: torch.Tensor


def logits_of(model: Any, texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every logit [B, T, V], and the ids [B, T] padded on the right."""
    width = max(len(ids) for ids, _ in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (tokens, _) in enumerate(texts):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), ids


def scored_mask(texts: Sequence[Text], width: int) -> torch.Tensor:
    """[B, T-1] of the tokens after the first: 1 where scored."""
    mask = torch.zeros(len(texts), width)
    for row, (tokens, start) in enumerate(texts):
        mask[row, start : len(tokens)] = 1
    return mask[:, 1:]


def token_logps(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:  # [B, T-1]
    return f.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]


def grpo(model: Any, work: Work, epsilon: float, temperature: float) -> torch.Tensor:
    logits, ids = logits_of(model, work.rollouts)
    logps = token_logps(logits / temperature, ids)
    mask = scored_mask(work.rollouts, ids.size(1))
    old = logps.detach().clone()
    if work.old_logps is not None:
        for row, values in enumerate(work.old_logps):
            start = work.rollouts[row][1]
            old[row, start - 1 : start - 1 + len(values)] = torch.tensor(values)
    ratio = torch.exp(logps - old)
    advantage = torch.tensor(work.advantages)[:, None]
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    loss = -torch.min(ratio * advantage, clipped * advantage)
    return (loss * mask).sum() / mask.sum()


def sdpo(model: Any, teacher: Any, work: Work, temperature: float, **rule: Any) -> torch.Tensor:
    """Every token of the batch is compared, over both sides' whole logits; a mask picks after."""
    student, ids = logits_of(model, work.rollouts)  # the whole batch once more
    contexts = [text or own for text, own in zip(work.teachers, work.rollouts, strict=True)]
    with torch.no_grad():
        hinted, _ = logits_of(teacher, contexts)
    shifts = [text[1] - own[1] for text, own in zip(contexts, work.rollouts, strict=True)]
    if any(shifts) or hinted.shape != student.shape:  # the hint moved the completion
        lined_up = torch.zeros_like(student)
        for row, shift in enumerate(shifts):
            part = hinted[row, shift : shift + ids.size(1)]
            lined_up[row, : len(part)] = part
        hinted = lined_up
    if temperature != 1:
        student, hinted = student / temperature, hinted / temperature
    mask = scored_mask(work.rollouts, ids.size(1))
    mask *= torch.tensor([[float(text is not None)] for text in work.teachers])
    return (divergence(student[:, :-1], hinted[:, :-1], **rule) * mask).sum() / mask.sum()


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    jsd_beta: float,
    top_k: int,
    top_k_of: str,
    top_k_tail: bool,
) -> torch.Tensor:
    """Of the logits' distributions, a row."""
    ps, pt = f.log_softmax(student, -1), f.log_softmax(teacher, -1)
    if top_k:
        picked = (pt if top_k_of == "teacher" else ps).topk(top_k, dim=-1).indices
        inside = torch.zeros_like(ps, dtype=torch.bool).scatter(-1, picked, value=True)
        sides = []
        for side in (ps, pt):
            kept = side.gather(-1, picked)
            if top_k_tail:
                rest = side.masked_fill(inside, -math.inf).logsumexp(-1, keepdim=True)
                sides.append(torch.cat([kept, rest], -1))
            else:
                sides.append(f.log_softmax(kept, -1))
        ps, pt = sides
    if jsd_beta == 0:
        return f.kl_div(ps, pt, reduction="none", log_target=True).sum(-1)
    if jsd_beta == 1:
        return f.kl_div(pt, ps, reduction="none", log_target=True).sum(-1)
    shares = [ps + math.log(1 - jsd_beta), pt + math.log(jsd_beta)]
    mixed = torch.logsumexp(torch.stack(shares), 0)
    to_teacher = f.kl_div(mixed, pt, reduction="none", log_target=True).sum(-1)
    return jsd_beta * to_teacher + (1 - jsd_beta) * f.kl_div(
        mixed, ps, reduction="none", log_target=True
    ).sum(-1)


def sequence_logps(model: Any, texts: Sequence[Text]) -> torch.Tensor:  # [N]
    logits, ids = logits_of(model, texts)
    return (token_logps(logits, ids) * scored_mask(texts, ids.size(1))).sum(-1)


def replay(model: Any, work: Work, dpo_beta: float) -> torch.Tensor:
    start = torch.tensor(work.reference)
    count = len(work.chosen)
    better = sequence_logps(model, work.chosen) - start[:count]
    worse = sequence_logps(model, work.rejected) - start[count:]
    return -f.logsigmoid(dpo_beta * (better - worse)).mean()


def step(model: Any, work: Work, options: Any, teacher: Any = None) -> Numbers:
    """The losses, with the gradients in the model's parameters. ``options``: `StepOptions`."""
    policy = grpo(model, work, options.clip_epsilon, options.temperature)
    total, taught, replayed = policy, None, None
    if options.sdpo_weight and any(work.teachers):
        taught = sdpo(
            model,
            teacher or model,
            work,
            options.temperature,
            jsd_beta=options.jsd_beta,
            top_k=options.top_k,
            top_k_of=options.top_k_of,
            top_k_tail=options.top_k_tail,
        )
        total = total + options.sdpo_weight * taught
    if options.replay_weight and work.chosen:
        replayed = replay(model, work, options.dpo_beta)
        total = total + options.replay_weight * replayed
    total.backward()
    return Numbers(policy, taught, replayed, total)
