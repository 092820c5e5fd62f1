"""The trainer: TRL's loop and rollouts around a step of ours.

`ComposerTrainer` changes what is computed in two places: `_generate_and_score_completions` turns
TRL's rollout into plain Python from which micro batches are planned, `_compute_loss` plans one
and hands it to `composer_engine.step`. TRL's own loss never runs. `_clip_grad_norm` drops a
gradient that is not finite before the optimizer sees it, and what is inherited saves whole
checkpoints and goes on from them.

Every channel is normalised over the whole step, not over a micro batch, as TRL's default loss
(DAPO) is: so a step's gradient does not depend on ``optimizer.micro_batches``.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]  # ships no types
from datasets import Dataset

from composer_engine.arguments import grpo_config
from composer_engine.checkpoint import CheckpointPart, Checkpoints
from composer_engine.config import BUILTIN, ModelConfig, RunConfig
from composer_engine.data import Data
from composer_engine.failures import NonFiniteError
from composer_engine.hints import hint_contexts
from composer_engine.model import Loaded, readable_tokens, unwrapped
from composer_engine.norms import channel_norms
from composer_engine.plan import (
    Planner,
    ReplayPlan,
    Scored,
    StudentPlan,
    can_share_prompts,
)
from composer_engine.processes import inside_wrapper, mean_over, sum_over
from composer_engine.record import Sample, StepRecord
from composer_engine.reference_cache import ReferenceCache, cache_folder, model_identity
from composer_engine.replay import Precomputed, Reference, score_pairs, tokenized_pairs
from composer_engine.resumable import ResumableTrainer
from composer_engine.rewards import score
from composer_engine.rollouts import old_logps, to_rollouts
from composer_engine.step import Losses, replay_loss, row_logps, student_loss
from composer_engine.step_plans import StepPlans, step_options
from composer_engine.teacher import FollowStudent, Teacher
from composer_engine.world import World

_REWARD = "verified"
_ALONE = World()


def compiles(model: ModelConfig) -> bool:
    """Whether the backbone is compiled: the builtin one is trained before that would be done."""
    return model.torch_compile and model.path != BUILTIN


class ComposerTrainer(ResumableTrainer):
    """GRPO + ``sdpo_weight`` * SDPO + ``replay_weight`` * DPO on one model.

    Several processes share a step's rollouts and pairs evenly. Their gradients are averaged, so
    that each normalises by the step's mean over the processes: the sum is that of one process.

    ``record`` is the step in progress, or the last one; `composer_engine.callback` reads it. Its
    rewards, samples and counts are those of all processes.
    """

    def __init__(
        self,
        config: RunConfig,
        loaded: Loaded,
        data: Data,
        checkpoints: Checkpoints | CheckpointPart,
        world: World = _ALONE,
    ) -> None:
        """``loaded`` has its initial weights, also where a checkpoint will be loaded."""
        self.run_config, self.checkpoints, self.tasks = config, checkpoints, data.tasks
        self.world, self.group = world, config.rollout.completions_per_prompt
        self.micro_batches = config.optimizer.micro_batches
        self.record = StepRecord()
        self.complaints: list[str] = []  # of this process's last rewards
        self.options = step_options(config)
        self.weights = {
            "grpo": 1.0,
            "sdpo": config.loss.sdpo_weight,
            "replay": config.loss.replay_weight,
        }
        self.teacher = Teacher(
            config.loss.teacher if config.loss.sdpo_weight else "live",
            config.loss.teacher_ema_rate,
            loaded.model,
        )
        rows = {"prompt": [t.prompt for t in data.tasks], "row": [*range(len(data.tasks))]}
        super().__init__(
            model=loaded.model,
            reward_funcs=[self._reward_function()],
            args=grpo_config(config, loaded.device, checkpoints.staging, world.size),
            train_dataset=Dataset.from_dict(rows),
            processing_class=loaded.tokenizer,
            callbacks=[FollowStudent(self.teacher)],
        )
        if compiles(config.model):
            loaded.causal_lm.base_model.compile(dynamic=True)
        self.pairs = tokenized_pairs(loaded.tokenizer, data.pairs) if self.weights["replay"] else []
        planner = Planner(self._tokenizer.pad_token_id, self.accelerator.device)
        shares = config.loss.share_prompts and can_share_prompts(loaded.causal_lm)
        width = loaded.causal_lm.config.get_text_config().hidden_size if shares else None
        self.plans = StepPlans(config, planner, self.pairs, world, shared_width=width)
        self.reference = Reference({})

    def precompute_reference(self, should_stop: Callable[[], object] = bool) -> Precomputed:
        """The replayed pairs' log-probabilities at the initial weights; call it before training.

        Ends early, and then of no use, once ``should_stop`` says so.
        """
        used = self.plans.pairs_used(self.run_config.optimizer.steps)
        unknown = [pair for pair in used if pair not in self.reference]
        if not unknown:
            return Precomputed(0, 0)
        causal_lm, tile_rows = unwrapped(self.model), self.plans.planner.tile_rows
        identity = model_identity(causal_lm, tile_rows)
        cache = ReferenceCache(cache_folder(), identity)
        with torch.compiler.set_stance("force_eager"):  # once is not worth a compilation
            found, cached = score_pairs(self, unknown, should_stop, cache)
        self.reference |= found
        if not self.world.rank:
            cache.save()
        return Precomputed(len(unknown), cached)

    def extra_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What is not in the model: the reference, which is of its initial weights, the teacher."""
        return {"reference": self.reference.tensors(), "teacher": self.teacher.state()}

    def load_extra_tensors(self, parts: dict[str, dict[str, torch.Tensor]]) -> None:
        """Before `precompute_reference`, which then scores only what is not known yet."""
        self.reference = Reference.of_tensors(parts.get("reference", {}))
        self.teacher.load(parts.get("teacher", {}))

    # ------------------------------------------------------------------ rollout

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout, and what the steps that use it will be planned from."""
        started = self.clock()
        try:
            with self._uncompiled():
                rollout = super()._generate_and_score_completions(inputs)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise NonFiniteError(
                "the model's next-token probabilities are not finite, so it cannot be sampled",
                "lower optimizer.learning_rate, or check the weights in model.path",
            ) from error
        own = len(inputs)  # B of this process
        tasks = [self.tasks[row] for row in gather_object([row["row"] for row in inputs])]  # all
        logs: Any = self._logs  # of all processes, in the order of their ranks
        texts = [*logs["completion"]][-len(tasks) :]
        rewards = [*logs["rewards"][_REWARD]][-len(tasks) :]
        self.record = StepRecord(
            # In float64 the mean and the deviation of equal rewards are exact.
            rewards=torch.tensor(rewards, dtype=torch.float64).view(-1, self.group),  # [prompts, G]
            samples=[
                Sample(task.prompt, text, reward)
                for task, text, reward in zip(tasks, texts, rewards, strict=True)
            ],
            rollout_seconds=self.clock() - started,
            complaints=gather_object(self.complaints),
        )
        mine = slice(self.world.rank * own, (self.world.rank + 1) * own)
        self._settle_agreed(rollout["advantages"], mine)
        contexts: list[str | None] = [None] * own
        if self.plans.distils_after(self.state.global_step):
            hints = self.run_config.hints
            contexts = hint_contexts(tasks[mine], texts[mine], rewards[mine], self.group, hints)
        rollouts = to_rollouts(rollout, self._hints(contexts), self._reads())
        scored = [len(r.sequence.ids) - r.sequence.start for r in rollouts]
        taught = [count for count, r in zip(scored, rollouts, strict=True) if r.teacher]
        counts = sum_over(
            self.accelerator,
            [
                sum(len(r.sequence.ids) for r in rollouts),
                sum(scored),
                sum(taught),
                any(r.advantage for r in rollouts),
            ],
        )
        self.record.tokens, self.record.has_advantage = counts[0], bool(counts[3])
        self.record.scored_tokens, self.record.active_tokens = counts[1], counts[2]
        rollout["rollouts"] = rollouts  # a list, one a completion: TRL shuffles and splits it
        return rollout

    def _settle_agreed(self, advantages: torch.Tensor, mine: slice) -> None:  # [B]
        """No advantage at all where a group's rewards are equal: TRL leaves their mean's rounding.

        ``mine`` are this process's of all completions; those of a group may be several's.
        """
        rewards = self.record.rewards
        agreed = rewards.amax(1) == rewards.amin(1)  # [prompts]
        rows = agreed.repeat_interleave(self.group)[mine]
        advantages.masked_fill_(rows.to(advantages.device), 0.0)
        self._metrics["train"]["frac_reward_zero_std"][-1] = agreed.double().mean().item()

    def _hints(self, contexts: Sequence[str | None]) -> list[list[int] | None]:
        """The teacher's prompts as tokens."""
        given = [context for context in contexts if context is not None]
        tokens = iter(self._tokenize_prompts(given)[0] if given else [])
        return [None if context is None else next(tokens) for context in contexts]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,  # [B, P+C]
        attention_mask: torch.Tensor,  # [B, P+C]
        logits_to_keep: int,  # C
        batch_size: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None, None]:  # [B, C]
        """TRL asks for a rollout's log-probabilities: as the loss will compute them, not as TRL."""
        causal_lm, planner = unwrapped(model), self.plans.planner

        def score(sequences: Sequence[Scored]) -> torch.Tensor:
            plan = planner.rows(sequences)
            return row_logps(causal_lm, plan, self.temperature, planner.tile_rows)

        size = batch_size or len(input_ids)
        return old_logps(input_ids, attention_mask, logits_to_keep, size, score), None, None

    # ------------------------------------------------------------------ loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """One micro batch's share of the total loss; what is not in it yet, it has backwarded."""
        if self._step % self.micro_batches == 0:
            self._begin_step(model)
        causal_lm, step = unwrapped(model), self.state.global_step + 1
        student = self.plans.student(inputs["rollouts"], self.record, step)
        replay = self.plans.replay(self.record, self._step % self.micro_batches, self.reference)
        if replay is not None and self.options.channel_backward == "per_channel":
            # Its activations are gone before the rollouts' are made. What joins the processes
            # looks at gradients only from its forward on, which has not begun yet.
            losses = self._noted(replay_loss(causal_lm, replay, self.options))
            self.accelerator.backward(losses.total)
            replay = None

        def both() -> tuple[Losses, Losses | None]:
            losses = student_loss(causal_lm, student, self.options, self.teacher)
            return losses, replay_loss(causal_lm, replay, self.options) if replay else None

        losses, replayed = inside_wrapper(model, both)
        total = self._noted(losses).total
        return total if replayed is None else total + self._noted(replayed).total

    def _begin_step(self, model: Any) -> None:
        """A record of its own for each step, also for those that use a rollout again."""
        self.record = self.record.opened()
        step = self.state.global_step + 1
        self.record.pairs = self.plans.pairs_of(step)
        every = self.run_config.report.channel_norms_every_steps
        if every and step % every == 0:
            self._measure_norms(model)

    def _measure_norms(self, model: Any) -> None:
        """Each channel's own gradient over the whole step, before any is kept."""
        step = self.state.global_step + 1
        batches: Any = self._buffered_inputs  # of all micro batches
        plans: list[StudentPlan | ReplayPlan] = []
        for micro_batch, inputs in enumerate(batches):
            plans.append(self.plans.student(inputs["rollouts"], self.record, step))
            replay = self.plans.replay(self.record, micro_batch, self.reference)
            plans += [replay] if replay is not None else []
        norms = channel_norms(unwrapped(model), plans, self.options, self.teacher, self.accelerator)
        for channel, norm in norms.items():
            self.record.note({}, {}, {f"grad_norm_{channel}": norm})

    def _noted(self, losses: Losses) -> Losses:
        self.record.note(losses.channels, losses.squares, losses.metrics)
        return losses

    def logps(self, model: Any, sequences: Sequence[Scored]) -> torch.Tensor:  # [R]
        """Summed log-probability of each sequence's scored tokens, at temperature 1."""
        planner = self.plans.planner
        plan = planner.rows(sequences)
        logps = row_logps(unwrapped(model), plan, 1.0, planner.tile_rows)  # [M]
        return torch.zeros(len(sequences), device=logps.device).index_add(0, plan.sequence, logps)

    # ------------------------------------------------------------------ guards

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """TRL's clipping. A step that is not finite loses its gradient, so nothing moves:

        with no gradient at all AdamW skips a parameter, its momentum and its decay.
        """
        norm: torch.Tensor = super()._clip_grad_norm(model)  # () before clipping
        scaler = self.accelerator.scaler
        numbers = self.record.close(
            norm,
            self.weights,
            lambda values: mean_over(self.accelerator, values),
            # float16's loss scale finds its place by overflowing; it skips such a step itself.
            overflows=scaler is not None and scaler.get_scale() > 1,
        )
        if numbers.guilty:
            model.zero_grad(set_to_none=True)
        return norm

    # ------------------------------------------------------------------ small things

    def anywhere(self, flag: bool) -> bool:
        """Whether it is true in any process. All of them must ask."""
        return bool(sum_over(self.accelerator, [flag])[0])

    def clock(self) -> float:
        """Seconds; on CUDA, once the device has done what it was asked so far."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _uncompiled(self) -> Any:
        """For sampling: every length would be compiled anew. vLLM's own graphs are left alone."""
        return nullcontext() if self.use_vllm else torch.compiler.set_stance("force_eager")

    def _reads(self) -> int | None:
        return readable_tokens(unwrapped(self.model))

    def _reward_function(self) -> Any:
        tasks = self.tasks

        def verified(completions: list[str], row: list[int], **_: Any) -> list[float]:
            scores = score([tasks[index].reward for index in row], completions)
            self.complaints = scores.complaints
            return scores.values

        return verified
