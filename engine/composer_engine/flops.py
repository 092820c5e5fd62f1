"""FLOPs of a step and of its rollout, in closed form."""

import msgspec

from composer_engine.config import RunConfig
from composer_engine.model_shape import ModelShape
from composer_engine.workload import Kind, Lengths, Sequences, StepSequences, Work


class Flops(msgspec.Struct, frozen=True, kw_only=True):
    """Of one optimizer step in one process; a multiplication and its addition are two.

    ``sdpo`` is what SDPO adds: its teacher, and its part of the student's head. Attention is
    counted as if every token read every other, as torch counts it.
    """

    grpo: int = 0
    sdpo: int = 0
    replay: int = 0
    rollout: int = 0

    @property
    def training(self) -> int:
        """Without the rollout."""
        return self.grpo + self.sdpo + self.replay


def rollout_flops(
    shape: ModelShape, config: RunConfig, lengths: Lengths, processes: int = 1
) -> int:
    """Of sampling a process's completions of a step with a cache of keys and values."""
    rollout = config.rollout
    sequences = rollout.prompts_per_step * rollout.completions_per_prompt // processes
    prompt, completion = lengths.prompt, lengths.completion
    layers = 2 * shape.layers * shape.layer_matrices * (prompt + completion)
    read = prompt**2 + completion * (prompt + completion / 2)  # tokens read, by all tokens
    attention = 4 * shape.layers * shape.query * read
    return int(sequences * (layers + attention + 2 * shape.head * completion))


def step_flops(
    shape: ModelShape, config: RunConfig, kinds: list[tuple[Work, StepSequences]]
) -> dict[str, int]:
    """Of each channel: the mean of the kinds of step."""
    kind, micro_batches = Kind.of(config), config.optimizer.micro_batches
    head, learns = 2 * shape.head, not kind.rank
    grpo = sdpo = replay = 0.0
    for work, step in kinds:
        grpo += _trained_flops(shape, kind, step.student)
        grpo += head * step.student.scored * (2 + learns)
        if step.teacher is not None:
            sdpo += _forward_flops(shape, step.teacher) + head * step.teacher.scored * 2
        if step.replay is not None:
            of_one = _trained_flops(shape, kind, step.replay)
            of_one += head * step.replay.scored * (2 + 2 * learns)
            replay += of_one * work.mean_pairs / work.pairs
    each = micro_batches / len(kinds)
    counted = {"grpo": grpo, "sdpo": sdpo, "replay": replay}
    return {channel: int(flops * each) for channel, flops in counted.items()}


def _forward_flops(shape: ModelShape, sequences: Sequences) -> int:
    """Of the layers."""
    matrices = 2 * shape.layer_matrices * sequences.tokens
    return shape.layers * (matrices + 4 * shape.query * sequences.tokens * sequences.width)


def _trained_flops(shape: ModelShape, kind: Kind, sequences: Sequences) -> int:
    """Of the layers, forward and backward."""
    forward = _forward_flops(shape, sequences)
    matrices = 2 * shape.layers * shape.layer_matrices * sequences.tokens
    attention = 10 * shape.layers * shape.query * sequences.tokens * sequences.width
    adapter = 6 * sequences.tokens * shape.adapter_parameters(kind.rank) if kind.rank else 0
    backward = matrices * (1 if kind.rank else 2) + attention + adapter
    if not kind.recomputes:
        return forward + backward
    # A layer is made anew up to its last matrix, whose product nobody needs.
    last = 0 if kind.rank else 2 * shape.layers * shape.hidden * shape.ffn * sequences.tokens
    return 2 * forward - last + backward
