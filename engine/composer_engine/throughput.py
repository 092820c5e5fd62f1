"""Model FLOPs utilisation of a step."""

from typing import Any

import torch
from trl.trainer.utils import compute_flops_per_token, compute_mfu, get_peak_flops


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's dense peak a second for this type, where TRL's table knows it."""
    if device.type != "cuda":
        return None
    return get_peak_flops(torch.cuda.get_device_name(device), str(dtype).removeprefix("torch."))


class Throughput:
    """Knows the model's FLOPs a token and the device's peak; either may be unknown."""

    def __init__(self, config: Any, peak: float | None) -> None:
        self._config, self._peak = config, peak

    def mfu(self, tokens: int, sequences: int, seconds: float) -> float | None:
        """Share 0..1 of the peak that one forward and backward of ``tokens`` is.

        Over the whole step's time, rollout included; what the teacher and the pairs cost is not
        counted as work. ``None`` where the peak or the architecture is not known to TRL.
        """
        if self._peak is None or seconds <= 0:
            return None
        try:
            flops = compute_flops_per_token(self._config, tokens // sequences)
        except AttributeError:  # an architecture whose config has other names
            return None
        return float(compute_mfu(flops, tokens / seconds, 1, self._peak)) / 100
