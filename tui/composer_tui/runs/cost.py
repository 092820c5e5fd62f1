"""What a run's containers have cost: RUN/cost.jsonl, one line for each attempt.

An attempt is one container's life. The file only grows, by whole lines, and the last line of a
container is what is known of it. Only real time is paid for here: from a container's start to its
end, and where the end is not known, to the last sign of life.
"""

import os
import re
import time
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

import msgspec

from composer_engine.watchdog import cost_usd
from composer_tui.numbers import dollars
from composer_tui.pricing.catalog import GpuRequest, UnknownGpu, catalog, parse_gpu
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.sanitise import clean
from composer_tui.runs.state import RunState

CPU = "CPU"
_SMALLEST = Decimal("0.000001")


class AttemptCost(msgspec.Struct, frozen=True, kw_only=True):
    """One container of a run. Times are unix seconds by Modal's clocks.

    ``ended_at`` is None while it runs, and for good where nobody saw its end; it lived to
    ``seen_at`` at the least, and ``usd`` is what it cost until then (None: price not known).
    ``gpu`` is as it was asked for, alternatives with a slash; ``device`` is what the engine found;
    ``gpus`` are paid for. ``usd_per_hour`` (a decimal number) is all of the container, by
    ``rates_source`` as of ``rates_as_of``. ``outcome`` is finished, stopped or a kind of failure,
    "" while it is not known; neither is ``worth_retrying`` when it is None.
    """

    attempt: int
    container_id: str = ""
    gpu: str = ""
    device: str = ""
    gpus: int = 0
    started_at: float
    ended_at: float | None = None
    seen_at: float
    usd_per_hour: str = ""
    rates_source: str = ""
    rates_as_of: float = 0.0
    usd: Decimal | None = None
    outcome: str = ""
    reason: str = ""
    worth_retrying: bool | None = None

    @property
    def until(self) -> float:
        """Its end, or else the last sign of life."""
        return self.ended_at if self.ended_at is not None else self.seen_at

    @property
    def seconds(self) -> float:
        """How long it is known to have lived; never less than nothing."""
        return max(0.0, self.until - self.started_at)

    @property
    def gpu_type(self) -> str:
        """The catalogue's name of what it is paid for, or CPU."""
        return paid_gpu(self.gpu, self.device).name


class Paid(NamedTuple):
    """What a container's GPUs are called in the catalogue, and how many it has."""

    name: str
    gpus: int


class Spent(NamedTuple):
    """What some attempts cost together; ``is_whole`` when every price and every end is known."""

    usd: Decimal
    attempts: int
    is_whole: bool


def priced(attempt: AttemptCost) -> AttemptCost:
    """With the dollars that its times and its price make."""
    rate = price(attempt.usd_per_hour)
    usd = None if rate is None else cost_usd(rate, attempt.seconds).quantize(_SMALLEST)
    return msgspec.structs.replace(attempt, usd=usd)


def so_far(attempts: Iterable[AttemptCost], state: RunState) -> tuple[AttemptCost, ...]:
    """The newest attempt, if its end is not known, has lived as long as its events tell.

    A present without events makes nothing dearer; nor does the last word, which may have been said
    for the container long after it.
    """
    found = tuple(attempts)
    if not found or found[-1].ended_at is not None:
        return found
    told = [state.last, state.memory, state.checkpoint]
    heard = [event.time for event in told if event is not None]
    heard += [state.updated_at] if state.updated_at is not None and not state.ended else []
    seen_at = max([found[-1].seen_at, *heard])
    return (*found[:-1], priced(msgspec.structs.replace(found[-1], seen_at=seen_at)))


def spent(attempts: Iterable[AttemptCost]) -> Spent:
    """All of them together."""
    found = list(attempts)
    return Spent(
        sum((one.usd or Decimal(0) for one in found), Decimal(0)),
        len(found),
        all(one.usd is not None and one.ended_at is not None for one in found),
    )


def spent_words(attempts: Iterable[AttemptCost]) -> str:
    """``spent $0.42 over 2 attempts``, with a mark where it is that much at the least."""
    total = spent(attempts)
    more = "" if total.is_whole else "+?"
    noun = "attempt" if total.attempts == 1 else "attempts"
    return f"spent {dollars(total.usd)}{more} over {total.attempts} {noun}"


def rate_words(attempt: AttemptCost) -> str:
    """The price that was used, whose it is and of which day."""
    rate = dollars(price(attempt.usd_per_hour))
    if not attempt.rates_source:
        return f"at {rate}/h"
    day = time.strftime("%Y-%m-%d", time.localtime(attempt.rates_as_of))
    as_of = day if attempt.rates_as_of else catalog().as_of
    return f"at {rate}/h by {attempt.rates_source} of {as_of}"


def paid_gpu(asked: str, device: str) -> Paid:
    """Of the alternatives the one that the device is, or else the first: an upgrade is free."""
    options: list[GpuRequest] = []
    for text in asked.split("/"):
        try:
            options.append(parse_gpu(text))
        except UnknownGpu:
            continue
    if not options:
        return Paid(asked.partition("/")[0] or CPU, 1 if asked else 0)
    words = set(re.split(r"[\s-]+", device.upper()))
    there = (option for option in options if words.issuperset(option.name.split("-")))
    chosen = next(there, options[0])
    return Paid(chosen.name, chosen.gpus)


def price(text: str) -> Decimal | None:
    """A price that is a number above nothing; a run without one has "" or 0."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and number > 0 else None


def costs_path(folder: RunFolder) -> Path:
    """Where a run's attempts are kept."""
    return folder.path / "cost.jsonl"


def read_costs(folder: RunFolder) -> tuple[AttemptCost, ...]:
    """What is known of each container, the first to start first; damaged lines are passed over.

    Attempts are numbered in that order. Empty where there is no such file.
    """
    path = costs_path(folder)
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        return ()
    found: dict[str, AttemptCost] = {}
    for line in data.splitlines():
        try:
            one = msgspec.json.decode(line, type=AttemptCost)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        found[one.container_id] = _cleaned(one)
    ordered = sorted(found.values(), key=lambda one: one.started_at)
    return tuple(
        msgspec.structs.replace(one, attempt=number) for number, one in enumerate(ordered, 1)
    )


def append_costs(folder: RunFolder, attempts: Iterable[AttemptCost]) -> None:
    """Adds a line for each, in one write; a line that a dead writer left torn ends first.

    Only a run's follower writes. Raises OSError.
    """
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in attempts)
    if not lines:
        return
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(costs_path(folder), flags, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        data = b"\n" * torn + lines
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _cleaned(one: AttemptCost) -> AttemptCost:
    """Texts that came from a container may be shown as they are."""
    return msgspec.structs.replace(
        one,
        container_id=clean(one.container_id),
        gpu=clean(one.gpu),
        device=clean(one.device),
        outcome=clean(one.outcome),
        reason=clean(one.reason),
    )
