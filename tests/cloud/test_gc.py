"""`stop` and `gc` from a shell: who is asked, who is refused, and what the exit status means."""

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from composer_engine.contract import TAG_LEASE_UNTIL, TAG_RUN
from composer_engine.protocol import RunFinished, encode
from composer_tui.rehearsal.connection import Connection
from composer_tui.runs.store import RunStore
from tests.cloud.apps_fixtures import Napping
from tests.cloud.test_apps import a_cloud_run


def type_at_a_terminal(nap: Napping, arguments: Sequence[str], typed: str) -> tuple[int, str]:
    """The exit status, and what the terminal showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "composer_tui", *arguments],
        env=nap.environ(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # it has ended
                break
            if typed and b"to go on: " in shown:
                os.write(ours, typed.encode())
                typed = ""
    finally:
        os.close(ours)
    return process.wait(timeout=30), shown.decode()


def expired(name: str) -> dict[str, str]:
    return {TAG_RUN: name, TAG_LEASE_UNTIL: f"{time.time() - 3600:.0f}"}


def test_gc_stops_expired_leases_and_nothing_else(nap: Napping) -> None:
    silent = nap.composer("gc")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    (old,) = nap.launch("old", tags=expired("old"))
    (young,) = nap.launch("young", tags={TAG_RUN: "young"}, calls=False)
    (foreign,) = nap.take_idle()
    assert nap.composer("gc", "--yes", COMPOSER_READONLY="1").returncode == 2
    done = nap.composer("gc", "--yes")
    assert done.returncode == 0, done.stderr
    assert old in done.stdout
    assert "0 containers left" in done.stdout
    assert "volumes stay" in done.stdout
    assert not nap.is_live(old)
    assert nap.is_live(young)
    assert nap.is_live(foreign)
    nap.end(young, foreign)


def test_a_terminal_is_asked_for_the_number_or_the_word_and_else_stops_nothing(
    nap: Napping,
) -> None:
    ids = nap.take_idle(2)
    status, shown = type_at_a_terminal(nap, ["stop", "--all"], "2\n")
    assert status == 2
    assert "type STOP" in shown
    assert "nothing was stopped" in shown
    assert all(map(nap.is_live, ids))
    status, shown = type_at_a_terminal(nap, ["stop", *ids], "2\n")
    assert status == 0, shown
    assert not any(map(nap.is_live, ids))


def test_json_is_no_consent(nap: Napping) -> None:
    (app_id,) = nap.launch("old", tags=expired("old"))
    for arguments in (["stop", "--all", "--json"], ["gc", "--json"]):
        done = nap.composer(*arguments)
        assert done.returncode == 2, arguments
        assert "--yes" in done.stderr
    orphans = nap.composer("stop", "--orphans", "--yes", "--json")
    assert orphans.returncode == 0, orphans.stderr
    answer = json.loads(orphans.stdout)
    assert answer["zero"]
    (app,) = answer["apps"]
    assert (app["app_id"], app["stage"]) == (app_id, "gone")
    assert app["final_usd"]
    assert "volumes stay" in answer["still_costs"]


def test_runs_are_stopped_by_their_names_wherever_they_are(nap: Napping) -> None:
    (app_id,) = nap.take()
    where = {"connection": str(nap.plane.connection_file), "call_id": nap.calls[app_id]}
    rehearsed = a_cloud_run(nap, app_id, "running", **where)
    nowhere = a_cloud_run(
        nap, "ap-" + "1" * 22, "gone", connection=str(nap.folder / "no-connection.json")
    )
    config = rehearsed.read_record().config
    local = RunStore(nap.folder / "runs").create(config, "local", time.time() - 3600)
    local.events_path.write_bytes(encode(RunFinished(seq=0, time=time.time(), steps=1)))
    names = [rehearsed.run_id, nowhere.run_id, local.run_id]
    # The user's own account is another one, which cannot even be reached.
    other = Connection("http://127.0.0.1:9", "ak-nobody", "as-nobody").environ()
    done = nap.composer("stop", *names, "--now", "--yes", "--json", **other)
    assert done.returncode == 0, done.stderr + done.stdout
    assert not nap.plane.tasks(app_id)
    answer = json.loads(done.stdout)
    assert answer["zero"]
    assert [app["app_id"] for app in answer["apps"]] == [app_id]
    assert [run["run_id"] for run in answer["runs"]] == [local.run_id]
    assert answer["already_over"] == [nowhere.run_id]
    alone = nap.composer("stop", local.run_id)  # one run of this machine needs no --yes
    assert alone.returncode == 0
    assert "was already over" in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to stop"),
        (["--all", "x"], "say what to stop"),
        (["x", "--now", "--graceful", "5"], "choose one"),
        (["never-heard-of", "--yes"], "neither a run nor an app"),
        (["ap-" + "0" * 22, "--yes"], "no app"),
    ],
)
def test_what_cannot_be_stopped_is_said_in_one_line(
    nap: Napping, arguments: list[str], said: str
) -> None:
    done = nap.composer("stop", *arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
