"""Leases are extended where they end runs, and tell the same everywhere."""

import json
import time
from pathlib import Path

from composer_engine.contract import TAG_LEASE_UNTIL, TAG_RUN
from composer_tui.cloud.lease import left_over
from composer_tui.cloud.ledger import read_ref
from composer_tui.cloud.wire import App, Apps, OrphanClass
from tests.cloud.apps_fixtures import Napping
from tests.cloud.test_apps import a_cloud_run, listed, row

_READ = """
import sys, json, modal
app = modal.App.lookup(sys.argv[1])
control = modal.Dict.from_name("composer-control", create_if_missing=True)
if len(sys.argv) > 3:
    control[sys.argv[2] + "/ask"] = sys.argv[3]
print(json.dumps({"tags": app.get_tags(), "ask": control.get(sys.argv[2] + "/ask")}))
"""


def test_an_extension_reaches_the_container_the_tags_and_the_ledger(
    nap: Napping, tmp_path: Path
) -> None:
    now = time.time()
    tags = {TAG_RUN: "leased", TAG_LEASE_UNTIL: f"{now + 600:.0f}", "team": "x"}
    (app_id,) = nap.launch("leased", tags=tags, calls=False)
    folder = a_cloud_run(nap, app_id, "leased", lease_until=now + 600)
    script = tmp_path / "read.py"
    script.write_text(_READ)
    nap.plane.script(script, app_id, "leased", json.dumps({"stop": "why", "lease_until": 0}))
    done = nap.composer("lease", folder.run_id, "--minutes", "30")
    assert done.returncode == 0, done.stderr
    assert "39m" in done.stdout or "40m" in done.stdout
    until = now + 600 + 1800
    found = json.loads(nap.plane.script(script, app_id, "leased"))
    ask = json.loads(found["ask"])
    assert abs(ask["lease_until"] - until) < 2
    assert ask["stop"] == "why", "a stop that was asked stays asked"
    assert abs(float(found["tags"][TAG_LEASE_UNTIL]) - until) < 2
    assert (found["tags"]["team"], found["tags"][TAG_RUN]) == ("x", "leased")
    assert abs(read_ref(folder).lease_until - until) < 2
    assert abs(row(listed(nap), app_id)["lease_until"] - until) < 2
    assert nap.composer("lease", app_id, "--minutes", "5", COMPOSER_READONLY="1").returncode == 2


def test_what_this_program_did_not_launch_has_no_lease(nap: Napping) -> None:
    (app_id,) = nap.take_idle()
    done = nap.composer("lease", app_id, "--minutes", "5")
    assert done.returncode == 2
    assert "it has no lease" in done.stderr
    assert nap.composer("lease", app_id, "--minutes", "0").returncode == 2


def test_what_is_left_over_is_what_its_class_says() -> None:
    classes: tuple[OrphanClass, ...] = (
        "",
        "UNTAGGED",
        "LEASE_EXPIRED",
        "OWNER_GONE",
        "NO_HEARTBEAT",
        "STUCK_STOPPING",
    )
    apps = [App(app_id=c, name="", state="", created_at=0, orphan=c) for c in classes]
    found = left_over(Apps(apps=tuple(apps)))
    assert [app.app_id for app in found] == ["LEASE_EXPIRED", "OWNER_GONE"]


def test_an_app_that_has_ended_gets_no_lease(nap: Napping) -> None:
    (app_id,) = nap.launch("ended", tags={TAG_RUN: "ended"}, calls=False)
    nap.end(app_id)
    done = nap.composer("lease", app_id, "--minutes", "5")
    assert done.returncode == 2
    assert "has ended" in done.stderr
