"""From a configuration and prices to what Modal is asked for. Nothing here talks to anybody.

Whatever can be known to fail is refused here, before it costs anything.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

import msgspec

from composer_engine.cloud_spec import CloudSpec, app_name
from composer_engine.config import ConfigError, ConfigProblem, RunConfig
from composer_engine.contract import TAG_CAP_USD, TAG_LEASE_UNTIL, TAG_OWNER, TAG_RUN
from composer_tui.numbers import duration
from composer_tui.pricing.catalog import GpuRequest, UnknownGpu, parse_gpu
from composer_tui.pricing.rates import Rates, dearest_usd_per_hour

FIRST_MINUTES = 3.0
"""What a run needs at the very least: to come up, to load, and to save what it did."""

# Modal's regions begin with one of these; a narrower one goes on with a dash (us-west).
REGIONS = ("af", "ap", "ca", "eu", "il", "jp", "me", "mx", "sa", "uk", "us")
_CLOCK_SECONDS = 5.0  # so far apart two clocks may be, and a call take
_CLOCK_WARN_SECONDS = 60.0
_MINUTES_PER_HOUR = 60
_SECONDS_PER_MINUTE = 60


class Plan(NamedTuple):
    """``usd_per_hour`` is one container's at the dearest GPU, None when a price is not known."""

    spec: CloudSpec
    usd_per_hour: Decimal | None
    warnings: tuple[str, ...]


def check(config: RunConfig, rates: Rates) -> None:
    """Raises `ConfigError` with everything that Modal would refuse, or that would be money lost."""
    problems = [*_gpu_problems(config), *_other_problems(config)]
    if not problems:
        problems = _money_problems(config, rates)
    if problems:
        raise ConfigError(problems)


def plan(
    config: RunConfig,
    run_id: str,
    rates: Rates,
    *,
    now: float,
    owner: str,
    existing_secrets: Iterable[str] | None,
    clock_ahead_seconds: float = 0.0,
) -> Plan:
    """What is asked of Modal at ``now`` (unix seconds). Raises `ConfigError`.

    ``clock_ahead_seconds`` is by how much that is ahead of Modal's time: the container ends a lease
    by its own clock, so a lease is told in Modal's.
    ``existing_secrets`` are the account's; None when it could not be asked, and then none is used.
    """
    check(config, rates)
    modal = config.modal
    cost = dearest_usd_per_hour(rates, modal)
    is_off = abs(clock_ahead_seconds) > _CLOCK_SECONDS
    modal_now = now - clock_ahead_seconds if is_off else now
    lease_until = modal_now + modal.lease_minutes * _SECONDS_PER_MINUTE
    there = frozenset(existing_secrets or ())
    missing = [name for name in modal.secrets if name not in there]
    warnings = list(_doubts(config, cost))
    if abs(clock_ahead_seconds) > _CLOCK_WARN_SECONDS:
        by = duration(abs(clock_ahead_seconds))
        how = "ahead of" if clock_ahead_seconds > 0 else "behind"
        warnings.append(f"this machine's clock is {by} {how} Modal's: the lease ends by Modal's")
    if missing and existing_secrets is None:
        warnings.append(f"secrets could not be listed; the run goes without {', '.join(missing)}")
    elif missing:
        warnings.append(
            f"Modal has no secret {', '.join(missing)}: the run goes without "
            f"(composer-tui secrets create {missing[0]})"
        )
    spec = CloudSpec(
        run_id=run_id,
        config=config,
        tags={
            TAG_RUN: app_name(run_id),
            TAG_OWNER: owner,
            TAG_LEASE_UNTIL: str(int(lease_until)),
            TAG_CAP_USD: f"{modal.cap_usd:g}",
        },
        usd_per_hour=str(cost or 0),
        lease_until=lease_until,
        compute_capability=max((r.gpu.compute_capability for r in _requests(config)), default=0.0),
        secrets=tuple(name for name in modal.secrets if name in there),
    )
    return Plan(spec, cost, tuple(warnings))


def _requests(config: RunConfig) -> list[GpuRequest]:
    return [parse_gpu(text) for text in config.modal.gpu]


def _gpu_problems(config: RunConfig) -> list[ConfigProblem]:
    problems = []
    for text in config.modal.gpu:
        try:
            request = parse_gpu(text)
        except UnknownGpu as error:
            problems.append(ConfigProblem("modal.gpu", str(error)))
            continue
        if config.model.dtype == "bfloat16" and not request.gpu.bf16:
            problems.append(
                ConfigProblem(
                    "modal.gpu",
                    f"{request.name} has no bfloat16: model.dtype = float32, or a newer GPU",
                )
            )
        problems.extend(_split_problems(config, text, request.gpus))
    if config.model.device == "cuda" and not config.modal.gpu:
        problems.append(ConfigProblem("modal.gpu", "none is asked for, and model.device is cuda"))
    return problems


def _split_problems(config: RunConfig, text: str, count: int) -> list[ConfigProblem]:
    """The engine's own rule: a step is shared evenly by as many processes as there are GPUs."""
    from composer_engine.failures import SetupError
    from composer_engine.world import check_split

    try:
        check_split(config, count)
    except SetupError as error:
        return [ConfigProblem("modal.gpu", f"{text}: {error} ({error.hint})")]
    return []


def _other_problems(config: RunConfig) -> list[ConfigProblem]:
    modal, problems = config.modal, []
    if modal.region and modal.region.partition("-")[0] not in REGIONS:
        message = f"{modal.region}: Modal's regions begin with {', '.join(REGIONS)}"
        problems.append(ConfigProblem("modal.region", message))
    if modal.timeout_seconds <= modal.stop_grace_seconds:
        problems.append(
            ConfigProblem(
                "modal.timeout_seconds",
                f"{modal.timeout_seconds} s leaves nothing beside the "
                f"{modal.stop_grace_seconds:g} s of modal.stop_grace_seconds",
            )
        )
    return problems


def _money_problems(config: RunConfig, rates: Rates) -> list[ConfigProblem]:
    cost = dearest_usd_per_hour(rates, config.modal)
    if cost is None:
        return []
    least = cost * Decimal(str(FIRST_MINUTES)) / _MINUTES_PER_HOUR
    if Decimal(str(config.modal.cap_usd)) >= least:
        return []
    message = (
        f"${config.modal.cap_usd:g} does not pay the first {FIRST_MINUTES:g} minutes "
        f"at ${cost:.2f} an hour: at least ${least:.2f}"
    )
    return [ConfigProblem("modal.cap_usd", message)]


def _doubts(config: RunConfig, cost: Decimal | None) -> Iterable[str]:
    if cost is None:
        yield "this GPU's price is not known: its cap cannot be kept, its lease and timeout are"
    if config.model.device == "cpu" and config.modal.gpu:
        yield "model.device = cpu leaves the GPU idle, and it costs all the same: modal.gpu = none"


def dumped(spec: CloudSpec) -> bytes:
    """The spec as JSON, for the child that launches it and for whoever attaches later."""
    return msgspec.json.format(msgspec.json.encode(spec))
