"""What one optimizer step measured, gathered over its micro batches and read off once."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from composer_engine.protocol import CHANNELS, Channels


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
    active_tokens: int = 0  # completion tokens under SDPO, over all micro batches
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

    def close(self, grad_norm: torch.Tensor, weights: dict[str, float]) -> StepNumbers:
        """The step's numbers; the device is waited for once, here."""
        names = [*self.shares, *self.sums]
        stacked = [torch.stack(parts).sum().float() for parts in self.shares.values()]
        stacked += [torch.stack(parts).sum().float() for parts in self.sums.values()]
        values = torch.stack([*stacked, grad_norm.float()]).tolist()
        by_name = dict(zip(names, values[:-1], strict=True))
        norm = values[-1]
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
            metrics={name: by_name[name] for name in self.sums},
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


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
