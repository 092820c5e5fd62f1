"""The rehearsal as a process: found, stopped, killed, and come back."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal import process
from tests.rehearsal.conftest import Script
from tests.rehearsal.rehearsal import Rehearsal, rehearsal, wait_until


def _is_gone(pids: list[int]) -> bool:
    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(runs(pid) for pid in pids)


def test_a_killed_rehearsal_leaves_no_process_and_comes_back_with_its_logs(
    tmp_path: Path, script: Script
) -> None:
    root = tmp_path / "root"
    with rehearsal(root) as plane:
        body = """
subprocess.Popen(["setsid", "sleep", "300"])
print("working", flush=True)
time.sleep(300)
"""
        app_id, _ = script.spawn(plane, body)
        wait_until(lambda: "working" in plane.text(app_id), "the function runs")
        processes = plane.processes()
        assert len(processes) >= 3  # the supervisor, the container and its child
        os.kill(plane.pid, signal.SIGKILL)
        wait_until(lambda: _is_gone([p.pid for p in processes]), "all are gone", 5.0)
        assert process.find(plane.connection_file) is None
    with rehearsal(root) as plane:
        (row,) = plane.json("app", "list")
        assert (row["app_id"], row["state"], row["tasks"]) == (app_id, "stopped", "0")
        assert plane.modal("app", "logs", app_id).stdout == "working\n"
        assert list((root / "containers").glob("*")) == []


def test_a_killed_supervisor_takes_its_container_with_it(plane: Rehearsal, script: Script) -> None:
    app_id, _ = script.spawn(plane, "print('working', os.getpid(), flush=True)\ntime.sleep(300)")
    wait_until(lambda: "working" in plane.text(app_id), "the function runs")
    (supervisor,) = [
        found
        for found in plane.processes()
        if "composer_tui.rehearsal.supervisor" in found.cmdline()
        and int(plane.text(app_id).split()[1]) in {child.pid for child in found.children()}
    ]
    container = supervisor.children()[0].pid
    supervisor.kill()
    wait_until(lambda: _is_gone([container]), "the container is gone", 5.0)
    wait_until(
        lambda: plane.app(app_id).app_state == api_pb2.APP_STATE_STOPPED, "its call has failed"
    )


def test_a_stopped_rehearsal_is_gone_with_its_containers(tmp_path: Path, script: Script) -> None:
    with rehearsal(tmp_path / "root") as plane:
        app_id, _ = script.spawn(plane, "print('working', flush=True)\ntime.sleep(300)")
        wait_until(lambda: "working" in plane.text(app_id), "the function runs")
        pids = [plane.pid, *(found.pid for found in plane.processes())]
        process.stop(plane.connection_file)
        assert _is_gone(pids)
        assert not plane.connection_file.exists()
        process.stop(plane.connection_file)  # nothing more to do


def test_a_deployed_app_is_still_there_after_a_kill(tmp_path: Path, script: Script) -> None:
    text = """
import modal
app = modal.App("lasting")

@app.function()
def double(x):
    return 2 * x
"""
    path, root = script(text), tmp_path / "root"
    with rehearsal(root) as plane:
        assert plane.modal("deploy", str(path)).returncode == 0
        os.kill(plane.pid, signal.SIGKILL)
        wait_until(lambda: process.find(plane.connection_file) is None, "it is gone")
    with rehearsal(root) as plane:
        call = "import modal\nprint(modal.Function.from_name('lasting', 'double').remote(4))"
        assert plane.script(script(call, "call.py")) == "8\n"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"x-modal-token-secret": "as-wrong"}, "not the token of this rehearsal"),
        ({"x-modal-token-id": "ak-wrong"}, "not the token of this rehearsal"),
        ({"x-modal-token-secret": None}, "Token missing"),
        ({"x-modal-token-id": None}, "Token missing"),
    ],
)
def test_without_its_token_nothing_is_answered(
    plane: Rehearsal, headers: dict[str, str | None], words: str
) -> None:
    with pytest.raises(GRPCError, match=words) as caught:
        plane.call("AppList", api_pb2.AppListRequest(), headers)
    assert caught.value.status is Status.UNAUTHENTICATED


def test_the_command_line_tells_a_wrong_token_in_modals_words(plane: Rehearsal) -> None:
    done = plane.modal("app", "list", MODAL_TOKEN_SECRET="as-wrong")  # noqa: S106
    assert done.returncode == 1
    assert "Token validation failed" in done.stderr
    assert plane.connection.token_secret not in done.stderr


def test_it_listens_on_the_loopback_only(plane: Rehearsal) -> None:
    listening = [
        found.laddr
        for found in psutil.Process(plane.pid).net_connections()
        if found.status == "LISTEN"
    ]
    assert listening
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_the_token_is_its_owners_alone(plane: Rehearsal) -> None:
    assert stat.S_IMODE(plane.connection_file.stat().st_mode) == 0o600
    secret = plane.connection.token_secret
    assert secret not in repr(plane.connection)
    for found in [psutil.Process(plane.pid), *plane.processes()]:
        assert secret not in " ".join(found.cmdline())
    assert secret not in (plane.root / "rehearsal.log").read_text()


def test_an_unknown_rpc_is_refused_in_one_line(plane: Rehearsal) -> None:
    with pytest.raises(GRPCError) as caught:
        plane.call("SandboxCreate", api_pb2.SandboxCreateRequest())
    assert caught.value.status is Status.UNIMPLEMENTED
    assert caught.value.message == "the rehearsal does not imitate SandboxCreate"


def test_two_starts_make_one_rehearsal(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    found = []

    def begin() -> None:
        found.append(process.start(tmp_path / "root", file))

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(set(found)) == 1
        assert process.find(file) == found[0]
        with pytest.raises(process.RehearsalFailed, match="another rehearsal runs in"):
            process.start(tmp_path / "root", tmp_path / "other.json")
    finally:
        process.stop(file)
    assert process.find(file) is None


def test_a_process_of_another_time_is_not_taken_for_the_rehearsal(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    record = {
        "url": "http://127.0.0.1:1",
        "token_id": "a",
        "token_secret": "b",
        "pid": os.getpid(),
        "start_time": 1.0,
    }
    file.write_text(json.dumps(record))
    assert process.find(file) is None
    process.stop(file)  # and this process lives on


def test_a_bad_chaos_is_one_line_and_status_2(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "composer_tui.rehearsal", "--root", str(tmp_path / "root")]
    argv += ["--connection", str(tmp_path / "c.json"), "--chaos", "bogus=1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(process.RehearsalFailed, match="'bogus=1' is not one of preempt"):
        process.start(tmp_path / "root", tmp_path / "c.json", chaos="bogus=1")


def test_an_idle_rehearsal_ends(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    process.start(tmp_path / "root", file, idle_exit_seconds=1.0)
    wait_until(lambda: process.find(file) is None, "it has ended", 10.0)
    assert not file.exists()


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = [sys.executable, "-m", "composer_tui.rehearsal", "--root", str(tmp_path / "root")]
        argv += ["--connection", str(tmp_path / "c.json"), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith("composer-tui rehearsal: cannot serve: Address already in use")
    assert len(done.stderr.splitlines()) == 1


def test_starting_and_connecting_import_no_modal() -> None:
    code = (
        "import sys; import composer_tui.rehearsal.process, composer_tui.rehearsal.connection;"
        "print([m for m in sys.modules if m.split('.')[0] in ('modal', 'modal_proto', 'grpclib')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
