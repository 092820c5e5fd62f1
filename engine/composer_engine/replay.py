"""Stored preference pairs as tokens, and their log-probabilities at the initial weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from composer_engine.collate import Scored
from composer_engine.data import Pair

_PAIRS_A_FORWARD = 8


class TokenPair(NamedTuple):
    """Both sides with their prompt and the end-of-text token; answers alone are scored."""

    chosen: Scored
    rejected: Scored


class Scorer(Protocol):
    """What `score_pairs` needs of a trainer."""

    model: Any
    pairs: list[TokenPair]

    def logps(self, model: Any, sequences: Sequence[Scored]) -> torch.Tensor:
        """Summed log-probability [R] of each sequence's scored tokens."""
        ...


class Reference:
    """Log-probabilities of the pairs at the initial weights, kept on the CPU."""

    def __init__(self, logps: dict[int, tuple[float, float]]) -> None:
        self._logps = logps  # pair -> (chosen, rejected)

    def __len__(self) -> int:
        return len(self._logps)

    def of(self, pairs: Sequence[int], device: torch.device) -> torch.Tensor:  # [2N]
        """Chosen first, then rejected, as `composer_engine.channels.dpo` takes them."""
        sides = [self._logps[i][0] for i in pairs] + [self._logps[i][1] for i in pairs]
        return torch.tensor(sides).to(device, non_blocking=True)


def tokenized_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[TokenPair]:
    """The pairs as tokens; a prompt is tokenised as the rollout's prompts are."""
    return [
        TokenPair(
            _scored(tokenizer, pair.prompt, pair.chosen),
            _scored(tokenizer, pair.prompt, pair.rejected),
        )
        for pair in pairs
    ]


def _scored(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> Scored:
    start: list[int] = tokenizer(text=prompt)["input_ids"]
    rest: list[int] = tokenizer(text=response, add_special_tokens=False)["input_ids"]
    return Scored((*start, *rest, int(tokenizer.eos_token_id)), len(start))


@torch.no_grad()
def score_pairs(
    scorer: Scorer, indices: Sequence[int], should_stop: Callable[[], object]
) -> Reference:
    """Both sides of the named pairs under the model as it is now, unless it is asked to stop."""
    logps: dict[int, tuple[float, float]] = {}
    for first in range(0, len(indices), _PAIRS_A_FORWARD):
        if should_stop():
            break
        part = indices[first : first + _PAIRS_A_FORWARD]
        sides = [scorer.pairs[i].chosen for i in part] + [scorer.pairs[i].rejected for i in part]
        chosen, rejected = scorer.logps(scorer.model, sides).view(2, -1).tolist()
        logps |= dict(zip(part, zip(chosen, rejected, strict=True), strict=True))
    return Reference(logps)
