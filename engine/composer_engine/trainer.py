"""The three-channel step: TRL's GRPO, plus SDPO from its hidden states, plus replayed DPO.

`ComposerTrainer` changes what is computed in two places: `_generate_and_score_completions` plans
the teacher's contexts and the pairs of the step, `_compute_loss` adds two losses to TRL's. Two
more overrides guard the step without changing it: `_clip_grad_norm` drops a gradient that is not
finite before the optimizer sees it, `_save_checkpoint` saves so that no torn checkpoint is seen.

Per micro batch the backbone runs once for GRPO and SDPO together, once without gradient for the
teacher (failed rollouts only), and once for both sides of the pairs. A channel whose weight is 0,
or that has nothing to learn from in this step, runs nothing.

Every channel is normalised over the whole step, not over a micro batch, as TRL's default loss
is: so a step's gradient does not depend on ``optimizer.micro_batches``.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]  # ships no types
from datasets import Dataset
from safetensors import SafetensorError
from trl.trainer.grpo_trainer import GRPOTrainer

from composer_engine.arguments import grpo_config
from composer_engine.channels import dpo, head_of, kept_hidden, sdpo, sequence_logps
from composer_engine.checkpoint import CheckpointPart, Checkpoints
from composer_engine.collate import (
    Batch,
    ReplaySchedule,
    Scored,
    collate,
    hint_contexts,
    student_rows,
)
from composer_engine.config import RunConfig
from composer_engine.data import Data
from composer_engine.failures import NonFiniteError
from composer_engine.model import Loaded, readable_tokens, unwrapped
from composer_engine.record import Sample, StepRecord
from composer_engine.replay import Reference, score_pairs, tokenized_pairs
from composer_engine.world import World

_REWARD = "verified"
_ALONE = World()


class ComposerTrainer(GRPOTrainer):
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
        self.run_config, self.checkpoints, self.tasks = config, checkpoints, data.tasks
        self.world = world
        self.group, self.micro_batches = (
            config.rollout.completions_per_prompt,
            config.optimizer.micro_batches,
        )
        self.record = StepRecord()
        self.weights = {
            "grpo": 1.0,
            "sdpo": config.loss.sdpo_weight,
            "replay": config.loss.replay_weight,
        }
        rows = {"prompt": [t.prompt for t in data.tasks], "row": [*range(len(data.tasks))]}
        super().__init__(
            model=loaded.model,
            reward_funcs=[self._reward_function()],
            args=grpo_config(config, loaded.device, checkpoints.staging, world.size),
            train_dataset=Dataset.from_dict(rows),
            processing_class=loaded.tokenizer,
        )
        self.pairs = tokenized_pairs(loaded.tokenizer, data.pairs) if self.weights["replay"] else []
        self.schedule = ReplaySchedule(
            len(self.pairs), config.loss.replay_pairs, config.optimizer.seed
        )
        self.reference = Reference({})

    def precompute_reference(self, should_stop: Callable[[], object] = bool) -> None:
        """The replayed pairs' log-probabilities at the initial weights; call it before training.

        Ends early, and then of no use, once ``should_stop`` says so.
        """
        used = self.schedule.used(self.run_config.optimizer.steps) if self.pairs else []
        self.reference = score_pairs(self, used, should_stop)

    # ------------------------------------------------------------------ rollout

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout, and the plan of the other two channels for the step that uses it."""
        started = self.clock()
        try:
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
            rewards=torch.tensor(rewards).view(-1, self.group),  # [prompts, G]
            samples=[
                Sample(task.prompt, text, reward)
                for task, text, reward in zip(tasks, texts, rewards, strict=True)
            ],
            rollout_seconds=self.clock() - started,
        )
        active_tokens = 0
        if self.weights["sdpo"]:
            mine = slice(self.world.rank * own, (self.world.rank + 1) * own)
            contexts = hint_contexts(
                tasks[mine], texts[mine], rewards[mine], self.group, self.run_config.hints
            )
            teachers = self._teachers(contexts, rollout)
            active_tokens = sum(len(t.ids) - t.start for t in teachers if t)
            rollout["teacher"] = teachers  # a list, one a completion: TRL shuffles and splits it
        tokens = int(rollout["prompt_mask"].sum() + rollout["completion_mask"].sum())
        has_advantage = bool(rollout["advantages"].any())
        counts = self._sum_over_processes([tokens, active_tokens, has_advantage])
        self.record.tokens, self.record.has_advantage = counts[0], bool(counts[2])
        self.record.active_tokens = counts[1] / self.world.size
        if self.pairs:
            self.record.pairs = self.schedule.at(self.state.global_step)
        return rollout

    def _teachers(
        self, contexts: Sequence[str | None], rollout: dict[str, Any]
    ) -> list[Scored | None]:
        """Each failed rollout's tokens after its hint, where hint and completion fit the model."""
        given = [context for context in contexts if context is not None]
        tokens = iter(self._tokenize_prompts(given)[0] if given else [])
        limit = readable_tokens(unwrapped(self.model))
        completions = rollout["completion_ids"].tolist()  # B lists of C
        lengths = rollout["completion_mask"].sum(1).tolist()  # B
        teachers: list[Scored | None] = []
        for context, completion, length in zip(contexts, completions, lengths, strict=True):
            prompt = next(tokens) if context is not None else []
            fits = limit is None or len(prompt) + length <= limit
            sequence = Scored((*prompt, *completion[:length]), len(prompt))
            teachers.append(sequence if prompt and fits else None)
        return teachers

    # ------------------------------------------------------------------ loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """One micro batch's share of the total loss: B completions of P + C tokens."""
        record = self.record  # of the rollout that these completions are from
        with kept_hidden(unwrapped(model).base_model) as kept:
            loss: torch.Tensor = super()._compute_loss(model, inputs)  # ()
        record.add("grpo", loss)

        teachers = inputs.get("teacher", [])  # B, None where the rollout has no teacher
        if any(teachers):
            divergence = self._distil(model, kept[0], inputs["prompt_ids"].size(1), teachers)
            share = divergence.sum() / record.active_tokens  # ()
            record.add("sdpo", share)
            tokens = float(len(divergence) * self.world.size)
            record.measure("sdpo_active_tokens", share.new_tensor(tokens))
            loss = loss + self.weights["sdpo"] * share

        place = self.world.rank * self.micro_batches + self._step % self.micro_batches
        pairs = record.pairs[place :: self.world.size * self.micro_batches]  # N
        if pairs:
            share = self._replay(model, pairs, record)  # ()
            record.add("replay", share)
            loss = loss + self.weights["replay"] * share
        return loss

    def _distil(
        self,
        model: Any,
        hidden: torch.Tensor,  # [B, P+C, H] the student's, from TRL's own forward
        prompt_width: int,
        teachers: Sequence[Scored | None],  # B
    ) -> torch.Tensor:  # [M] one a token of a failed rollout
        batch = self._collate([teacher for teacher in teachers if teacher is not None])
        with torch.no_grad():
            taught = self._hidden(model, batch)  # [M, H]
        rows = student_rows(teachers, prompt_width, hidden.size(1), hidden.device)  # [M]
        own = hidden.flatten(0, 1)[rows]  # [M, H]
        head = head_of(unwrapped(model))
        return sdpo(own, taught, head, self.run_config.loss.jsd_beta, self.temperature)

    def _replay(self, model: Any, pairs: Sequence[int], record: StepRecord) -> torch.Tensor:
        """This micro batch's share of DPO: its N pairs, over a process's mean of the step's."""
        sides = [self.pairs[i].chosen for i in pairs] + [self.pairs[i].rejected for i in pairs]
        logps = self.logps(model, sides)  # [2N]
        reference = self.reference.of(pairs, logps.device)  # [2N]
        losses, margins = dpo(logps, reference, self.run_config.loss.dpo_beta)  # [N] each
        total = len(record.pairs) / self.world.size
        record.measure("replay_margin", margins.sum() / total)
        record.measure("replay_accuracy", (margins > 0).float().sum() / total)
        record.measure("replay_chosen_logp", logps[: len(pairs)].sum() / total)
        return losses.sum() / total

    def logps(self, model: Any, sequences: Sequence[Scored]) -> torch.Tensor:  # [R]
        """Summed log-probability of each sequence's scored tokens."""
        batch = self._collate(sequences)
        hidden = self._hidden(model, batch)  # [M, H]
        head = head_of(unwrapped(model))
        return sequence_logps(hidden, batch.targets, batch.sequence, len(sequences), head)

    def _hidden(self, model: Any, batch: Batch) -> torch.Tensor:  # [M, H]
        """The backbone's hidden rows that predict a scored token."""
        backbone = unwrapped(model).base_model
        output = backbone(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        hidden: torch.Tensor = output.last_hidden_state  # [R, T, H]
        return hidden.flatten(0, 1)[batch.rows]

    def _collate(self, sequences: Sequence[Scored]) -> Batch:
        return collate(sequences, self._tokenizer.pad_token_id, self.accelerator.device)

    # ------------------------------------------------------------------ guards

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """TRL's clipping. A step that is not finite loses its gradient, so nothing moves:

        with no gradient at all AdamW skips a parameter, its momentum and its decay.
        """
        norm: torch.Tensor = super()._clip_grad_norm(model)  # () before clipping
        if self.record.close(norm, self.weights, self._mean_over_processes).guilty:
            model.zero_grad(set_to_none=True)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's checkpoint, without TRL's model card, published when it is whole.

        Every process has a part in it (its random state), and all of them wait for the parts.
        """

        def write() -> None:
            error: BaseException | None = None
            try:
                super(GRPOTrainer, self)._save_checkpoint(model, trial)
            except (OSError, RuntimeError, SafetensorError) as failure:
                error = failure
            failed_somewhere = self.anywhere(error is not None)
            if error is not None:
                raise error
            if failed_somewhere:
                raise OSError("another process could not write its part")

        goes_on = not self.control.should_training_stop
        self.checkpoints.save(self.state.global_step, write, goes_on=goes_on)

    # ------------------------------------------------------------------ processes

    def anywhere(self, flag: bool) -> bool:
        """Whether it is true in any process. All of them must ask."""
        return bool(self._sum_over_processes([flag])[0])

    def _sum_over_processes(self, counts: Sequence[int]) -> list[int]:
        if self.world.size == 1:
            return [*map(int, counts)]
        device = self.accelerator.device
        total: torch.Tensor = self.accelerator.reduce(torch.tensor(counts, device=device), "sum")
        return [*map(int, total.tolist())]

    def _mean_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        if self.world.size == 1:
            return values
        mean: torch.Tensor = self.accelerator.reduce(values, "mean")
        return mean

    # ------------------------------------------------------------------ small things

    def clock(self) -> float:
        """Seconds; on CUDA, once the device has done what it was asked so far."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _reward_function(self) -> Any:
        tasks = self.tasks

        def verified(completions: list[str], row: list[int], **_: Any) -> list[float]:
            return [tasks[index].reward(text) for text, index in zip(completions, row, strict=True)]

        return verified
