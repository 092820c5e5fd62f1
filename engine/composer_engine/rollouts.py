"""TRL's rollout as plain Python, from which micro batches are planned.

It is read off the device once a rollout, when everything on it has just been waited for.
"""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch

from composer_engine.plan import Rollout, Scored


def to_rollouts(
    rollout: dict[str, Any],  # prompts [B, P] padded on the left, completions [B, C] on the right
    hints: Sequence[Sequence[int] | None],  # B the teacher's prompts
    limit: int | None,  # tokens that the model can read
) -> list[Rollout]:  # B
    """A hint that does not fit the model together with its completion is left out."""
    prompts = rollout["prompt_ids"].tolist()
    before = rollout["prompt_mask"].sum(1).tolist()
    completions = rollout["completion_ids"].tolist()
    lengths = rollout["completion_mask"].sum(1).tolist()
    advantages = rollout["advantages"].tolist()
    old = _lists(rollout.get("old_per_token_logps"))
    corrections = _lists(rollout.get("importance_sampling_ratio"))
    width = rollout["completion_ids"].size(1)
    rollouts = []
    for row, (hint, length) in enumerate(zip(hints, lengths, strict=True)):
        prompt = prompts[row][len(prompts[row]) - before[row] :]
        completion = completions[row][:length]
        fits = hint and (limit is None or len(hint) + length <= limit)
        factors = corrections[row] if corrections else None
        if factors is not None and len(factors) == 1:
            factors = [*repeat(factors[0], width)]  # one for the whole completion
        rollouts.append(
            Rollout(
                Scored((*prompt, *completion), len(prompt)),
                advantages[row],
                Scored((*hint, *completion), len(hint)) if hint and fits else None,
                tuple(old[row][:length]) if old else None,
                tuple(factors[:length]) if factors is not None else None,
            )
        )
    return rollouts


def old_logps(
    input_ids: torch.Tensor,  # [B, P+C]
    attention_mask: torch.Tensor,  # [B, P+C]
    width: int,  # C
    batch_size: int,
    score: Callable[[Sequence[Scored]], torch.Tensor],
) -> torch.Tensor:  # [B, C], 0 at padding
    """``score`` gives the scored tokens of some sequences; here they are as TRL keeps them."""
    ids, masks = input_ids.tolist(), attention_mask.tolist()
    found = torch.zeros(len(ids), width)
    for first in range(0, len(ids), batch_size):
        sequences = []
        for row in range(first, min(first + batch_size, len(ids))):
            kept = [token for token, is_there in zip(ids[row], masks[row], strict=True) if is_there]
            sequences.append(Scored(tuple(kept), len(kept) - sum(masks[row][-width:])))
        lengths = [len(sequence.ids) - sequence.start for sequence in sequences]
        parts = torch.split(score(sequences).cpu(), lengths)
        for row, part in enumerate(parts, first):
            found[row, : len(part)] = part
    return found.to(input_ids.device)


def _lists(values: torch.Tensor | None) -> list[list[float]] | None:
    if values is None:
        return None
    lists: list[list[float]] = values.tolist()
    return lists
