"""How much a run's steps compute: lengths, sequences, and how their numbers are held."""

import math
from typing import NamedTuple

import msgspec

from composer_engine.config import RunConfig
from composer_engine.model_shape import ModelShape

DEFAULT_PROMPT_TOKENS = 256
DEFAULT_HINT_TOKENS = 64
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32_BYTES = 4


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the sequences of a step, which are taken to be all as long as the longest.

    ``pairs`` is how many there are in the data; None where that is not known.
    """

    prompt: int
    completion: int
    teacher_prompt: int
    pair_prompt: int
    chosen: int
    rejected: int
    pairs: int | None = None


class Work(NamedTuple):
    """What the largest micro batch of a step computes; with ``pairs`` of 0, no replay.

    ``mean_pairs`` is of the step's micro batches.
    """

    completions: int
    taught: int
    pairs: int
    mean_pairs: float


def default_lengths(config: RunConfig) -> Lengths:
    """Where the data has not been looked at: every text as long as is usual or allowed."""
    prompt, completion = DEFAULT_PROMPT_TOKENS, config.rollout.max_completion_tokens
    siblings = "sibling" in config.hints.sources
    return Lengths(
        prompt=prompt,
        completion=completion,
        teacher_prompt=prompt
        + (max(completion, DEFAULT_HINT_TOKENS) if siblings else DEFAULT_HINT_TOKENS),
        pair_prompt=prompt,
        chosen=completion,
        rejected=completion,
    )


def works_of(
    config: RunConfig, lengths: Lengths, failed_share: float = 1.0, processes: int = 1
) -> tuple[Work, ...]:
    """The kinds of step that one of the processes has: two where channels alternate."""
    rollout, loss = config.rollout, config.loss
    micro = config.optimizer.micro_batches * processes
    completions = rollout.prompts_per_step * rollout.completions_per_prompt // micro
    taught = math.ceil(completions * failed_share) if loss.sdpo_weight else 0
    known = loss.replay_pairs if lengths.pairs is None else min(loss.replay_pairs, lengths.pairs)
    pairs = known if loss.replay_weight else 0
    work = Work(completions, taught, math.ceil(pairs / micro), pairs / micro)
    if not loss.alternate_channels:
        return (work,)
    return (work._replace(pairs=0, mean_pairs=0.0), work._replace(taught=0))


def teacher_prompt_tokens(lengths: Lengths, max_tokens: int) -> int:
    """The longest that is used: the engine leaves out a hint that the model cannot read."""
    room = max_tokens - lengths.completion if max_tokens else lengths.teacher_prompt
    return max(1, min(lengths.teacher_prompt, room))


class Kind(NamedTuple):
    """How a run computes: bytes of a weight, and what changes a layer's cost."""

    size: int
    rank: int  # of the adapter; 0: all weights are trained
    dora: bool
    recomputes: bool
    summed: bool

    @classmethod
    def of(cls, config: RunConfig) -> "Kind":
        model = config.model
        summed = config.loss.channel_backward == "summed"
        size = DTYPE_BYTES[model.dtype]
        return cls(size, model.lora_rank, model.lora_dora, model.gradient_checkpointing, summed)


class Sequences(NamedTuple):
    """What goes through the model at once; ``scored`` rows go through the head."""

    rows: int
    width: int
    scored: int
    is_masked: bool = False  # by a mask of our own: keys and values are repeated for each head

    @property
    def tokens(self) -> int:
        return self.rows * self.width


class StepSequences(NamedTuple):
    """The sequences of one micro batch; a channel that is off has none."""

    student: Sequences
    teacher: Sequences | None
    replay: Sequences | None


def step_sequences(
    shape: ModelShape, config: RunConfig, lengths: Lengths, work: Work
) -> StepSequences:
    completion = lengths.completion
    student = Sequences(
        work.completions, lengths.prompt + completion, work.completions * completion
    )
    teacher = replay = None
    if work.taught:
        prompt = teacher_prompt_tokens(lengths, shape.max_tokens)
        teacher = Sequences(work.taught, prompt + completion, work.taught * completion)
    if work.pairs:
        answers = lengths.chosen + lengths.rejected
        scored = work.pairs * answers
        if config.loss.share_prompts and _shares_prompts(shape, lengths):
            replay = Sequences(work.pairs, lengths.pair_prompt + answers, scored, is_masked=True)
        else:
            width = lengths.pair_prompt + max(lengths.chosen, lengths.rejected)
            replay = Sequences(2 * work.pairs, width, scored)
    return StepSequences(student, teacher, replay)


def _shares_prompts(shape: ModelShape, lengths: Lengths) -> bool:
    """As `composer_engine.plan.sharing_pays`, from lengths alone."""
    first = lengths.pair_prompt + lengths.chosen
    second = lengths.pair_prompt + lengths.rejected
    saved = 24 * shape.hidden**2 * lengths.pair_prompt
    longer = (first + lengths.rejected) ** 2 - (first**2 + second**2) // 2
    return shape.can_share_prompts and saved > 4 * shape.hidden * longer


def trained_bytes_of(shape: ModelShape, config: RunConfig) -> int:
    """Of the weights that are trained; an adapter's are float32."""
    model = config.model
    if model.lora_rank:
        return FLOAT32_BYTES * shape.adapter_parameters(model.lora_rank, dora=model.lora_dora)
    return shape.parameters * DTYPE_BYTES[model.dtype]
