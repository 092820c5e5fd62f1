"""What the probe counts, in closed form: the moment when most is held, and the work of a step."""

from typing import Literal

import msgspec

from composer_engine.config import RunConfig
from composer_engine.flops import Flops, rollout_flops, step_flops
from composer_engine.footprint import Memory, overhead_bytes, together
from composer_engine.model_shape import ModelShape
from composer_engine.moments import generation, joining, kept, moments
from composer_engine.workload import (
    Lengths,
    default_lengths,
    step_sequences,
    trained_bytes_of,
    works_of,
)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """``memory`` is the moment when most is held, in ``phase``."""

    phase: Literal["training", "generation"]
    memory: Memory
    flops: Flops

    @property
    def peak_bytes(self) -> int:
        """Of tensors."""
        return self.memory.tensor_bytes

    @property
    def need_bytes(self) -> int:
        """With what is no tensor."""
        return self.peak_bytes + self.memory.overhead


def estimate(
    shape: ModelShape,
    config: RunConfig,
    lengths: Lengths,
    failed_share: float = 1.0,
    processes: int = 1,
) -> Estimate:
    """What the probe counts, in closed form; on the GPU unless ``model.device`` is cpu.

    Of one of the processes that share a step.
    """
    works = works_of(config, lengths, failed_share, processes)
    steps = [step_sequences(shape, config, lengths, work) for work in works]
    joined = joining(trained_bytes_of(shape, config), processes)
    found = [moment for step in steps for moment in moments(shape, config, step)]
    training = together(joined, max(found, key=lambda moment: moment.tensor_bytes))
    sampling = generation(shape, config, lengths, processes)
    generating = together(joined, kept(shape, config), sampling)
    is_training = training.tensor_bytes >= generating.tensor_bytes
    memory = training if is_training else generating
    overhead = overhead_bytes(memory.tensor_bytes, on_cuda=config.model.device != "cpu")
    return Estimate(
        phase="training" if is_training else "generation",
        memory=msgspec.structs.replace(memory, overhead=overhead),
        flops=Flops(
            **step_flops(shape, config, list(zip(works, steps, strict=True))),
            rollout=rollout_flops(shape, config, lengths, processes),
        ),
    )


def peak(shape: ModelShape, config: RunConfig, lengths: Lengths | None = None) -> int:
    """Bytes of tensors at the moment when most are held."""
    return estimate(shape, config, lengths or default_lengths(config)).peak_bytes
