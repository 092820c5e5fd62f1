"""What can be known to fail is refused before it costs anything."""

from decimal import Decimal

import msgspec
import pytest

from composer_engine.config import ConfigError, RunConfig, load
from composer_engine.contract import TAG_CAP_USD, TAG_LEASE_UNTIL, TAG_OWNER, TAG_RUN
from composer_tui.cloud.plan import Plan, check, plan
from composer_tui.pricing.rates import Rates, snapshot_rates

NOW = 1_700_000_000.0


def configured(*settings: str) -> RunConfig:
    return load("smoke", settings=settings)


def planned(config: RunConfig, secrets: list[str] | None = None) -> Plan:
    return plan(
        config, "a-run", snapshot_rates(), now=NOW, owner="me-at-home", existing_secrets=secrets
    )


def problem(*settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(configured(*settings), snapshot_rates())
    (found,) = caught.value.problems
    assert "\n" not in str(found)
    return str(found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["modal.gpu=H999"], "there is no such GPU"),
        (["modal.gpu=A10:5"], "1 to 4 of A10"),
        (["modal.gpu=T4", "model.dtype=bfloat16"], "T4 has no bfloat16"),
        (["modal.gpu=H100,T4", "model.dtype=bfloat16"], "T4 has no bfloat16"),
        (["modal.gpu=", "model.device=cuda"], "model.device is cuda"),
        (["modal.region=mars-north"], "regions begin with"),
        (["modal.timeout_seconds=30"], "leaves nothing"),
        (["modal.gpu=B300:8"], "B300:8: rollout.prompts_per_step is 4, which 8 processes cannot"),
        (["modal.gpu=H100:4", "modal.cap_usd=0.2"], "does not pay the first 3 minutes"),
    ],
)
def test_a_run_that_cannot_go_well_is_refused_in_one_line(settings: list[str], words: str) -> None:
    assert words in problem(*settings)


def test_a_gpu_is_known_by_any_of_its_names() -> None:
    for name in ("l4", "A10G", "h100!", "B200+", "A100-80GB:2"):
        check(configured(f"modal.gpu={name}", "modal.cap_usd=100"), snapshot_rates())


def test_a_run_says_whose_it_is_and_until_when() -> None:
    spec = planned(configured("modal.lease_minutes=90", "modal.cap_usd=7.5")).spec
    assert spec.tags == {
        TAG_RUN: "a-run",
        TAG_OWNER: "me-at-home",
        TAG_LEASE_UNTIL: str(int(NOW) + 5400),
        TAG_CAP_USD: "7.5",
    }
    assert spec.lease_until == NOW + 5400


@pytest.mark.parametrize(
    ("ahead", "counts", "words"),
    [
        (-95.0, True, "1m35s behind Modal's"),
        (95.0, True, "1m35s ahead of Modal's"),
        (-30.0, True, ""),
        (3.0, False, ""),
    ],
)
def test_a_lease_ends_by_modal_s_clock(ahead: float, counts: bool, words: str) -> None:
    made = plan(
        configured("modal.lease_minutes=90", "modal.gpu="), "r", snapshot_rates(),
        now=NOW, owner="o", existing_secrets=[], clock_ahead_seconds=ahead,
    )  # fmt: skip
    until = NOW + 5400 - (ahead if counts else 0)
    assert made.spec.lease_until == until
    assert made.spec.tags[TAG_LEASE_UNTIL] == str(int(until))
    assert [words in warning for warning in made.warnings] == ([True] if words else [])


def test_the_price_is_the_dearest_gpu_s() -> None:
    one, both = (planned(configured(f"modal.gpu={gpus}")) for gpus in ("H100", "L4,H100"))
    assert one.usd_per_hour == both.usd_per_hour
    assert one.spec.usd_per_hour == str(one.usd_per_hour)
    assert both.spec.compute_capability == 9.0
    assert one.usd_per_hour is not None
    assert one.usd_per_hour > Decimal("3.95")


def test_secrets_that_do_not_exist_are_warned_of_and_left_out() -> None:
    config = configured("modal.secrets=huggingface,wandb", "modal.gpu=")
    made = planned(config, ["wandb", "other"])
    assert made.spec.secrets == ("wandb",)
    (warning,) = made.warnings
    assert "no secret huggingface" in warning
    unknown = planned(config, None)
    assert unknown.spec.secrets == ()
    assert "could not be listed" in unknown.warnings[0]


def test_a_gpu_that_would_idle_is_warned_of() -> None:
    assert any("idle" in warning for warning in planned(configured("modal.gpu=L4"), []).warnings)


def test_a_gpu_without_a_price_is_warned_of_and_not_refused() -> None:
    rates = snapshot_rates()
    prices = {key: price for key, price in rates.usd_per_hour.items() if "l4" not in key}
    unpriced = Rates(usd_per_hour=prices, source="modal", as_of=NOW)
    made = plan(configured("modal.gpu=L4"), "r", unpriced, now=NOW, owner="o", existing_secrets=[])
    assert made.usd_per_hour is None
    assert any("price is not known" in warning for warning in made.warnings)


def test_a_plan_can_be_read_again() -> None:
    spec = planned(configured("modal.gpu=L4")).spec
    assert msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)) == spec
