"""What the processes that train one model do together."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

_Result = TypeVar("_Result")


def inside_wrapper(model: Any, compute: Callable[[], _Result]) -> _Result:
    """Computes inside the forward of what joins the processes, where there is such a wrapper.

    It averages the gradients of the backward that follows its forward. What is inside is ours:
    the wrapped model's own forward does not run.
    """
    if not isinstance(model, DistributedDataParallel):
        return compute()
    module = model.module
    own = module.__dict__.get("forward")  # TRL's, which is bound to this very model
    module.forward = lambda _: compute()
    try:
        result: _Result = model(None)  # on CUDA the wrapper cannot do without an argument
    finally:
        del module.forward
        if own is not None:
            module.forward = own
    return result


def sum_over(accelerator: Any, counts: Sequence[int]) -> list[int]:
    """The processes' sums. All of them must ask."""
    if accelerator.num_processes == 1:
        return [*map(int, counts)]
    total = accelerator.reduce(torch.tensor(counts, device=accelerator.device), "sum")
    return [*map(int, total.tolist())]


def mean_over(accelerator: Any, values: torch.Tensor) -> torch.Tensor:
    """The processes' mean. All of them must ask."""
    if accelerator.num_processes == 1:
        return values
    mean: torch.Tensor = accelerator.reduce(values, "mean")
    return mean
