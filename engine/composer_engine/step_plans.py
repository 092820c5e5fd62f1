"""The plans of a run's micro batches: whose turn it is, which pairs, what to divide by.

Every channel is divided by what the whole step has of it, as a mean over the processes. So the
sum over micro batches, averaged over processes, is what one process with one batch would have.
"""

from collections.abc import Sequence

import torch

from composer_engine.config import RunConfig
from composer_engine.plan import Planner, ReplayPlan, Rollout, StudentPlan, sharing_pays
from composer_engine.record import StepRecord
from composer_engine.replay import Reference, TokenPair
from composer_engine.schedule import ReplaySchedule, Turns
from composer_engine.step import StepOptions
from composer_engine.world import World

_CPU = torch.device("cpu")


class StepPlans:
    """Steps count from 1, micro batches of a step from 0."""

    def __init__(
        self,
        config: RunConfig,
        planner: Planner,
        pairs: Sequence[TokenPair],
        world: World,
        *,
        shared_width: int | None,
    ) -> None:
        """``shared_width``: the model's, where a pair may share its prompt; ``None`` where not."""
        self.planner, self._pairs, self._world = planner, pairs, world
        self._micro_batches = config.optimizer.micro_batches
        self._updates = config.rollout.updates_per_rollout
        self._distils = config.loss.sdpo_weight > 0
        self._shared_width = shared_width
        self.turns = Turns(config.loss.alternate_channels)
        self.schedule = ReplaySchedule(len(pairs), config.loss.replay_pairs, config.optimizer.seed)

    def distils_after(self, step: int) -> bool:
        """Whether SDPO has a turn in the steps that use a rollout made after this one."""
        uses = range(step + 1, step + 1 + self._updates)
        return self._distils and any(map(self.turns.has_sdpo, uses))

    def pairs_of(self, step: int) -> list[int]:
        """Indices of what the step replays, in all processes and micro batches."""
        if not self._pairs or not self.turns.has_replay(step):
            return []
        return self.schedule.at(self.turns.replays_before(step))

    def pairs_used(self, steps: int) -> list[int]:
        """Every pair that the first so many steps replay."""
        replays = self.turns.replays_before(steps + 1)
        return self.schedule.used(replays) if self._pairs else []

    def student(self, rollouts: Sequence[Rollout], record: StepRecord, step: int) -> StudentPlan:
        """A micro batch of this process."""
        if not self.turns.has_sdpo(step):
            rollouts = [rollout._replace(teacher=None) for rollout in rollouts]
        processes = self._world.size
        tokens = max(record.scored_tokens, 1) / processes  # a rollout may be all empty
        return self.planner.student(rollouts, tokens, record.active_tokens / processes)

    def replay(
        self, record: StepRecord, micro_batch: int, reference: Reference
    ) -> ReplayPlan | None:
        """This process's part of the step's pairs in one micro batch; none if it has none."""
        parts = self._world.size * self._micro_batches
        place = self._world.rank * self._micro_batches + micro_batch
        pairs = record.pairs[place::parts]  # N
        if not pairs:
            return None
        chosen = [self._pairs[i].chosen for i in pairs]
        rejected = [self._pairs[i].rejected for i in pairs]
        width = self._shared_width
        return self.planner.replay(
            chosen,
            rejected,
            reference.of(pairs, _CPU).tolist(),
            len(record.pairs) / self._world.size,
            share_prompts=width is not None and sharing_pays(chosen, rejected, width),
        )


def step_options(config: RunConfig) -> StepOptions:
    """The numbers of the step itself, which is ours."""
    loss = config.loss
    return StepOptions(
        sdpo_weight=loss.sdpo_weight,
        replay_weight=loss.replay_weight,
        dpo_beta=loss.dpo_beta,
        jsd_beta=loss.jsd_beta,
        clip_epsilon=loss.clip_epsilon,
        temperature=config.rollout.temperature,
        top_k=loss.top_k,
        top_k_of=loss.top_k_of,
        top_k_tail=loss.top_k_tail,
        channel_backward=loss.channel_backward,
    )
