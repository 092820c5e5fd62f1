"""What one optimizer step measured, gathered over its micro batches and read off once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch

from composer_engine.protocol import CHANNELS, Channels

METRICS = (
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "replay_margin",
    "replay_accuracy",
    "replay_chosen_logp",
    *(f"grad_norm_{channel}" for channel in CHANNELS),
)
_SQUARES = tuple(f"square/{channel}" for channel in CHANNELS)
_NAMES = (*CHANNELS, *METRICS, *_SQUARES)


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
    tokens: int = 0  # of the prompts and the completions, in all processes
    scored_tokens: int = 0  # of the completions, in all processes
    active_tokens: int = 0  # of those, under SDPO
    has_advantage: bool = False
    complaints: list[str] = field(default_factory=list)  # of the rewards, in all processes
    pairs: list[int] = field(default_factory=list)  # replayed, over all micro batches
    sums: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    numbers: StepNumbers = _NOTHING

    def opened(self) -> "StepRecord":
        """For one more step on the same rollout; this one, if no step has ended in it."""
        if self.numbers is _NOTHING:
            return self
        return replace(
            self, rollout_seconds=0.0, complaints=[], pairs=[], sums={}, numbers=_NOTHING
        )

    def note(
        self,
        channels: Mapping[str, torch.Tensor],
        squares: Mapping[str, torch.Tensor],
        metrics: Mapping[str, torch.Tensor],
    ) -> None:
        """One micro batch's shares, scalars that stay on the device.

        ``squares`` are squared gradient norms at the hidden states, by channel.
        """
        for name, share in (*channels.items(), *metrics.items()):
            self.sums.setdefault(name, []).append(share.detach())
        for channel, square in squares.items():
            self.sums.setdefault(f"square/{channel}", []).append(square.detach())

    def close(
        self,
        grad_norm: torch.Tensor,
        weights: dict[str, float],
        mean: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
        *,
        overflows: bool = False,
    ) -> StepNumbers:
        """The step's numbers; the device is waited for once, here.

        ``mean`` is over all processes: each adds shares whose mean is the step's. With
        ``overflows`` a gradient that is not finite is nobody's fault, only a losses' one is.
        """
        by_name, norm = self._read(grad_norm, mean)
        channels = {name: by_name.get(name) for name in CHANNELS}
        # A channel that is zero by construction is absent, but its NaN is not hidden by that.
        if not self.has_advantage and _is_finite(channels["grpo"]):
            channels["grpo"] = None
        bad = [name for name, value in channels.items() if not _is_finite(value)]
        is_bad_gradient = not math.isfinite(norm) and not overflows
        guilty = ", ".join(bad) or ("gradient" if is_bad_gradient else "")
        live = [weights[name] * value for name, value in channels.items() if value is not None]
        metrics = {name: by_name[name] for name in METRICS if name in by_name}
        if "sdpo" in by_name:
            metrics["sdpo_active_tokens"] = float(self.active_tokens)
        self.numbers = StepNumbers(
            channels=Channels(**{n: v if _is_finite(v) else None for n, v in channels.items()}),
            loss=None if guilty or not live else sum(live),
            grad_norm=norm if math.isfinite(norm) else None,
            metrics=metrics | _gradient_shares(by_name),
            guilty=guilty,
        )
        return self.numbers

    def _read(
        self, grad_norm: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[dict[str, float], float]:
        """The sums that some process has, by name, and the norm."""
        nothing = torch.zeros((), device=grad_norm.device)
        # In one order everywhere: a process may have had no part in a channel.
        sums = [
            torch.stack(self.sums[n]).sum().float() if n in self.sums else nothing for n in _NAMES
        ]
        there = [nothing + (name in self.sums) for name in _NAMES]
        *values, norm = mean(torch.stack([*sums, *there, grad_norm.float()])).tolist()
        found = zip(_NAMES, values[: len(_NAMES)], values[len(_NAMES) :], strict=True)
        return {name: value for name, value, is_there in found if is_there}, norm


def _gradient_shares(by_name: Mapping[str, float]) -> dict[str, float]:
    """How much of the gradient at the hidden states is each channel's, 0 to 1; the sum is 1."""
    norms = {
        channel: math.sqrt(by_name[square])
        for channel, square in zip(CHANNELS, _SQUARES, strict=True)
        if square in by_name and by_name[square] >= 0
    }
    total = sum(norms.values())
    if not total or not math.isfinite(total):
        return {}
    return {f"grad_share_{channel}": norm / total for channel, norm in norms.items()}


class Saving(Protocol):
    """What the callback sees of the run's checkpoints."""

    def note(self, reward_mean: float, non_finite_in_a_row: int) -> None:
        """What a step says of the checkpoint that follows it, if one does."""
        ...


class Stepping(Protocol):
    """What the callback sees of the trainer whose steps it reports."""

    record: StepRecord
    state: Any  # transformers.TrainerState
    control: Any  # transformers.TrainerControl

    @property
    def checkpoints(self) -> Saving:
        """Where its checkpoints go."""
        ...

    def clock(self) -> float:
        """Seconds, once the device has done what it was asked so far."""
        ...

    def anywhere(self, flag: bool) -> bool:
        """Whether it is true in any process. All of them must ask."""
        ...


def _is_finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
