"""The kill switch against many apps: how soon every stop is accepted, and how soon all are gone.

Beside it, what a person would do without it: a shell loop over ``modal app stop --yes``, measured
on some of the apps and extrapolated to all; that loop verifies nothing.

    python -m tests.bench.bench_kill [--apps 100] [--idle]

The client is warm, as in the helper process of the app; ``cold_seconds`` is what importing modal
and the first list cost when it is not. ``--idle`` makes apps without containers, for a machine that
has not the memory for all of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from composer_tui.cloud.kill import stop_apps
from composer_tui.cloud.kill_rules import ACCEPTED
from composer_tui.cloud.modal_cli import ModalCli
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.wire import StopProgress
from composer_tui.rehearsal import process
from tests.bench.harness import report

APPS = 100
SAMPLE = 5  # of the shell loop
LAUNCH_SECONDS = 900.0
QUIET_PERCENT, QUIET_SECONDS = 40.0, 240.0
TARGET_ACCEPTED_SECONDS, TARGET_GONE_SECONDS = 1.0, 5.0

_LAUNCHER = """
import sys
import modal

def nap():
    import time
    time.sleep(3600)

count, has_calls = int(sys.argv[1]), sys.argv[2] == "True"
for number in range(count):
    app = modal.App(f"bench-{number}", tags={"composer.run": f"bench-{number}"})
    function = app.function(serialized=True, gpu="L4", timeout=3600)(nap)
    with app.run(detach=True):
        if has_calls:
            function.spawn()
    print(app.app_id, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_kill")
    parser.add_argument("--apps", type=int, default=APPS)
    parser.add_argument("--idle", action="store_true", help="apps without containers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        connection = process.start(root / "plane", root / "connection.json")
        os.environ.update(connection.environ())
        try:
            _bench(root, options.apps, has_calls=not options.idle)
        finally:
            process.stop(root / "connection.json")


def _bench(root: Path, count: int, *, has_calls: bool) -> None:
    ids = _launch(root, count + SAMPLE, has_calls=has_calls)
    _settle(len(ids) if has_calls else 0)
    load_average = os.getloadavg()[0]
    loop_seconds = _shell_loop(ids[:SAMPLE])
    cold_seconds = _warm_up()
    accepted: dict[str, float] = {}

    def on_progress(progress: StopProgress) -> None:
        if progress.message == ACCEPTED or progress.stage == "gone":
            accepted.setdefault(progress.app_id, time.monotonic() - began)

    began = time.monotonic()
    result = stop_apps(ids[SAMPLE:], "now", 0.0, on_progress, audit_path=root / "audit.jsonl")
    left = ModalCli().container_list()
    report(
        bench="kill",
        apps=count,
        with_containers=has_calls,
        accepted_seconds=round(max(accepted.values()), 2),
        accepted=len(accepted),
        gone_seconds=round(result.seconds, 2),
        gone=sum(app.stage == "gone" for app in result.apps),
        containers_left=len(left),
        cold_seconds=round(cold_seconds, 2),
        target_accepted_seconds=TARGET_ACCEPTED_SECONDS,
        target_gone_seconds=TARGET_GONE_SECONDS,
        shell_loop={
            "command": "modal app stop --yes, one after the other",
            "measured_apps": SAMPLE,
            "measured_seconds": round(loop_seconds, 2),
            "extrapolated_seconds": round(loop_seconds / SAMPLE * count, 1),
            "verifies": False,
        },
        load_average_before=round(load_average, 2),
    )


def _launch(root: Path, count: int, *, has_calls: bool) -> list[str]:
    path = root / "launcher.py"
    path.write_text(_LAUNCHER)
    done = subprocess.run(
        [sys.executable, str(path), str(count), str(has_calls)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LAUNCH_SECONDS,
    )
    return done.stdout.split()


def _settle(containers: int) -> None:
    """Until all containers are there and have booted: what is measured is the stop alone."""
    began = time.monotonic()
    while len(ModalCli(call_seconds=120).container_list()) < containers:
        if time.monotonic() > began + LAUNCH_SECONDS:
            raise TimeoutError(f"{containers} containers did not come up")
        time.sleep(1)
    while psutil.cpu_percent(2.0) > QUIET_PERCENT and time.monotonic() < began + QUIET_SECONDS:
        pass  # containers that boot


def _shell_loop(ids: list[str]) -> float:
    began = time.monotonic()
    for app_id in ids:
        subprocess.run(
            ["sh", "-c", f"{sys.executable} -m modal app stop {app_id} --yes"], check=True
        )
    return time.monotonic() - began


def _warm_up() -> float:
    from composer_tui.cloud import modal_api

    began = time.monotonic()
    within(60, modal_api.live_apps())
    return time.monotonic() - began


if __name__ == "__main__":
    main()
