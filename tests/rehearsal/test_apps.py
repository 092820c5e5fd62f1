"""How apps come, are listed, and end."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from grpclib import GRPCError
from hypothesis import given
from hypothesis import strategies as st
from modal_proto import api_pb2

from composer_tui.rehearsal.limits import GPU_NAMES, objections
from tests.rehearsal.conftest import Script
from tests.rehearsal.rehearsal import MODAL, Rehearsal, rehearsal, wait_until

_EPHEMERAL, _DETACHED = api_pb2.APP_STATE_EPHEMERAL, api_pb2.APP_STATE_DETACHED
_STOPPED, _DISCONNECTED = api_pb2.APP_STATE_STOPPED, api_pb2.APP_STATE_DETACHED_DISCONNECTED

_SLEEPER = """
import modal, sys, time

app = modal.App("sleeper", tags={"composer.run": "r-7"})

@app.function(timeout=600)
def sleep(seconds):
    print("sleeping", flush=True)
    time.sleep(seconds)
    return seconds

@app.local_entrypoint()
def main(seconds: float = 300.0):
    print("slept", sleep.remote(seconds))
"""

_SPAWN = """
import sys
from work import app, sleep

with app.run(detach=True):
    print(app.app_id, sleep.spawn(float(sys.argv[1])).object_id)
"""

_EMPTY = """
import sys
import modal
from concurrent.futures import ThreadPoolExecutor

def start(number):
    app = modal.App(f"empty-{number}")
    with app.run(detach=True):
        return app.app_id

with ThreadPoolExecutor(10) as pool:
    ids = list(pool.map(start, range(int(sys.argv[1]))))

from work import app, sleep

with app.run(detach=True):
    sleep.spawn(300.0)
    print(app.app_id, *ids)
"""

_STOP = """
import asyncio, sys, time
import modal

async def main():
    begin = time.monotonic()
    apps = [await modal.App.lookup.aio(app_id) for app_id in sys.argv[1:]]
    looked_up = time.monotonic()
    await asyncio.gather(*(app.stop.aio() for app in apps))
    print(time.monotonic() - looked_up)

asyncio.run(main())
"""


def _spawn(plane: Rehearsal, script: Script, seconds: float) -> tuple[str, str]:
    """A detached app whose function sleeps; its id and the call's."""
    script(_SLEEPER)
    app_id, call_id = plane.script(script(_SPAWN, "spawn.py"), str(seconds)).split()
    return app_id, call_id


def test_an_attached_run_prints_its_logs_and_ends_its_app(plane: Rehearsal, script: Script) -> None:
    done = plane.modal("run", str(script(_SLEEPER)), "--seconds", "0")
    assert done.returncode == 0, done.stderr
    assert "sleeping" in done.stdout
    assert "slept 0.0" in done.stdout
    found = re.search(r"ap-\w{22}", done.stdout)
    assert found is not None
    wait_until(lambda: plane.app(found[0]).app_state == _STOPPED, "the app is stopped")
    assert plane.tasks(found[0]) == []


def test_a_detached_app_ends_soon_after_its_call(plane: Rehearsal, script: Script) -> None:
    app_id, call_id = _spawn(plane, script, 0.5)
    assert plane.app(app_id).app_state == _DISCONNECTED
    wait_until(lambda: plane.app(app_id).app_state == _STOPPED, "the app is stopped")
    info = plane.call(
        "FunctionCallGetInfo", api_pb2.FunctionCallGetInfoRequest(function_call_id=call_id)
    ).info
    assert info.succeeded_inputs.total == 1
    assert plane.app(app_id).stopped_by == ""


def test_a_stopped_app_ends_its_calls_and_its_containers(plane: Rehearsal, script: Script) -> None:
    app_id, call_id = _spawn(plane, script, 300)
    wait_until(lambda: "sleeping" in plane.text(app_id), "the function runs")
    (listed,) = [row for row in plane.json("app", "list") if row["app_id"] == app_id]
    assert (listed["state"], listed["tasks"]) == ("ephemeral (detached)", "1")
    (container,) = plane.tasks(app_id)
    assert container.app_description == "sleeper"
    begin = time.monotonic()
    done = plane.modal("app", "stop", "-y", app_id)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: plane.app(app_id).app_state == _STOPPED, "the app is stopped")
    assert time.monotonic() - begin < 30
    assert plane.tasks(app_id) == []
    outputs = plane.call(
        "FunctionGetOutputs", api_pb2.FunctionGetOutputsRequest(function_call_id=call_id)
    ).outputs
    assert [output.result.exception for output in outputs] == ["The app was stopped."]
    again = plane.modal("app", "stop", "-y", app_id)
    assert again.returncode == 1
    assert "already stopped" in again.stderr


def test_a_client_that_is_interrupted_ends_its_app(plane: Rehearsal, script: Script) -> None:
    path = script(_SLEEPER)
    client = subprocess.Popen(
        [*MODAL, "run", str(path)],
        env=plane.environ(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert client.stdout is not None
    text = ""
    for line in client.stdout:
        text += line
        if "sleeping" in line:
            os.kill(client.pid, signal.SIGINT)
            break
    text += client.stdout.read()
    assert client.wait(20) == 0
    found = re.search(r"ap-\w{22}", text)
    assert found is not None
    wait_until(lambda: plane.app(found[0]).app_state == _STOPPED, "the app is stopped")


def test_a_detached_run_outlives_its_killed_client(plane: Rehearsal, script: Script) -> None:
    client = subprocess.Popen(
        [*MODAL, "run", "--detach", f"{script(_SLEEPER)}::sleep", "--seconds", "300"],
        env=plane.environ(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    text = ""
    while "sleeping" not in text:
        text += client.stdout.readline()
    client.kill()
    client.wait()
    client.stdout.close()
    found = re.search(r"ap-\w{22}", text)
    assert found is not None
    assert plane.app(found[0]).app_state in (_DETACHED, _DISCONNECTED)  # it fell silent, too
    assert len(plane.tasks(found[0])) == 1
    plane.call("AppStop", api_pb2.AppStopRequest(app_id=found[0]))
    wait_until(lambda: plane.app(found[0]).app_state == _STOPPED, "the app is stopped")


def test_a_client_that_falls_silent_is_taken_for_gone(tmp_path: Path, script: Script) -> None:
    with rehearsal(tmp_path / "root", attached_expiry_seconds=1.0) as plane:
        attached = plane.call("AppCreate", api_pb2.AppCreateRequest(app_state=_EPHEMERAL)).app_id
        detached = plane.call("AppCreate", api_pb2.AppCreateRequest(app_state=_DETACHED)).app_id
        beating = plane.call("AppCreate", api_pb2.AppCreateRequest(app_state=_EPHEMERAL)).app_id

        def both_ended() -> bool:
            plane.call("AppHeartbeat", api_pb2.AppHeartbeatRequest(app_id=beating))
            states = [plane.app(app_id).app_state for app_id in (attached, detached)]
            return states == [_STOPPED, _DISCONNECTED]

        wait_until(both_ended, "the silent clients are gone")
        assert plane.app(beating).app_state == _EPHEMERAL


def test_a_hundred_live_apps_stop_within_seconds(plane: Rehearsal, script: Script) -> None:
    script(_SLEEPER)
    live, *empty = plane.script(script(_EMPTY, "empty.py"), "100").split()
    ids = [live, *empty]
    wait_until(lambda: "sleeping" in plane.text(live), "the function runs")
    assert {plane.app(app_id).app_state for app_id in ids[::20]} == {_DISCONNECTED}
    begin = time.monotonic()
    accepted_seconds = float(plane.script(script(_STOP, "stop.py"), *ids))
    assert accepted_seconds < 10

    def all_stopped() -> bool:
        listed = plane.call("AppList", api_pb2.AppListRequest(environment_name="main")).apps
        return all(app.state == _STOPPED for app in listed if app.app_id in ids)

    wait_until(all_stopped, "all apps are stopped")
    assert time.monotonic() - begin < 60
    assert plane.tasks(live) == []


def test_a_deployed_app_is_found_by_name_called_and_deployed_again(
    plane: Rehearsal, script: Script
) -> None:
    path = script(_SLEEPER)
    for version in (1, 2):
        done = plane.modal("deploy", str(path), "--name", "lasting")
        assert done.returncode == 0, done.stderr
        name = api_pb2.AppGetByDeploymentNameRequest(name="lasting")
        app_id = plane.call("AppGetByDeploymentName", name).app_id
        request = api_pb2.AppDeploymentHistoryRequest(app_id=app_id)
        history = plane.call("AppDeploymentHistory", request).app_deployment_histories
        assert history[0].version == len(history) == version
    call = """
import modal
print(modal.Function.from_name("lasting", "sleep").remote(0.0))
print(modal.App.lookup("lasting").get_tags())
"""
    out = plane.script(script(call, "call.py"))
    assert out.splitlines() == ["0.0", "{'composer.run': 'r-7'}"]
    refused = plane.modal("app", "rollback", "lasting", "v1")
    assert refused.returncode == 1
    assert refused.stderr == "Error: the rehearsal does not imitate AppRollback\n"
    plane.call("AppStop", api_pb2.AppStopRequest(app_id=app_id))


_REFUSED = {
    'gpu="BOGUS"': "unknown GPU type 'BOGUS'",
    'gpu="H100:9"': "1 to 8 GPUs of type H100, not 9",
    'gpu="A10:5"': "1 to 4 GPUs of type A10, not 5",
    'gpu=["H100", "H1000"]': "unknown GPU type 'H1000'",
    'gpu="H100", nonpreemptible=True': "nonpreemptible=True is not available",
    "timeout=86401": "timeout must be from 1 to 86400 seconds",
}


def test_what_modal_would_refuse_is_refused(plane: Rehearsal, script: Script) -> None:
    text = """
import modal

def attempt(**options):
    app = modal.App("refused")

    @app.function(serialized=True, **options)
    def f():
        pass

    try:
        with app.run():
            print("accepted")
    except modal.exception.InvalidError as error:
        print(error)

"""
    text += "".join(f"attempt({options})\n" for options in _REFUSED)
    answers = plane.script(script(text)).splitlines()
    assert len(answers) == len(_REFUSED)
    for answer, words in zip(answers, _REFUSED.values(), strict=True):
        assert words in answer


def test_a_web_function_is_refused_in_one_line(plane: Rehearsal, script: Script) -> None:
    text = """
import modal
app = modal.App("web")

@app.function()
@modal.web_server(8000)
def f():
    pass
"""
    done = plane.modal("deploy", str(script(text)))
    assert done.returncode != 0
    assert "the rehearsal does not imitate web functions" in done.stdout + done.stderr


def test_app_info_tells_the_gpu(plane: Rehearsal, script: Script) -> None:
    text = """
import modal
app = modal.App("gpus")

@app.function(gpu=["H100:2", "A100-80GB"], serialized=True, timeout=90)
def f():
    pass

with app.run():
    info = modal.App.lookup(app.app_id).info()
    function = modal.Function.from_id(info.functions["f"]).info()
    print(info.lifecycle.state.value, function.gpus, function.timeout)
"""
    out = plane.script(script(text))
    assert out == "ephemeral [('H100', 2), ('A100-80GB', 1)] 90\n"


@given(
    st.sampled_from(sorted(GPU_NAMES)),
    st.integers(0, 12),
    st.integers(0, 100_000),
    st.booleans(),
)
def test_a_function_is_refused_exactly_when_a_rule_is_broken(
    name: str, count: int, timeout: int, nonpreemptible: bool
) -> None:
    spec = api_pb2.Function(timeout_secs=timeout)
    spec.resources.gpu_config.gpu_type = name
    spec.resources.gpu_config.count = count
    spec.scheduler_placement.nonpreemptible = nonpreemptible
    most = 4 if name.startswith("A10") and not name.startswith("A100") else 8
    is_fine = 1 <= count <= most and 1 <= timeout <= 86400 and not nonpreemptible
    assert bool(objections(spec)) is not is_fine


def test_an_unknown_app_is_not_found(plane: Rehearsal) -> None:
    for rpc, kind in (
        ("AppStop", api_pb2.AppStopRequest),
        ("AppHeartbeat", api_pb2.AppHeartbeatRequest),
        ("AppGetLifecycle", api_pb2.AppGetLifecycleRequest),
    ):
        with pytest.raises(GRPCError, match="App ap-nobody not found"):
            plane.call(rpc, kind(app_id="ap-nobody"))


def test_a_stopped_app_takes_no_more_calls(plane: Rehearsal, script: Script) -> None:
    text = """
import modal
app = modal.App("late")

@app.function(serialized=True)
def f():
    pass

with app.run():
    app.stop()
    try:
        f.remote()
    except modal.exception.Error as error:
        print(error)
"""
    assert "is stopped" in plane.script(script(text))
