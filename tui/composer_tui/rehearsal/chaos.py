"""What goes wrong on purpose: the parsed specification and the dice."""

import asyncio
import random
from typing import Any, NamedTuple

from grpclib import GRPCError, Status


class BadSpec(ValueError):  # noqa: N818  # says what the matter is
    """The specification cannot be read; the message is one line for a person."""


class ChaosSpec(NamedTuple):
    """What to do wrong, and how often. Probabilities are 0..1; the rest are seconds."""

    preempt_per_second: float = 0.0
    drop_logs: float = 0.0  # of each batch of a log stream
    stuck_stop_seconds: float = 0.0
    list_fails: float = 0.0
    rates_missing: bool = False
    slow_seconds: float = 0.0
    skew_seconds: float = 0.0
    errors: tuple[tuple[str, str, float], ...] = ()  # RPC, the name of a gRPC status, probability
    seed: int | None = None


_NUMBERS = {  # the word in a specification, the field, the largest value
    "preempt": ("preempt_per_second", 1.0),
    "drop-logs": ("drop_logs", 1.0),
    "stuck-stop": ("stuck_stop_seconds", 86400.0),
    "list-fails": ("list_fails", 1.0),
    "slow": ("slow_seconds", 3600.0),
    "skew": ("skew_seconds", 1e9),
}


def parse(text: str) -> ChaosSpec:
    """Reads ``preempt=0.1,rates-missing,error=AppStop:UNAVAILABLE:0.5``. Raises `BadSpec`."""
    spec = ChaosSpec()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        word, _, value = part.partition("=")
        if word == "rates-missing" and not value:
            spec = spec._replace(rates_missing=True)
        elif word == "seed":
            spec = spec._replace(seed=_seed(value))
        elif word == "error":
            spec = spec._replace(errors=(*spec.errors, _error(value)))
        elif word in _NUMBERS:
            name, largest = _NUMBERS[word]
            number: dict[str, Any] = {name: _number(word, value, largest)}
            spec = spec._replace(**number)
        else:
            known = ", ".join([*_NUMBERS, "rates-missing", "error", "seed"])
            raise BadSpec(f"chaos: {part!r} is not one of {known}")
    return spec


def _number(word: str, value: str, largest: float) -> float:
    smallest = -largest if word == "skew" else 0.0
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not smallest <= number <= largest:
        raise BadSpec(f"chaos: {word} wants a number from {smallest:g} to {largest:g}: {value!r}")
    return number


def _seed(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise BadSpec(f"chaos: seed wants a whole number: {value!r}") from None


def _error(value: str) -> tuple[str, str, float]:
    rpc, _, rest = value.partition(":")
    status, _, probability = rest.partition(":")
    if rpc not in _rpcs():
        raise BadSpec(f"chaos: error names no RPC of Modal: {rpc!r}")
    if status not in Status.__members__ or status == "OK":
        raise BadSpec(f"chaos: error wants a gRPC status such as UNAVAILABLE: {status!r}")
    return rpc, status, _number("error", probability, 1.0)


def _rpcs() -> frozenset[str]:
    from modal_proto.api_grpc import ModalClientBase

    return frozenset(ModalClientBase.__abstractmethods__)


class Chaos:
    """The dice of one rehearsal. The same seed and the same requests give the same faults."""

    def __init__(self, spec: ChaosSpec | None = None) -> None:
        self.spec = spec or ChaosSpec()
        self._random = random.Random(self.spec.seed)

    @property
    def skew_seconds(self) -> float:
        """How far this control plane's clock is ahead."""
        return self.spec.skew_seconds

    def happens(self, probability: float) -> bool:
        """Whether a fault of that probability happens now. Throws no dice for 0."""
        return probability > 0 and self._random.random() < probability

    async def before(self, rpc: str) -> None:
        """Runs before each answer: waits, or raises the GRPCError that was asked for."""
        if self.spec.slow_seconds:
            await asyncio.sleep(self.spec.slow_seconds)
        if rpc in ("AppList", "TaskList") and self.happens(self.spec.list_fails):
            raise GRPCError(Status.UNAVAILABLE, f"{rpc} is unavailable (rehearsed fault)")
        if rpc == "WorkspaceBillingRates" and self.spec.rates_missing:
            raise GRPCError(Status.UNIMPLEMENTED, f"the rehearsal does not imitate {rpc}")
        for name, status, probability in self.spec.errors:
            if name == rpc and self.happens(probability):
                raise GRPCError(Status[status], f"{rpc} failed (rehearsed fault)")
