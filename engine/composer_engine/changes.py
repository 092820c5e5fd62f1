"""What to change in a run that does not fit in memory, and what each change is predicted to do."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from composer_engine.config import BUILTIN, RunConfig
from composer_engine.estimate import estimate
from composer_engine.model_shape import ModelShape
from composer_engine.workload import Lengths, default_lengths

_FEWEST_TOKENS = 64  # a completion that is shorter teaches little
_ADAPTER_RANK = 16


class Change(NamedTuple):
    """One field of a run to change. ``config`` is the run with it; ``value`` is as TOML has it."""

    field: str
    value: str
    config: RunConfig


class Relief(NamedTuple):
    """What a change does: the new peak, and how many times the training's FLOPs a step takes.

    The factor says nothing of the rollout's time, nor of a type that the device computes faster.
    """

    change: Change
    peak_bytes: int
    time_factor: float


def mitigations(
    shape: ModelShape, config: RunConfig, lengths: Lengths | None = None
) -> list[Relief]:
    """Every change, alone, that lowers the peak; the cheapest first.

    ``loss.top_k`` is none of them: the head holds a tile of logits with it as without.
    """
    now = estimate(shape, config, lengths or default_lengths(config))
    found = []
    for change in (*changes(config), *_alternating(config)):
        longest = change.config.rollout.max_completion_tokens
        cut = lengths or default_lengths(change.config)
        cut = msgspec.structs.replace(cut, completion=min(cut.completion, longest))
        then = estimate(shape, change.config, cut)
        if then.peak_bytes < now.peak_bytes:
            factor = then.flops.training / now.flops.training
            found.append(Relief(change, then.peak_bytes, factor))
    return found


def changes(config: RunConfig, processes: int = 1) -> Iterator[Change]:
    """What may lower the peak, and is not on yet, where so many processes share a step.

    Each next one costs more of something else: first time alone, then how the step is cut, and at
    last what is trained.
    """
    if not config.model.gradient_checkpointing:
        yield _with(config, "model.gradient_checkpointing", value=True)
    if config.loss.channel_backward == "summed":
        yield _with(config, "loss.channel_backward", "per_channel")
    if (count := _more_micro_batches(config, processes)) is not None:
        yield _with(config, "optimizer.micro_batches", count)
    tokens = config.rollout.max_completion_tokens
    if tokens > _FEWEST_TOKENS:
        yield _with(config, "rollout.max_completion_tokens", max(_FEWEST_TOKENS, tokens // 2))
    if not config.model.lora_rank and config.model.path != BUILTIN:
        yield _with(config, "model.lora_rank", _ADAPTER_RANK)
    if config.model.dtype == "float32":
        yield _with(config, "model.dtype", "bfloat16")


def _alternating(config: RunConfig) -> Iterator[Change]:
    loss = config.loss
    if loss.sdpo_weight and loss.replay_weight and not loss.alternate_channels:
        yield _with(config, "loss.alternate_channels", value=True)


def _more_micro_batches(config: RunConfig, processes: int) -> int | None:
    """Twice as many, or the next number that divides what a process has of a step.

    None when each micro batch is one completion.
    """
    rollout = config.rollout
    completions = rollout.prompts_per_step * rollout.completions_per_prompt // processes
    first = 2 * config.optimizer.micro_batches
    return next((n for n in range(first, completions + 1) if completions % n == 0), None)


def _with(config: RunConfig, field: str, value: object) -> Change:
    section, _, name = field.partition(".")
    changed = msgspec.structs.replace(getattr(config, section), **{name: value})
    told = msgspec.json.encode(value).decode()
    return Change(field, told, msgspec.structs.replace(config, **{section: changed}))
