"""What a micro batch will compute, planned on the CPU before it: token rows, targets, weights.

Everything whose shape depends on the data (which rollout failed, which tokens are scored, where
two answers part) is decided here from Python values, and travels to the device once. So the step
itself never waits for the device to tell.

Sequences are packed to the left and padded on the right. A causal model's tokens read nothing to
their right, so padding changes no result and needs no mask.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from composer_engine.heads import ReplayRows, StudentRows

TILE_ROWS = 128

# Full causal attention that honours position ids, seen equal in tests/engine/test_plan.py.
_SHARING = frozenset({"qwen2", "qwen3", "llama", "mistral", "gpt2"})
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


class Scored(NamedTuple):
    """Token ids of one sequence; those from ``start`` on are scored. ``start`` is at least 1."""

    ids: tuple[int, ...]
    start: int


class Rollout(NamedTuple):
    """One completion as the loss needs it. Per-token values are those of the scored tokens."""

    sequence: Scored
    advantage: float
    teacher: Scored | None = None  # the same completion after a hint, where it failed
    old_logps: tuple[float, ...] | None = None  # at rollout time; None when on-policy
    corrections: tuple[float, ...] | None = None  # factors of GRPO's loss; None: 1


class Batch(NamedTuple):
    """Sequences padded on the right, and which of their hidden rows predict a scored token.

    Where a row holds a prompt and both answers to it, ``segments`` tells them apart, and
    ``positions`` begin again for the second answer.
    """

    input_ids: torch.Tensor  # [R, T]
    rows: torch.Tensor  # [M] indices into the R*T hidden rows
    positions: torch.Tensor | None = None  # [R, T]
    segments: torch.Tensor | None = None  # [R, T] 0 prompt, 1 and 2 its answers, 3 padding


class RowsPlan(NamedTuple):
    """Sequences whose tokens are scored, and no more."""

    batch: Batch
    targets: torch.Tensor  # [M]
    sequence: torch.Tensor  # [M] the sequence, 0..R-1, of each


class StudentPlan(NamedTuple):
    """A micro batch of rollouts. ``teacher`` has one row for each of ``rows.sdpo_rows``."""

    batch: Batch
    rows: StudentRows
    teacher: Batch | None


class ReplayPlan(NamedTuple):
    """A micro batch of pairs."""

    batch: Batch
    rows: ReplayRows


class Planner(NamedTuple):
    """What all plans of a run have in common."""

    pad_id: int
    device: torch.device
    tile_rows: int = TILE_ROWS

    def rows(self, sequences: Sequence[Scored]) -> RowsPlan:
        """All scored tokens, sequence by sequence."""
        batch = self._batch(sequences)
        targets = _targets(sequences)
        return RowsPlan(batch, *self._moved(targets, _owners(sequences)))

    def student(
        self,
        rollouts: Sequence[Rollout],
        tokens: float,
        active_tokens: float = 0.0,
    ) -> StudentPlan:
        """GRPO's loss is divided by ``tokens``, SDPO's by ``active_tokens``: both of the step.

        The rollouts are all on-policy or all off-policy.
        """
        sequences = [rollout.sequence for rollout in rollouts]
        lengths = [len(ids) - start for ids, start in sequences]
        targets = _targets(sequences)
        advantages = torch.tensor([rollout.advantage for rollout in rollouts])
        corrections = [
            factor
            for rollout, length in zip(rollouts, lengths, strict=True)
            for factor in rollout.corrections or (1.0,) * length
        ]
        off_policy = any(rollout.old_logps is not None for rollout in rollouts)
        old = [logp for rollout in rollouts for logp in rollout.old_logps or ()]
        sdpo_rows, first = [], 0
        for rollout, length in zip(rollouts, lengths, strict=True):
            sdpo_rows += [*range(first, first + length)] if rollout.teacher else []
            first += length
        taught = [rollout.teacher for rollout in rollouts if rollout.teacher]
        at = torch.tensor(sdpo_rows, dtype=torch.long)
        edges = torch.arange(0, len(targets) + self.tile_rows, self.tile_rows)
        moved = self._moved(
            targets,
            advantages.repeat_interleave(torch.tensor(lengths)),
            torch.tensor(corrections) / tokens,
            at,
            *([torch.tensor(old)] if off_policy else []),
        )
        rows = StudentRows(
            targets=moved[0],
            advantages=moved[1],
            weights=moved[2],
            old_logps=moved[4] if off_policy else None,
            sdpo_rows=moved[3],
            sdpo_bounds=tuple(torch.searchsorted(at, edges).tolist()),
            share=1 / tokens,
            sdpo_share=1 / active_tokens if taught else 0.0,
            tile_rows=self.tile_rows,
        )
        return StudentPlan(self._batch(sequences), rows, self._batch(taught) if taught else None)

    def replay(
        self,
        chosen: Sequence[Scored],  # N
        rejected: Sequence[Scored],  # N
        reference: Sequence[float],  # 2N: chosen first, then rejected
        pairs: float,
        *,
        share_prompts: bool = False,
    ) -> ReplayPlan:
        """DPO's loss is divided by ``pairs``, those of the step.

        ``share_prompts`` puts a prompt and both its answers into one row, if all pairs have one.
        """
        sides = (*chosen, *rejected)
        shared = share_prompts and all(map(_same_prompt, chosen, rejected))
        batch = self._shared_batch(chosen, rejected) if shared else self._batch(sides)
        targets = _targets(sides)
        moved = self._moved(targets, _owners(sides), torch.tensor(reference, dtype=torch.float32))
        rows = ReplayRows(moved[0], moved[1], moved[2], 1 / pairs, self.tile_rows)
        return ReplayPlan(batch, rows)

    def _batch(self, sequences: Sequence[Scored]) -> Batch:
        width = max(len(ids) for ids, _ in sequences)
        rows: list[int] = []
        for index, (ids, start) in enumerate(sequences):
            # The hidden row at t-1 predicts the token at t.
            rows += range(index * width + start - 1, index * width + len(ids) - 1)
        padded = _padded([ids for ids, _ in sequences], width, self.pad_id)
        return Batch(*self._moved(padded, torch.tensor(rows, dtype=torch.long)))

    def _shared_batch(self, chosen: Sequence[Scored], rejected: Sequence[Scored]) -> Batch:
        lines, positions, segments = [], [], []
        rows: tuple[list[int], list[int]] = ([], [])
        width = max(
            len(c.ids) + len(r.ids) - r.start for c, r in zip(chosen, rejected, strict=True)
        )
        for index, ((ids, start), (other, _)) in enumerate(zip(chosen, rejected, strict=True)):
            first, second = len(ids) - start, len(other) - start
            lines.append((*ids, *other[start:]))
            positions.append((*range(len(ids)), *range(start, len(other))))
            segments.append((0,) * start + (1,) * first + (2,) * second)
            # Both answers' first tokens are predicted by the prompt's last row.
            last = index * width + start - 1
            rows[0].extend(range(last, last + first))
            rows[1].extend([last, *range(last + first + 1, last + first + second)])
        return Batch(
            *self._moved(
                _padded(lines, width, self.pad_id),
                torch.tensor([*rows[0], *rows[1]]),
                _padded(positions, width, 0),
                _padded(segments, width, 3),
            )
        )

    def _moved(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        if self.device.type == "cuda":
            return [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
        return [tensor.to(self.device) for tensor in tensors]


def can_share_prompts(causal_lm: Any) -> bool:
    """Whether a prompt can be read once for two answers, with the same result.

    It takes a mask of our own and positions that begin again, so: full causal attention in every
    layer, positions that are honoured and do not depend on the row's length, and an attention
    that reads masks. Only architectures on which that was seen are trusted.
    """
    config = causal_lm.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in _SHARING
        and set(layers) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and config._attn_implementation in ("sdpa", "eager")  # noqa: SLF001  # has no other name
    )


def sharing_pays(chosen: Sequence[Scored], rejected: Sequence[Scored], hidden_size: int) -> bool:
    """Whether shared prompts save more than the longer rows' attention costs.

    A layer takes some 24 h^2 operations a token, and 4 h for each token that it may read; with a
    mask of ours no kernel skips those that it may not. So P tokens read once for two answers of C
    save 24 h^2 P, and cost 4 h ((P + 2C)^2 - (P + C)^2).
    """
    saved = cost = 0
    for one, other in zip(chosen, rejected, strict=True):
        row = len(one.ids) + len(other.ids) - other.start
        saved += 24 * hidden_size**2 * one.start
        cost += 4 * hidden_size * (row**2 - (len(one.ids) ** 2 + len(other.ids) ** 2) // 2)
    return saved > cost


def _same_prompt(chosen: Scored, rejected: Scored) -> bool:
    start = chosen.start
    return start == rejected.start and chosen.ids[:start] == rejected.ids[:start]


def _targets(sequences: Sequence[Scored]) -> torch.Tensor:  # [M]
    tokens = [token for ids, start in sequences for token in ids[start:]]
    return torch.tensor(tokens, dtype=torch.long)


def _owners(sequences: Sequence[Scored]) -> torch.Tensor:  # [M]
    lengths = torch.tensor([len(ids) - start for ids, start in sequences])
    return torch.arange(len(sequences)).repeat_interleave(lengths)


def _padded(lines: Iterable[Sequence[int]], width: int, value: int) -> torch.Tensor:
    """[R, width], padded on the right."""
    return torch.tensor([[*line, *[value] * (width - len(line))] for line in lines])
