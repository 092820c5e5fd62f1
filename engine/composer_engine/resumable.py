"""A trainer that saves whole checkpoints and goes on from one as if it had never stopped.

The Trainer restores weights, optimizer, schedule and random states, and skips the batches of the
epoch that were used. What it leaves out is here:

* the order of the rows: TRL's sampler draws one permutation an epoch from a generator of its own,
  so a new one has to draw, and throw away, those of the epochs that are over;
* tensors that are no part of the model (`extra_tensors`), such as a teacher's weights;
* weights that do not fit: the Trainer only logs them, here they end the run.

A checkpoint lies between two rollouts, so there is never a rollout to restore.
"""

import contextlib
import hashlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from composer_engine.checkpoint import CheckpointPart, Checkpoints
from composer_engine.config import RunConfig
from composer_engine.data import Data
from composer_engine.failures import SetupError, is_out_of_memory
from composer_engine.model import Loaded
from composer_engine.resume import Checkpoint

_EXTRA_FILE = "extra-{}.safetensors"
# What reading files that are whole by their sizes, and still not what they were, can raise.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


class ResumableTrainer(GRPOTrainer):
    """TRL's trainer with checkpoints of ours. A subclass sets the two fields below."""

    run_config: RunConfig
    checkpoints: Checkpoints | CheckpointPart

    # ------------------------------------------------------------------ for a subclass

    def extra_tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds beside the Trainer's own files, by the name of its part."""
        return {}

    def load_extra_tensors(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Take back what `extra_tensors` gave. The model still has its initial weights."""

    def anywhere(self, flag: bool) -> bool:
        """Whether it is true in any process. All of them must ask."""
        raise NotImplementedError

    # ------------------------------------------------------------------ saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's checkpoint, without TRL's model card, published when it is whole.

        Every process has a part in it (its random state), and all of them wait for the parts.
        """
        step = self.state.global_step

        def write() -> None:
            error: BaseException | None = None
            try:
                super(GRPOTrainer, self)._save_checkpoint(model, trial)
                if self.args.should_save:
                    self._save_extra(self.checkpoints.staging / f"checkpoint-{step}")
            except (OSError, RuntimeError, SafetensorError) as failure:
                error = failure
            failed_somewhere = self.anywhere(error is not None)
            if error is not None:
                raise error
            if failed_somewhere:
                raise OSError("another process could not write its part")

        resumable = step % self.run_config.rollout.updates_per_rollout == 0
        goes_on = not self.control.should_training_stop
        self.checkpoints.save(step, write, resumable=resumable, goes_on=goes_on)

    def _save_extra(self, folder: Path) -> None:
        for name, tensors in self.extra_tensors().items():
            if tensors:
                ours = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                save_file(ours, folder / _EXTRA_FILE.format(name))

    # ------------------------------------------------------------------ going on

    def recall(self, checkpoint: Checkpoint) -> None:
        """Take back what only a checkpoint knows of the run's beginning.

        Raises `SetupError` for one that cannot be loaded.
        """
        with _loading(str(checkpoint.folder)):
            self.load_extra_tensors(read_extra(checkpoint.folder))

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Train from a checkpoint to the last step.

        Raises `SetupError` for one that cannot be loaded, before anything has moved.
        """
        self.train(resume_from_checkpoint=str(checkpoint.folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _loading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with _loading(checkpoint):
                super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]  # it has no types
            self._follow_schedule()

    def _follow_schedule(self) -> None:
        """The next step's learning rate as this run's schedule has it.

        The one that was stored is of the schedule of the attempt before, which may have had
        another number of steps.
        """
        schedule: Any = self.lr_scheduler
        optimizer: Any = self.optimizer
        rates = [
            base * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates  # noqa: SLF001  # what the Trainer logs, and nothing sets it

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with _loading(checkpoint):
                super()._load_rng_state(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The Trainer logs tensors that were left out, and trains on with whatever it has."""
        tied = {*(getattr(self.model, "_tied_weights_keys", None) or ())}
        missing = [key for key in load_result.missing_keys if key not in tied]
        unknown = [*load_result.unexpected_keys]
        if missing or unknown:
            what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
            raise ValueError(f"its weights are another model's: {what}")

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._rows: Any = super()._get_train_sampler(dataset)  # a trl RepeatSampler
        return self._rows

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """The Trainer's, after which the sampler stands where it stood."""
        epochs: int
        epochs, batches = super()._init_training_state(*args, **kwargs)
        for _ in range(epochs):
            torch.randperm(self._rows.num_samples, generator=self._rows.generator)
        return epochs, batches


@contextlib.contextmanager
def _loading(folder: str) -> Iterator[None]:
    """Turns what damaged files raise into one line that names the checkpoint."""
    try:
        yield
    except _UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise SetupError(
            f"the checkpoint in {folder} cannot be loaded: {first}",
            "remove that folder: --resume auto then takes the one before it",
        ) from error


def read_extra(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint that are no part of its model, by the name of their part."""
    before, after = _EXTRA_FILE.split("{}")
    return {
        path.name.removeprefix(before).removesuffix(after): load_file(path)
        for path in sorted(folder.glob(_EXTRA_FILE.format("*")))
    }


def digests(loaded: Loaded, data: Data) -> dict[str, str]:
    """What `composer_engine.seal.Identity` knows of what was loaded, by its names."""
    shapes = [f"{name} {[*p.shape]} {p.dtype}" for name, p in loaded.model.named_parameters()]
    tokenizer = loaded.tokenizer
    words = [f"{word} {place}" for word, place in sorted(tokenizer.get_vocab().items())]
    ends = f"{tokenizer.eos_token_id} {tokenizer.pad_token_id} {tokenizer.chat_template}"
    rows = [task.prompt for task in data.tasks]
    for pair in data.pairs:
        rows += [pair.prompt, pair.chosen, pair.rejected]
    return {
        "model": _digest(sorted(shapes)),
        "tokenizer": _digest([*words, ends]),
        "rows": _digest(rows),
        "marks": _digest([repr((t.answer, t.hint)) for t in data.tasks]),
    }


def _digest(parts: Sequence[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)} ".encode())
        total.update(part.encode("utf-8", "surrogatepass"))
    return total.hexdigest()[:16]
