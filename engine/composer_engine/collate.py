"""What the step will compute, planned on the CPU before it: contexts, token rows, replayed pairs.

Everything whose shape depends on the data (which rollout failed, which tokens are scored) is
decided here from Python values, so that the step itself never waits for the device to tell.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from composer_engine.config import HintConfig
from composer_engine.data import Task

_PLACE = re.compile(r"\{(prompt|hint|solution)\}")


class Scored(NamedTuple):
    """Token ids of one sequence; those from ``start`` on are scored. ``start`` is at least 1."""

    ids: tuple[int, ...]
    start: int


class Batch(NamedTuple):
    """Sequences padded on the right, and which of their hidden rows predict a scored token."""

    input_ids: torch.Tensor  # [R, T]
    attention_mask: torch.Tensor  # [R, T]
    rows: torch.Tensor  # [M] indices into the R*T hidden rows
    targets: torch.Tensor  # [M] the tokens that those rows predict
    sequence: torch.Tensor  # [M] the sequence, 0..R-1, of each


def collate(sequences: Sequence[Scored], pad_id: int, device: torch.device) -> Batch:
    """One batch of the sequences, moved to the device at once."""
    width = max(len(sequence.ids) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_id)  # [R, T]
    attention_mask = torch.zeros_like(input_ids)  # [R, T]
    rows: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, (ids, start) in enumerate(sequences):
        input_ids[index, : len(ids)] = torch.tensor(ids)
        attention_mask[index, : len(ids)] = 1
        # The hidden row at t-1 predicts the token at t.
        rows += range(index * width + start - 1, index * width + len(ids) - 1)
        targets += ids[start:]
        owners += [index] * (len(ids) - start)
    tensors = (input_ids, attention_mask, *map(torch.tensor, (rows, targets, owners)))
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def student_rows(
    teachers: Sequence[Scored | None], prompt_width: int, width: int, device: torch.device
) -> torch.Tensor:
    """Indices [M] into the student's B*width hidden rows, in the order of the teachers' rows.

    The student's prompts are padded on the left to ``prompt_width``, so that every completion
    begins there, and row prompt_width-1 predicts its first token.
    """
    rows: list[int] = []
    for index, teacher in enumerate(teachers):
        if teacher is not None:
            first = index * width + prompt_width - 1
            rows += range(first, first + len(teacher.ids) - teacher.start)
    return torch.tensor(rows).to(device, non_blocking=True)


def hint_contexts(
    tasks: Sequence[Task],
    completions: Sequence[str],
    rewards: Sequence[float],
    group: int,
    hints: HintConfig,
) -> list[str | None]:
    """The teacher's prompt for each rollout; ``None`` where it has nothing to teach from.

    Only failed rollouts have one: their row's own hint, else a successful sibling, which is the
    first one of the ``group`` consecutive completions of the same prompt.
    """
    contexts: list[str | None] = []
    for index, (task, reward) in enumerate(zip(tasks, rewards, strict=True)):
        start = index - index % group
        siblings = range(start, start + group)
        solved = [i for i in siblings if rewards[i] >= hints.success_reward]
        if reward >= hints.success_reward:
            contexts.append(None)
        elif task.hint is not None:
            parts = {"prompt": task.prompt, "hint": task.hint}
            contexts.append(fill(hints.feedback_template, parts))
        elif solved:
            parts = {"prompt": task.prompt, "solution": completions[solved[0]]}
            contexts.append(fill(hints.sibling_template, parts))
        else:
            contexts.append(None)
    return contexts


def fill(template: str, parts: dict[str, str]) -> str:
    """The template with its places filled in one pass: braces in a part stay as they are."""
    return _PLACE.sub(lambda place: parts.get(place[1], place[0]), template)


class ReplaySchedule:
    """Which pairs each step replays: every pair once an epoch, in a fresh order each epoch.

    A function of the step alone: no state has to be kept to know what a step replays.
    """

    def __init__(self, pairs: int, per_step: int, seed: int) -> None:
        self._pairs, self.per_step, self._seed = pairs, min(per_step, pairs), seed
        self._orders: dict[int, list[int]] = {}

    def used(self, steps: int) -> list[int]:
        """Every pair that the first ``steps`` steps replay."""
        return sorted(self._order(0)[: steps * self.per_step])

    def at(self, step: int) -> list[int]:
        """Indices of the pairs of one step, which counts from 0."""
        first = step * self.per_step
        places = range(first, first + self.per_step)
        return [self._order(k // self._pairs)[k % self._pairs] for k in places]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(self._pairs))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            # A step touches at most two epochs.
            self._orders = {n: self._orders[n] for n in self._orders if n == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]
