"""The processes that train one model together, as torchrun tells them. No torch in here."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from composer_engine.config import RunConfig
from composer_engine.failures import SetupError


class World(NamedTuple):
    """This process among ``size``. ``rank`` 0 alone speaks and owns the run folder.

    ``local_rank`` is its place on this machine, and so its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def this_world(environ: Mapping[str, str] = os.environ) -> World:
    """From torchrun's variables; alone without them."""
    size = int(environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    return World(int(environ["RANK"]), size, int(environ["LOCAL_RANK"]))


def gpu_count(gpu: str) -> int:
    """How many a string such as ``H100:2`` asks for."""
    return int(gpu.partition(":")[2] or 1)


def check_gpus(config: RunConfig) -> None:
    """Raises `SetupError` for a step that some choice of ``modal.gpu`` cannot share evenly."""
    for gpu in config.modal.gpu:
        check_split(config, gpu_count(gpu))


def check_split(config: RunConfig, size: int) -> None:
    """Raises `SetupError` for a step that does not split evenly over so many processes.

    The completions of one prompt stay in one process, where each is a sibling of the others.
    """
    rollout, micro_batches = config.rollout, config.optimizer.micro_batches
    if rollout.prompts_per_step % size:
        raise SetupError(
            f"rollout.prompts_per_step is {rollout.prompts_per_step}, which {size} processes "
            "cannot share evenly",
            f"make it a multiple of {size}, or ask for other GPUs",
        )
    share = rollout.prompts_per_step * rollout.completions_per_prompt // size
    if share % micro_batches:
        raise SetupError(
            f"optimizer.micro_batches is {micro_batches}, which does not divide the {share} "
            f"completions that each of {size} processes has",
            "lower optimizer.micro_batches: several GPUs hold more already",
        )
