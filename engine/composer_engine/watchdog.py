"""When a run in a container must end: a rule, and the money and time that it is about.

Nothing here reads a clock: ``now`` is an argument, unix seconds.
"""

from decimal import Decimal
from typing import NamedTuple

import msgspec

from composer_engine.cloud_spec import CloudSpec
from composer_engine.protocol import FailureKind

_SECONDS_PER_HOUR = 3600
_SECONDS_PER_MINUTE = 60
_MINUTES_PER_HOUR = 60
_WARN_AT = Decimal("0.8")
_CENT = Decimal("0.01")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that the rule looks at. Times are unix seconds, 0 for what has not happened.

    ``earlier_usd`` is what earlier attempts cost; ``lease_until`` 0 is no lease; ``limit_seconds``
    is this attempt's time until Modal ends it, and ``limit_is_cap`` says that it is what the cap
    affords; ``asked`` is why somebody wants it to stop. ``grace_seconds`` is the time to save, and
    ``ending_seconds`` what follows it at the most: to insist, and to commit.
    """

    started_at: float
    usd_per_hour: Decimal
    cap_usd: Decimal
    earlier_usd: Decimal = Decimal(0)
    limit_seconds: float = float("inf")
    limit_is_cap: bool = False
    grace_seconds: float = 60.0
    ending_seconds: float = 0.0
    startup_seconds: float = float("inf")
    stall_seconds: float = float("inf")
    lease_until: float = 0.0
    last_step_at: float = 0.0
    asked: str = ""


class Verdict(NamedTuple):
    """Why a run must end. ``kind`` is its failure, should it not obey."""

    kind: FailureKind
    reason: str


def verdict(facts: Facts, now: float) -> Verdict | None:
    """Why the run must save and end now, or None while it may go on.

    Before its first step only the time to come up is counted, not the time without a step.
    """
    if facts.asked:
        return Verdict("killed", facts.asked)
    elapsed = now - facts.started_at
    limit_nears = elapsed >= _before(facts.limit_seconds, _reserved_seconds(facts))
    if spent_usd(facts, now) >= _saving_usd(facts) or (limit_nears and facts.limit_is_cap):
        return Verdict("budget", _cap_words(facts, now))
    if lease_is_over(facts, now):
        return Verdict("timeout", "the lease has expired: nobody extended it")
    if limit_nears:
        limit = _duration(facts.limit_seconds)
        return Verdict("timeout", f"the attempt's time of {limit} is up")
    if not facts.last_step_at:
        if elapsed >= facts.startup_seconds:
            limit = _duration(facts.startup_seconds)
            return Verdict("timeout", f"stalled: no step in the first {limit}")
    elif now - facts.last_step_at >= facts.stall_seconds:
        return Verdict("timeout", f"stalled: no new step for {_duration(facts.stall_seconds)}")
    return None


def lease_is_over(facts: Facts, now: float) -> bool:
    """As far as is known: it may have been extended by somebody who could not be heard yet."""
    return 0 < facts.lease_until <= now


def saving_seconds(facts: Facts, now: float) -> float:
    """How long it may take to save: the grace, or less where cap and limit leave no more.

    What follows the saving gets its seconds first, but never more than half of what is left.
    """
    left = left_seconds(facts, now)
    return min(facts.grace_seconds, max(left - facts.ending_seconds, left / 2))


def left_seconds(facts: Facts, now: float) -> float:
    """Until the cap is spent, or Modal ends the attempt; never less than 0."""
    left = facts.limit_seconds - (now - facts.started_at)
    if facts.usd_per_hour > 0:
        unspent = facts.cap_usd - spent_usd(facts, now)
        left = min(left, float(unspent * _SECONDS_PER_HOUR / facts.usd_per_hour))
    return max(0.0, left)


def warning(facts: Facts, now: float) -> str:
    """What to warn of: most of the cap is spent. "" before that."""
    spent = spent_usd(facts, now)
    if spent < facts.cap_usd * _WARN_AT:
        return ""
    return f"{_usd(spent)} of the cap of {_usd(facts.cap_usd)} are spent"


def spent_usd(facts: Facts, now: float) -> Decimal:
    """What the run has cost so far, over all its attempts."""
    return facts.earlier_usd + cost_usd(facts.usd_per_hour, now - facts.started_at)


def cost_usd(usd_per_hour: Decimal, seconds: float) -> Decimal:
    """What some time of one container costs; less than no time costs nothing."""
    return usd_per_hour * Decimal(max(0.0, seconds)) / _SECONDS_PER_HOUR


def timeout_seconds(spec: CloudSpec) -> int:
    """How long Modal may let one attempt run: as asked, and no longer than the cap affords."""
    asked = spec.config.modal.timeout_seconds
    rate = Decimal(spec.usd_per_hour)
    if rate <= 0:
        return asked
    affordable = Decimal(str(spec.config.modal.cap_usd)) * _SECONDS_PER_HOUR / rate
    return max(1, min(asked, int(affordable)))


def timeout_is_cap(spec: CloudSpec) -> bool:
    """The cap affords less time than was asked for."""
    return timeout_seconds(spec) < spec.config.modal.timeout_seconds


def _reserved_seconds(facts: Facts) -> float:
    return facts.grace_seconds + facts.ending_seconds


def _saving_usd(facts: Facts) -> Decimal:
    """The sum at which saving must begin so that the cap still pays for it, and for the end."""
    reserve = cost_usd(facts.usd_per_hour, _reserved_seconds(facts))
    return max(facts.cap_usd - reserve, facts.cap_usd / 2)


def _before(limit_seconds: float, reserved_seconds: float) -> float:
    """When saving must begin so that all is done before the limit."""
    return max(limit_seconds - reserved_seconds, limit_seconds / 2)


def _cap_words(facts: Facts, now: float) -> str:
    spent = spent_usd(facts, now)
    rest = ", the rest is kept for saving" if spent < facts.cap_usd else ""
    return f"the cap of {_usd(facts.cap_usd)} is reached: {_usd(spent)} spent{rest}"


def _usd(amount: Decimal) -> str:
    # Up to the cent: a sum just under the cap must not look as if the cap were broken.
    return f"${amount.quantize(_CENT) if amount >= _CENT else amount.quantize(_CENT / 100)}"


def _duration(seconds: float) -> str:
    """As people say it: 3 min 14 s."""
    if seconds < _SECONDS_PER_MINUTE:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), _SECONDS_PER_MINUTE)
    hours, minutes = divmod(minutes, _MINUTES_PER_HOUR)
    parts = ((hours, "h"), (minutes, "min"), (0 if hours else rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count)
