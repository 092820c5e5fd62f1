"""Containers: what they see, how they are stopped, and what becomes of their inputs."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from grpclib import GRPCError
from modal_proto import api_pb2

from composer_tui.rehearsal.sandbox import Bind, SandboxRefused, link, unlink
from tests.rehearsal.conftest import Script
from tests.rehearsal.rehearsal import Rehearsal, rehearsal, wait_until

_LOOK = """
import json, os, sys, modal

image = (
    modal.Image.debian_slim()
    .env({"FROM_IMAGE": "1"})
    .add_local_dir(sys.argv[1] if modal.is_local() else "/", "/brought/along")
)
app = modal.App("look", image=image)
volume = modal.Volume.from_name("look", create_if_missing=True)
other = modal.Volume.from_name("other", create_if_missing=True)

@app.function(
    volumes={"/vol/deep": volume, "/data": other.with_mount_options(read_only=True)},
    secrets=[modal.Secret.from_dict({"FROM_SECRET": "xyzzy"})],
    serialized=True,
)
def look():
    import json, os
    import modal

    try:
        open("/data/no", "w")
        wrote = True
    except OSError:
        wrote = False
    open("/vol/deep/yes", "w").write("kept")
    return {
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "brought": open("/brought/along/note.txt").read(),
        "wrote_read_only": wrote,
        "is_local": modal.is_local(),
        "usr": os.path.isdir("/usr/bin"),
    }

if modal.is_local():
    with app.run():
        print(json.dumps(look.remote()))
"""


@pytest.fixture(scope="module")
def seen(plane: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("look")
    (folder / "note.txt").write_text("from the client")
    path = folder / "look.py"
    path.write_text(_LOOK)
    extra = {"COMPOSER_RUNS_DIR": "/x", "MODAL_PROFILE": "", "HF_TOKEN": "user's own"}
    found: dict[str, Any] = json.loads(plane.script(path, str(folder), **extra).splitlines()[-1])
    return found


def test_a_container_has_its_mounts_at_their_paths(seen: dict[str, Any]) -> None:
    assert seen["cwd"] == "/root"
    assert seen["brought"] == "from the client"
    assert seen["wrote_read_only"] is False
    assert seen["usr"] is True
    assert not seen["is_local"]
    assert not Path("/brought").exists()
    assert not Path("/vol/deep").exists()


def test_a_container_has_its_secrets_and_nothing_of_the_client(
    seen: dict[str, Any], plane: Rehearsal
) -> None:
    environ = seen["environ"]
    assert environ["FROM_SECRET"] == "xyzzy"  # noqa: S105  # a word of the test's own
    assert environ["FROM_IMAGE"] == "1"
    assert environ["HOME"] == "/root"
    assert environ["MODAL_IS_REMOTE"] == "1"
    theirs = {"MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_PROFILE", "HF_TOKEN"}
    assert not theirs & environ.keys()
    assert not [name for name in environ if name.startswith("COMPOSER_")]
    assert plane.connection.token_secret not in environ.values()


def test_a_container_speaks_only_with_its_own_secret(plane: Rehearsal) -> None:
    headers: dict[str, str | None] = {
        "x-composer-task": "ta-" + "0" * 22,
        "x-composer-task-secret": "guess",
    }
    with pytest.raises(GRPCError, match="Unknown container"):
        plane.call("AppList", api_pb2.AppListRequest(), headers)


def test_a_stopped_container_hands_its_input_to_another(plane: Rehearsal, script: Script) -> None:
    body = "print('working', os.environ['MODAL_TASK_ID'], flush=True)\ntime.sleep(300)"
    app_id, _ = script.spawn(plane, body)
    wait_until(lambda: "working" in plane.text(app_id), "the function runs")
    (first,) = plane.json("container", "list", "--app-id", app_id)
    done = plane.modal("container", "stop", "-y", first["container_id"])
    assert done.returncode == 0, done.stderr
    wait_until(lambda: plane.text(app_id).count("working") == 2, "another container has it")
    (second,) = plane.tasks(app_id)
    assert second.task_id != first["container_id"]
    logs = plane.modal("container", "logs", first["container_id"])
    assert logs.stdout.splitlines()[0] == f"working {first['container_id']}"
    again = plane.modal("container", "stop", "-y", first["container_id"])
    assert "already stopped" in again.stderr
    plane.call("AppStop", api_pb2.AppStopRequest(app_id=app_id))


def test_a_cancelled_call_can_take_its_container_with_it(plane: Rehearsal, script: Script) -> None:
    app_id, call_id = script.spawn(plane, "print('working', flush=True)\ntime.sleep(300)")
    wait_until(lambda: "working" in plane.text(app_id), "the function runs")
    request = api_pb2.FunctionCallCancelRequest(function_call_id=call_id, terminate_containers=True)
    plane.call("FunctionCallCancel", request)
    wait_until(lambda: not plane.tasks(app_id), "the container is gone")
    outputs = plane.call(
        "FunctionGetOutputs", api_pb2.FunctionGetOutputsRequest(function_call_id=call_id)
    ).outputs
    assert [output.result.status for output in outputs] == [
        api_pb2.GenericResult.GENERIC_STATUS_TERMINATED
    ]


def test_nothing_that_a_container_started_outlives_it(plane: Rehearsal, script: Script) -> None:
    body = """
subprocess.Popen(["setsid", "sleep", "54321"])
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("working", flush=True)
time.sleep(300)
"""
    app_id, _ = script.spawn(plane, body)
    wait_until(lambda: "working" in plane.text(app_id), "the function runs")
    sleeper = wait_until(
        lambda: [p for p in plane.processes() if "54321" in p.cmdline()], "the child runs"
    )
    plane.call("AppStop", api_pb2.AppStopRequest(app_id=app_id))
    wait_until(lambda: not plane.tasks(app_id), "the container is gone")
    assert not psutil.pid_exists(sleeper[0].pid)


def test_a_container_that_falls_silent_is_killed_and_its_input_starts_anew(
    tmp_path: Path, script: Script
) -> None:
    with rehearsal(
        tmp_path / "root", container_heartbeat_seconds=0.3, container_expiry_seconds=1.2
    ) as plane:
        app_id, _ = script.spawn(
            plane, "print('working', flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)"
        )
        wait_until(lambda: plane.text(app_id).count("working") == 2, "another container has it")
        assert "has not been heard of" in plane.text(app_id)


def test_an_idle_container_leaves_after_its_window(plane: Rehearsal, script: Script) -> None:
    text = """
import modal, time
app = modal.App("idle")

@app.function(serialized=True, scaledown_window=2)
def f():
    pass

@app.function(serialized=True, min_containers=1, scaledown_window=2)
def warm():
    pass

with app.run():
    f.remote()
    deadline = time.time() + 20
    while f.get_current_stats().num_total_runners and time.time() < deadline:
        time.sleep(0.1)
    print(f.get_current_stats().num_total_runners, warm.get_current_stats().num_total_runners)
"""
    assert plane.script(script(text)) == "0 1\n"


def test_single_use_containers_come_one_after_the_other(plane: Rehearsal, script: Script) -> None:
    text = """
import modal
app = modal.App("single")
volume = modal.Volume.from_name("single", create_if_missing=True)

@app.function(
    serialized=True,
    single_use_containers=True,
    max_containers=1,
    scaledown_window=2,
    volumes={"/keep": volume},
)
def f(x):
    import os
    import pathlib
    pathlib.Path(f"/keep/{x}").touch()
    return os.environ["MODAL_TASK_ID"], sorted(os.listdir("/keep"))

with app.run():
    calls = [f.spawn(x) for x in range(2)]
    (one, first), (other, second) = (call.get() for call in calls)
    print(one != other, first, second)
"""
    # A container's exit commits what it wrote, before the next one starts.
    assert plane.script(script(text)) == "True ['0'] ['0', '1']\n"


def test_an_import_that_fails_is_told_with_its_lines(plane: Rehearsal, script: Script) -> None:
    text = """
import modal
app = modal.App("broken", image=modal.Image.debian_slim().uv_pip_install("no-such-package-xyz"))
if not modal.is_local():
    import no_such_package_xyz

@app.function()
def f():
    pass
"""
    done = plane.modal("run", str(script(text)))
    assert done.returncode == 1
    assert "import no_such_package_xyz" in done.stdout + done.stderr
    assert "the image installs no-such-package-xyz" in done.stdout


def test_exec_in_a_container_is_refused_in_one_line(plane: Rehearsal) -> None:
    with pytest.raises(GRPCError, match="the rehearsal does not imitate ContainerExec'"):
        plane.call("ContainerExec", api_pb2.ContainerExecRequest(task_id="ta-x"))


def test_without_namespaces_mounts_are_links_that_are_taken_away(
    tmp_path: Path, script: Script
) -> None:
    with rehearsal(tmp_path / "root", isolated=0) as plane:
        data = tmp_path / "data"
        text = f"""
import modal
app = modal.App("links")
volume = modal.Volume.from_name("links", create_if_missing=True)

@app.function(serialized=True, volumes={{"{data}": volume}})
def f():
    import os
    open("{data}/file", "w").write("x")
    volume.commit()
    return os.path.islink("{data}"), os.getcwd() == os.environ["HOME"]

@app.function(serialized=True, volumes={{"/usr/bin": volume}})
def taken():
    pass

with app.run():
    print(f.remote())
    try:
        taken.remote()
    except modal.exception.RemoteError as error:
        print(error)
"""
        first, second = plane.script(script(text)).splitlines()
        assert first == "(True, True)"
        assert second.startswith("the container could not be started: /usr/bin exists")
        wait_until(lambda: not data.is_symlink(), "the link is taken away")
        assert (plane.root / "volumes" / "links" / "file").read_text() == "x"


def test_links_are_made_all_or_none(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    free = tmp_path / "free"
    with pytest.raises(SandboxRefused):
        link([Bind(str(tmp_path), str(free)), Bind(str(tmp_path), str(there))])
    assert not free.is_symlink()
    assert there.is_file()
    made = link([Bind(str(tmp_path), str(free))])
    assert made == [str(free)]
    unlink([*made, str(there)])
    assert not free.is_symlink()
    assert there.is_file()
