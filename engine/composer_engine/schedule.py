"""Which channels take part in a step, and which pairs it replays: functions of the step alone.

Nothing has to be kept to know what a step does, so a resumed run does the same.
"""

import random
from typing import NamedTuple


class Turns(NamedTuple):
    """With ``alternate``, SDPO in odd steps and replay in even ones; else both in each.

    Steps count from 1 here, as people see them. GRPO is in every step.
    """

    alternate: bool = False

    def has_sdpo(self, step: int) -> bool:
        return not self.alternate or step % 2 == 1

    def has_replay(self, step: int) -> bool:
        return not self.alternate or step % 2 == 0

    def replays_before(self, step: int) -> int:
        """How many of the steps before this one replayed pairs."""
        return (step - 1) // 2 if self.alternate else step - 1


class ReplaySchedule:
    """Which pairs are replayed: every pair once an epoch, in a fresh order each epoch."""

    def __init__(self, pairs: int, per_step: int, seed: int) -> None:
        self._pairs, self.per_step, self._seed = pairs, min(per_step, pairs), seed
        self._orders: dict[int, list[int]] = {}

    def used(self, replays: int) -> list[int]:
        """Every pair of the first so many replays."""
        return sorted(self._order(0)[: replays * self.per_step])

    def at(self, replay: int) -> list[int]:
        """Indices of the pairs of one replay, which counts from 0."""
        first = replay * self.per_step
        places = range(first, first + self.per_step)
        return [self._order(k // self._pairs)[k % self._pairs] for k in places]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(self._pairs))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            # A replay touches at most two epochs.
            self._orders = {n: self._orders[n] for n in self._orders if n == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]
