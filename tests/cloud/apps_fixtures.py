"""Apps to list and to stop: small ones in a rehearsal, and the kill switch in a process of its own.

Modal's client is bound to a process and its environment, so what uses it runs in a child.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from modal_proto import api_pb2

from composer_tui.rehearsal.connection import Connection
from tests.rehearsal import warm
from tests.rehearsal.rehearsal import Rehearsal, rehearsal, wait_until

SECONDS = 50.0
_IDLE, _RUNNING = 8, 8  # as many as the tests take
ROOT = Path(__file__).parents[2]
FAST = {"detached_linger_seconds": 0.3, "stop_grace_seconds": 0.2}

# What a launcher does, for as many apps as it is told: detached, tagged, one call each.
_LAUNCHER = """
import json, sys
import modal

def nap(name, steps):
    import json, time
    import modal
    control = modal.Dict.from_name("composer-control", create_if_missing=True)
    def beat(state, step, saved):
        control[f"{name}/beat"] = json.dumps({"time": time.time(), "run_id": name, "state": state,
            "step": step, "total_steps": 900, "last_step_at": time.time(), "checkpoint_step": saved,
            "attempt_started_at": time.time() - 60})
    if not steps:
        time.sleep(600)
    for step in range(1, steps):
        beat("running", step, 0)
        ask = json.loads(control.get(f"{name}/ask", "{}"))
        if ask.get("stop"):
            beat("ended", step, step)
            time.sleep(600)
        time.sleep(0.1)

order = json.loads(sys.argv[1])
for name in order["names"]:
    app = modal.App(name, tags=order["tags"])
    gpu, cpu, memory = order.get("gpu"), 4.0, 16384
    function = app.function(serialized=True, gpu=gpu, cpu=cpu, memory=memory, timeout=600)(nap)
    with app.run(detach=True):
        call = function.spawn(name, order.get("steps", 0)) if order.get("calls", True) else None
    print(app.app_id, call.object_id if call else "", flush=True)
"""

# The kill switch with limits that a test can wait for. One JSON line a progress, and the result.
_STOPPER = """
import json, os, sys, threading, time
from pathlib import Path
import msgspec
order = json.loads(sys.argv[1])
if order.get("wedge"):
    # Modal's own event loop stands still, as it does when something blocks in it.
    from modal._utils.async_utils import synchronizer
    async def block():
        time.sleep(3600)
    blocked = synchronizer.create_blocking(block)
    threading.Thread(target=blocked, daemon=True).start()
    time.sleep(0.3)
from composer_tui.cloud import kill
from composer_tui.cloud.kill_rules import Limits
alarms = []
def show(progress):
    if progress.stage == "alarm" and progress.containers:
        alarms.append(progress)
    sys.stdout.buffer.write(msgspec.json.encode(progress) + b"\\n")
    sys.stdout.flush()
limits = Limits(**order["limits"])
clock = kill.Clock(wall=lambda: time.time() + order.get("ahead", 0))
kwargs = {"limits": limits, "audit_path": Path(order["audit"]), "clock": clock}
if order.get("alarms"):
    kwargs["give_up"] = lambda: len(alarms) >= order["alarms"]
if order.get("emergency"):
    result = kill.emergency_stop(order["ids"], order["environ"], show, **kwargs)
    assert "modal" not in sys.modules
else:
    result = kill.stop_apps(order["ids"], order["mode"], order["grace"], show, **kwargs)
sys.stdout.buffer.write(b"RESULT " + msgspec.json.encode(result) + b"\\n")
sys.stdout.flush()
os._exit(0)  # modal waits for its loop at the end of a process, and that may stand still
"""


class Stopped(NamedTuple):
    """What the kill switch told, in order, and what it returned."""

    told: list[dict[str, Any]]
    result: dict[str, Any]

    def stages(self, app_id: str) -> list[str]:
        stages = [told["stage"] for told in self.told if told["app_id"] == app_id]
        return [stage for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]

    @property
    def zero(self) -> bool:
        return all(app["stage"] == "gone" for app in self.result["apps"])

    def app(self, app_id: str) -> dict[str, Any]:
        return next(app for app in self.result["apps"] if app["app_id"] == app_id)


class Napping:
    """A rehearsal with apps in it that do nothing but last, and what stops them."""

    def __init__(self, plane: Rehearsal, folder: Path) -> None:
        self.plane, self.folder = plane, folder
        self.calls: dict[str, str] = {}  # app id -> call id
        self.running: list[str] = []  # apps that are there for the taking, with a container each,
        self.idle: list[str] = []  # and without

    @property
    def audit(self) -> Path:
        return self.folder / "audit.jsonl"

    def launch(self, *names: str, running: bool = True, **order: Any) -> list[str]:
        """Apps of these names, each with a container unless they make no calls; their ids."""
        asked = {"names": names, "tags": {}, **order}
        path = self.folder / "launcher.py"
        path.write_text(_LAUNCHER)
        lines = [line.split() for line in self.plane.script(path, json.dumps(asked)).splitlines()]
        ids = [line[0] for line in lines]
        self.calls |= {line[0]: line[1] for line in lines if line[1:]}
        if running and asked.get("calls", True):
            for app_id in ids:
                wait_until(partial(self.plane.tasks, app_id), f"{app_id} has no container")
        return ids

    def take(self, number: int = 1) -> list[str]:
        """Apps with a container each, which nobody else has."""
        return [self.running.pop() for _ in range(number)]

    def take_idle(self, number: int = 1) -> list[str]:
        """Apps without containers, which nobody else has."""
        return [self.idle.pop() for _ in range(number)]

    def stop(self, ids: Sequence[str], mode: str = "now", **order: Any) -> Stopped:
        """Stops them in a process of its own, and waits for it."""
        if order.get("emergency"):
            output, errors = self.begin_stop(ids, mode, **order).communicate(timeout=SECONDS)
        else:
            path = self.folder / "stopper.py"
            path.write_text(_STOPPER)
            asked, environ = self._asked(ids, mode, **order)
            done = warm.run([str(path), asked], environ, ROOT, SECONDS)
            output, errors = done.stdout, done.stderr
        lines = output.splitlines()
        assert lines, errors
        told = [json.loads(line) for line in lines if not line.startswith("RESULT ")]
        return Stopped(told, json.loads(lines[-1].removeprefix("RESULT ")))

    def begin_stop(
        self, ids: Sequence[str], mode: str = "now", **order: Any
    ) -> "subprocess.Popen[str]":
        asked, environ = self._asked(ids, mode, **order)
        return subprocess.Popen(
            [sys.executable, "-c", _STOPPER, asked],
            env=environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _asked(
        self,
        ids: Sequence[str],
        mode: str,
        grace: float = 0.0,
        environ: Mapping[str, str] | None = None,
        **order: Any,
    ) -> tuple[str, dict[str, str]]:
        """The order and the environment of a program that stops apps."""
        account = dict(self.plane.connection.environ() if environ is None else environ)
        asked = {
            "ids": list(ids),
            "mode": mode,
            "grace": grace,
            "audit": str(self.audit),
            "environ": account,
            "limits": {},
            **order,
        }
        ours = {} if order.get("emergency") else account
        return json.dumps(asked), {**os.environ, **ours}

    def composer(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """``composer-tui`` with this rehearsal as the user's own account."""
        return subprocess.run(
            [sys.executable, "-m", "composer_tui", *arguments],
            env=self.environ(**environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def environ(self, **extra: str) -> dict[str, str]:
        """Of a user whose account this is, and whose files are in a folder of their own."""
        places = {
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "COMPOSER_RUNS_DIR": str(self.folder / "runs"),
        }
        return {**self.plane.environ(), **places, **extra}

    def is_live(self, app_id: str) -> bool:
        """As the control plane itself has it."""
        return self.plane.app(app_id).app_state != api_pb2.APP_STATE_STOPPED

    def end(self, *ids: str) -> None:
        """Without the kill switch: what a test leaves behind."""
        for app_id in ids:
            self.plane.call("AppStop", api_pb2.AppStopRequest(app_id=app_id))

    def audit_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@contextmanager
def napping(root: Path, chaos: str = "", **settings: float) -> Iterator[Napping]:
    """A rehearsal of its own, for what harms it."""
    folder = root / "user"
    folder.mkdir(parents=True)
    with rehearsal(root / "plane", chaos, **{**FAST, **settings}) as plane:
        yield Napping(plane, folder)


@pytest.fixture(scope="session")
def naps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Napping]:
    """One healthy rehearsal for all who do not harm it, with apps that are launched once."""
    root = tmp_path_factory.mktemp("naps")
    with napping(root) as shared:
        idle = [f"idle-{number}" for number in range(_IDLE)]
        shared.idle = shared.launch(*idle, calls=False, gpu="L4")
        running = [f"running-{number}" for number in range(_RUNNING)]
        shared.running = shared.launch(*running, gpu="L4")
        yield shared


@pytest.fixture
def nap(naps: Napping, tmp_path: Path) -> Napping:
    """The healthy rehearsal, with a user who is new to it."""
    new = Napping(naps.plane, tmp_path)
    new.calls, new.running, new.idle = naps.calls, naps.running, naps.idle
    return new


def nowhere() -> dict[str, str]:
    """An account that nothing answers for."""
    return dict(Connection("http://127.0.0.1:9", "ak-nobody", "as-nobody").environ())
