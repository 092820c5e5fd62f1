"""Stored preference pairs as tokens, and their log-probabilities at the initial weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from composer_engine.data import Pair
from composer_engine.plan import Scored
from composer_engine.reference_cache import ReferenceCache

_PAIRS_A_FORWARD = 8


class TokenPair(NamedTuple):
    """Both sides with their prompt and the end-of-text token; answers alone are scored."""

    chosen: Scored
    rejected: Scored


class Precomputed(NamedTuple):
    """How many pairs were looked up or scored, and for how many the cache had them."""

    pairs: int
    from_cache: int


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

    def __contains__(self, pair: int) -> bool:
        return pair in self._logps

    def __or__(self, other: "Reference") -> "Reference":
        """Both; the other's where both have one."""
        return Reference(self._logps | other._logps)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a checkpoint holds it; empty when there is nothing."""
        if not self._logps:
            return {}
        logps = torch.tensor([*self._logps.values()], dtype=torch.float64)  # [K, 2]
        return {"pairs": torch.tensor([*self._logps]), "logps": logps}

    @classmethod
    def of_tensors(cls, tensors: dict[str, torch.Tensor]) -> "Reference":
        """What `tensors` gave, to the last bit."""
        pairs = tensors["pairs"].tolist() if tensors else []
        logps = tensors["logps"].tolist() if tensors else []
        return cls({pair: (one, other) for pair, (one, other) in zip(pairs, logps, strict=True)})

    def of(self, pairs: Sequence[int], device: torch.device) -> torch.Tensor:  # [2N]
        """Chosen first, then rejected, as `composer_engine.channels.preference` takes them."""
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
    scorer: Scorer,
    indices: Sequence[int],
    should_stop: Callable[[], object],
    cache: ReferenceCache,
) -> tuple[Reference, int]:
    """Both sides of the named pairs under the model as it is now, unless it is asked to stop.

    The number says for how many pairs they came from the cache.
    """
    found = 0
    logps: dict[int, tuple[float, float]] = {}
    for first in range(0, len(indices), _PAIRS_A_FORWARD):
        if should_stop():
            break
        part = indices[first : first + _PAIRS_A_FORWARD]
        sides = [scorer.pairs[i].chosen for i in part] + [scorer.pairs[i].rejected for i in part]
        values = cache.find(sides)
        if values is None:
            values = scorer.logps(scorer.model, sides).tolist()
            cache.add(sides, values)
        else:
            found += len(part)
        chosen, rejected = values[: len(part)], values[len(part) :]
        logps |= dict(zip(part, zip(chosen, rejected, strict=True), strict=True))
    return Reference(logps), found
