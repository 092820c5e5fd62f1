"""What one optimizer step measured, gathered over its micro batches and read off once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from composer_engine.protocol import CHANNELS, Channels

METRICS = ("sdpo_active_tokens", "replay_margin", "replay_accuracy", "replay_chosen_logp")
_NAMES = (*CHANNELS, *METRICS)


class Sample(NamedTuple):
    """One rollout as a person reads it."""

    prompt: str
    completion: str
    reward: float


class StepNumbers(NamedTuple):
    """A step in plain numbers. ``guilty`` names what was not finite; '' for a healthy step."""

    channels: Channels
    loss: float | None
    grad_norm: float | None
    metrics: dict[str, float]
    guilty: str

    @property
    def is_live(self) -> bool:
        """Some channel had something to learn from, whether or not its number is finite."""
        return bool(self.guilty) or self.loss is not None


_NOTHING = StepNumbers(Channels(), loss=None, grad_norm=None, metrics={}, guilty="")


@dataclass
class StepRecord:
    """The step in progress. A channel's value is the sum of its micro batches' shares.

    Empty until the first rollout. ``numbers`` are those of the step once its gradient is whole.
    """

    rewards: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 1))  # [prompts, G] on CPU
    samples: list[Sample] = field(default_factory=list)
    rollout_seconds: float = 0.0
    tokens: int = 0  # of the prompts and the completions
    has_advantage: bool = False
    active_tokens: float = 0  # completion tokens under SDPO, all micro batches; a process's mean
    pairs: list[int] = field(default_factory=list)  # replayed, over all micro batches
    shares: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    sums: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    numbers: StepNumbers = _NOTHING

    def add(self, channel: str, share: torch.Tensor) -> None:
        """One micro batch's share of a channel's loss, a scalar."""
        self.shares.setdefault(channel, []).append(share.detach())

    def measure(self, metric: str, share: torch.Tensor) -> None:
        """One micro batch's share of a metric, a scalar."""
        self.sums.setdefault(metric, []).append(share.detach())

    def close(
        self,
        grad_norm: torch.Tensor,
        weights: dict[str, float],
        mean: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    ) -> StepNumbers:
        """The step's numbers; the device is waited for once, here.

        ``mean`` is over all processes: each adds shares whose mean is the step's.
        """
        parts = self.shares | self.sums
        nothing = torch.zeros((), device=grad_norm.device)
        # In one order everywhere: a process may have had no part in a channel.
        sums = [torch.stack(parts[n]).sum().float() if n in parts else nothing for n in _NAMES]
        there = [nothing + (name in parts) for name in _NAMES]
        *values, norm = mean(torch.stack([*sums, *there, grad_norm.float()])).tolist()
        count = len(_NAMES)
        by_name = {
            name: value
            for name, value, is_there in zip(_NAMES, values[:count], values[count:], strict=True)
            if is_there
        }
        channels = {name: by_name.get(name) for name in CHANNELS}
        # A channel that is zero by construction is absent, but its NaN is not hidden by that.
        if not self.has_advantage and _is_finite(channels["grpo"]):
            channels["grpo"] = None
        bad = [name for name, value in channels.items() if not _is_finite(value)]
        guilty = ", ".join(bad) or ("" if math.isfinite(norm) else "gradient")
        live = [weights[name] * value for name, value in channels.items() if value is not None]
        self.numbers = StepNumbers(
            channels=Channels(**{n: v if _is_finite(v) else None for n, v in channels.items()}),
            loss=None if guilty or not live else sum(live),
            grad_norm=norm if math.isfinite(norm) else None,
            metrics={name: by_name[name] for name in METRICS if name in by_name},
            guilty=guilty,
        )
        return self.numbers


class Stepping(Protocol):
    """What the callback sees of the trainer whose steps it reports."""

    record: StepRecord
    state: Any  # transformers.TrainerState
    control: Any  # transformers.TrainerControl

    def clock(self) -> float:
        """Seconds, once the device has done what it was asked so far."""
        ...

    def anywhere(self, flag: bool) -> bool:
        """Whether it is true in any process. All of them must ask."""
        ...


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
