"""The list of live apps: whole when Modal answers, honest when it does not."""

import json
import os
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from composer_engine.config import load
from composer_engine.contract import TAG_CAP_USD, TAG_LEASE_UNTIL, TAG_OWNER, TAG_RUN
from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.cloud.owner import owner_tag
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.rates_cache import (
    REFRESH_SECONDS,
    STALE_SECONDS,
    KnownRates,
    current_rates,
    kept_rates,
)
from composer_tui.cloud.spending import Meter, spent_usd
from composer_tui.cloud.wire import Container
from composer_tui.pricing.catalog import catalog
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.apps_fixtures import Napping, napping
from tests.rehearsal.rehearsal import wait_until

HOUR = 3600.0


def listed(nap: Napping, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = nap.composer("apps", "--all", "--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def row(apps: dict[str, Any], app_id: str) -> dict[str, Any]:
    return next(app for app in apps["apps"] if app["app_id"] == app_id)


def a_cloud_run(nap: Napping, app_id: str, app_name: str, **ref: Any) -> RunFolder:
    """This machine's record of a run on Modal."""
    config = load("smoke", settings=["name=known"])
    folder = RunStore(nap.folder / "runs").create(config, "modal", time.time())
    write_ref(folder, CloudRef(app_name=app_name, app_id=app_id, launched_at=time.time(), **ref))
    return folder


def run_child(nap: Napping, code: str) -> dict[str, Any]:
    """Python with the rehearsal as its account; what it prints as JSON."""
    preamble = (
        "import os, sys, time, msgspec\n"
        "from pathlib import Path\n"
        "from composer_tui.cloud.apps import list_apps\n"
        "from composer_tui.cloud.seen import SEEN, Seen\n"
        "from composer_tui.cloud.wire import App\n"
        "from composer_tui.runs.store import RunStore\n"
        "store = RunStore(Path(os.environ['COMPOSER_RUNS_DIR']))\n"
        "def show(apps):\n"
        "    sys.stdout.buffer.write(msgspec.json.encode(apps))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", preamble + code],
        env=nap.environ(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_an_app_is_listed_with_all_that_is_known_of_it(nap: Napping) -> None:
    now = time.time()
    tags = {
        TAG_RUN: "known-1",
        TAG_OWNER: owner_tag(),
        TAG_LEASE_UNTIL: f"{now - HOUR:.0f}",
        TAG_CAP_USD: "5",
    }
    (ours,) = nap.launch("known-1", tags=tags, gpu="H100:2", steps=900)
    (foreign,) = nap.take_idle()
    folder = a_cloud_run(nap, ours, "known-1", lease_until=now - HOUR)
    wait_until(
        lambda: "known-1/beat" in nap.plane.modal("dict", "items", "composer-control").stdout,
        "beat",
    )
    apps = listed(nap)
    assert apps["problem"] is None
    assert apps["environment"] == "main"
    assert apps["rates_source"] == "modal"
    app = row(apps, ours)
    price = Decimal("3.95") * 2 + Decimal("0.0473") * 4 + Decimal("0.008") * 16
    assert (app["gpu"], Decimal(app["usd_per_hour"])) == ("H100:2", price)
    assert Decimal(0) < Decimal(app["spent_usd"]) < price / 60
    assert len(app["containers"]) == 1
    assert (app["run_id"], app["owner"]) == (folder.run_id, owner_tag())
    assert app["cap_usd"] == "5"
    assert app["step"] > 0
    assert app["total_steps"] == 900
    assert app["last_step_at"] == pytest.approx(time.time(), abs=20)
    assert (app["orphan"], app["orphan_why"][:15]) == ("LEASE_EXPIRED", "its lease ended")
    other = row(apps, foreign)
    assert (other["orphan"], other["gpu"], other["run_id"]) == ("UNTAGGED", "L4", "")
    table = nap.composer("apps").stdout
    assert "LEASE_EXPIRED" in table
    assert "1 orphan " in table
    assert "/h" in table
    nap.end(ours, foreign)


def test_a_state_that_modal_s_library_has_no_name_for_is_read_from_its_command_line(
    nap: Napping,
) -> None:
    (app_id,) = nap.take()
    apps = run_child(
        nap,
        "import modal\n"
        "def unknown(proto):\n"
        "    raise KeyError(9)\n"
        "modal.types.AppLifecycle._from_proto = unknown\n"  # as for a state of tomorrow
        "show(list_apps(store, time.time()))",
    )
    app = row(apps, app_id)
    assert (app["name"][:8], app["state"], len(app["containers"])) == ("running-", "detached", 1)
    assert app["gpu"] == "L4" or app["usd_per_hour"] is None
    assert apps["as_of"] > 0
    nap.end(app_id)


def test_containers_that_cannot_be_listed_cost_an_unknown_amount_not_nothing(
    tmp_path: Path,
) -> None:
    with napping(tmp_path, "error=TaskList:PERMISSION_DENIED:1,rates-missing,skew=7200") as nap:
        (app_id,) = nap.launch("hidden", running=False, gpu="L4")
        apps = listed(nap)
        assert apps["problem"]["kind"] == "refused"
        assert row(apps, app_id)["usd_per_hour"] is None
        assert (apps["rates_source"], apps["rates_as_of"]) == ("snapshot", 0)
        shown = nap.composer("apps")
        assert "TaskList failed" in shown.stderr
        assert catalog().as_of in shown.stdout


def test_a_list_that_cannot_be_had_is_the_last_one_and_says_so(tmp_path: Path) -> None:
    with napping(tmp_path, "error=AppList:PERMISSION_DENIED:1,skew=7200") as nap:
        apps = run_child(
            nap,
            "app = App(app_id='ap', name='before', state='detached', created_at=1.0)\n"
            "show(list_apps(store, time.time(), seen=Seen(apps={'ap': app}, as_of=5.0)))",
        )
        assert (apps["as_of"], apps["apps"][0]["name"]) == (5.0, "before")
        assert "AppList failed" in apps["problem"]["message"]
        assert listed(nap, status=2)["apps"] == []
        refused = nap.composer("stop", "--all", "--yes")
        assert refused.returncode == 2
        assert "AppList failed" in refused.stderr


def test_a_clock_that_is_behind_is_told(tmp_path: Path) -> None:
    with napping(tmp_path, "skew=7200") as nap:
        nap.launch("tomorrow", calls=False)
        apps = listed(nap)
        assert apps["problem"]["kind"] == "clock"
        assert "2h00m behind" in apps["problem"]["message"] or "1h59m" in apps["problem"]["message"]


def test_a_clock_that_is_ahead_ends_no_lease(tmp_path: Path) -> None:
    """By this machine's clock it ended long ago; by Modal's, and the container's, it goes on."""
    with napping(tmp_path, "skew=-7200") as nap:
        modal_now = time.time() - 7200
        going = {TAG_RUN: "going", TAG_LEASE_UNTIL: f"{modal_now + 600:.0f}"}
        over = {TAG_RUN: "over", TAG_LEASE_UNTIL: f"{modal_now - 600:.0f}"}
        (healthy,) = nap.launch("going", tags=going, calls=False)
        (expired,) = nap.launch("over", tags=over, calls=False)
        done = nap.composer("gc", "--yes")
        assert done.returncode == 0, done.stderr
        assert "ahead of Modal's" in done.stderr
        assert nap.is_live(healthy)
        assert not nap.is_live(expired)


def test_a_wrong_token_and_none_are_the_users_to_mend(nap: Napping) -> None:
    wrong = {"MODAL_TOKEN_ID": "ak-" + "x" * 22, "MODAL_TOKEN_SECRET": "as-" + "y" * 22}
    done = nap.composer("apps", **wrong)
    assert done.returncode == 2
    assert "modal token new" in done.stderr
    assert "xxxx" not in done.stderr + done.stdout
    done = nap.composer("apps", MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
    assert done.returncode == 2
    assert "no Modal token" in done.stderr
    assert "live" not in done.stdout, "what is not known is not said to be nothing"


# Prices.


def refuse() -> dict[str, Decimal]:
    raise CloudProblem(problem("no_network"))


def test_prices_are_asked_for_once_an_hour(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "rates.json"
    asked: list[float] = []

    def fetch() -> dict[str, Decimal]:
        asked.append(1)
        return {"gpu_hour_cost_l4": Decimal(len(asked))}

    for now in (100.0, 200.0, 100 + REFRESH_SECONDS - 1):
        assert current_rates(fetch, now, path).rates.usd_per_hour["gpu_hour_cost_l4"] == 1
    later = current_rates(fetch, 100 + REFRESH_SECONDS, path)
    assert later.rates.usd_per_hour["gpu_hour_cost_l4"] == 2
    assert later.rates.as_of == 100 + REFRESH_SECONDS
    assert len(asked) == 2


def test_old_prices_are_dated_and_none_are_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    nothing = current_rates(refuse, 0, path)
    assert (nothing.rates.source, nothing.rates.as_of) == ("snapshot", 0)
    assert nothing.problem is not None
    current_rates(lambda: {"cpu_hour_cost": Decimal(1), "new_key": Decimal(2)}, 0, path)
    old: KnownRates = current_rates(refuse, STALE_SECONDS, path)
    assert (old.rates.source, old.rates.as_of, old.is_stale) == ("modal", 0, False)
    older = current_rates(refuse, STALE_SECONDS + 1, path)
    assert older.is_stale
    assert older.problem is not None
    assert older.unknown == ("new_key",)
    assert "gpu_hour_cost_h100" in older.missing


@pytest.mark.parametrize("text", [b"", b"{", b'{"as_of": 1, "usd_per_hour": {"x": "no"}}', b"[]"])
def test_a_damaged_cache_is_no_cache(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "rates.json"
    path.write_bytes(text)
    assert kept_rates(0, path).rates.source == "snapshot"
    fresh = current_rates(lambda: {"cpu_hour_cost": Decimal(1)}, 5, path)
    assert fresh.rates.as_of == 5


@pytest.mark.parametrize("prices", [{}, {"cpu_hour_cost": "NaN"}, {"cpu_hour_cost": "free"}])
def test_prices_that_are_none_are_not_believed(tmp_path: Path, prices: dict[str, Any]) -> None:
    known = current_rates(lambda: prices, 0, tmp_path / "rates.json")
    assert known.rates.source == "snapshot"
    assert known.problem is not None


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only to root")
def test_a_cache_that_cannot_be_written_still_prices(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    known = current_rates(lambda: {"cpu_hour_cost": Decimal(1)}, 5, tmp_path / "rates.json")
    assert known.rates.source == "modal"


# What was spent.


def test_only_containers_that_started_cost() -> None:
    boxes = [Container(container_id="a", started_at=0.0), Container(container_id="b")]
    assert spent_usd(Decimal(4), boxes, HOUR / 2) == Decimal(2)
    assert spent_usd(Decimal(4), boxes, -HOUR) == 0
    assert spent_usd(None, boxes, HOUR) is None


def test_the_meter_stops_for_a_container_that_is_gone() -> None:
    first = Container(container_id="a", started_at=0.0)
    second = Container(container_id="b", started_at=HOUR)
    meter = Meter(Decimal(1), [first])
    meter.saw([first, second], HOUR)
    meter.saw([second], 2 * HOUR)
    assert meter.total(3 * HOUR) == Decimal(2) + Decimal(2)
    meter.saw([], 3 * HOUR)
    assert meter.total(9 * HOUR) == Decimal(4)
    assert Meter(None, [first]).total(HOUR) is None
