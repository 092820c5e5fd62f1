"""The helper process as the interface sees it: killed, hung, silent, and still relied upon."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from composer_tui.cloud import link as links
from composer_tui.cloud.link import Link
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.wire import StopProgress
from tests.rehearsal.rehearsal import Rehearsal, rehearsal, wait_until


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with rehearsal(tmp_path_factory.mktemp("plane")) as found:
        yield found


@pytest.fixture
def link(plane: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Link(tmp_path / "runs", plane.connection.environ, tmp_path / "cloud.log")
    yield made
    made.close()


def pid_of(link: Link) -> int:
    assert link.helper_pid is not None
    return link.helper_pid


def test_apps_are_listed_through_the_helper(plane: Rehearsal, link: Link) -> None:
    (app_id,) = plane.start_apps("listed")
    listed = {app.app_id: app for app in link.apps().apps}
    assert listed[app_id].name == "listed"


def test_a_helper_that_was_killed_is_started_again_by_the_next_ask(link: Link) -> None:
    link.apps()
    before = pid_of(link)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: link.helper_pid is None, "the helper is gone")
    assert link.apps().problem is None
    assert pid_of(link) != before


def test_a_helper_of_a_rehearsal_that_was_started_again_is_replaced(
    plane: Rehearsal, tmp_path: Path
) -> None:
    environ = dict(plane.connection.environ())
    link = Link(tmp_path / "runs", lambda: environ, tmp_path / "cloud.log")
    link.apps()
    first = pid_of(link)
    link.apps()
    assert pid_of(link) == first
    environ["MODAL_SERVER_URL"] += "/"
    link.apps()
    assert pid_of(link) != first
    link.close()


def test_an_ask_under_way_when_the_helper_dies_says_so(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.apps()
    os.kill(pid_of(link), signal.SIGSTOP)  # so that the ask is surely under way
    pid = pid_of(link)
    monkeypatch.setattr(links, "APPS_SECONDS", 20.0)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {pid}"])
    with pytest.raises(CloudProblem, match="ended unexpectedly"):
        link.apps()
    killer.wait()


def test_a_helper_that_hangs_is_replaced(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    link.apps()
    hung = pid_of(link)
    os.kill(hung, signal.SIGSTOP)
    monkeypatch.setattr(links, "APPS_SECONDS", 0.5)
    with pytest.raises(CloudProblem, match="no answer"):
        link.apps()
    monkeypatch.setattr(links, "APPS_SECONDS", 30.0)
    assert link.apps().problem is None
    assert pid_of(link) != hung
    wait_until(lambda: not psutil.pid_exists(hung), "the hung helper is gone")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stop_is_carried_through_when_its_helper_dies_or_hangs(
    plane: Rehearsal, link: Link, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_ids = plane.start_apps(f"stopped-{how.name}")
    link.apps()
    monkeypatch.setattr(links, "STOP_SILENCE_SECONDS", 1.0)
    os.kill(pid_of(link), how)
    told: list[StopProgress] = []
    result = link.stop(app_ids, "now", 0.0, told.append)
    assert result.zero
    assert told[-1].stage == "gone"
    assert plane.app(app_ids[0]).app_state == 5, "stopped, as the control plane says itself"


def test_a_log_that_cannot_be_written_keeps_nobody_from_stopping_an_app(
    plane: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "file").write_text("")
    (app_id,) = plane.start_apps("unlogged")
    link = Link(tmp_path / "runs", plane.connection.environ, tmp_path / "file" / "cloud.log")
    assert link.stop([app_id], "now", 0.0, lambda _: None).zero
    link.close()


def test_a_list_that_does_not_come_ends_no_stop_that_is_under_way(
    plane: Rehearsal, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_ids = plane.start_apps("saving")
    link.apps()
    before = pid_of(link)
    os.kill(before, signal.SIGSTOP)
    stop = threading.Thread(target=link.stop, args=(app_ids, "now", 0.0, lambda _: None))
    stop.start()
    wait_until(lambda: link.is_stopping, "the stop has been asked for")
    monkeypatch.setattr(links, "APPS_SECONDS", 0.3)
    with pytest.raises(CloudProblem, match="no answer"):
        link.apps()
    assert link.helper_pid == before
    os.kill(before, signal.SIGCONT)
    stop.join(30)
    assert not stop.is_alive()
    assert link.helper_pid == before


def test_a_stop_that_was_asked_for_outlives_the_program_that_asked(
    plane: Rehearsal, tmp_path: Path
) -> None:
    (app_id,) = plane.start_apps("orphaned-stop")
    code = """
import os, sys, threading
from pathlib import Path
from composer_tui.cloud.link import Link
link = Link(Path(sys.argv[1]) / "runs", dict, Path(sys.argv[1]) / "cloud.log")
def told(progress):
    print("told", flush=True)
    os.kill(os.getpid(), 9)
link.stop([sys.argv[2]], "now", 0.0, told)
"""
    environ = plane.environ(XDG_STATE_HOME=str(tmp_path))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), app_id],
        env=environ,
        capture_output=True,
        timeout=60,
        check=False,
    )
    wait_until(lambda: plane.app(app_id).app_state == 5, "the app is stopped all the same")


def test_no_helper_outlives_its_interface(link: Link) -> None:
    link.apps()
    helper = psutil.Process(pid_of(link))
    link.close()
    helper.wait(20)


def test_a_closed_link_starts_no_helper(link: Link) -> None:
    link.close()
    with pytest.raises(CloudProblem, match="closing"):
        link.apps()


def test_the_token_is_not_in_the_helpers_argv_nor_in_its_log(
    plane: Rehearsal, link: Link, tmp_path: Path
) -> None:
    link.apps()
    argv = " ".join(psutil.Process(pid_of(link)).cmdline())
    assert plane.connection.token_secret not in argv
    assert plane.connection.token_id not in argv
    log = (tmp_path / "cloud.log").read_text()
    assert plane.connection.token_secret not in log


def test_without_a_token_the_answer_is_one_clear_line(tmp_path: Path, plane: Rehearsal) -> None:
    missing = {**plane.connection.environ(), "MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}
    link = Link(tmp_path / "runs", lambda: missing, tmp_path / "cloud.log")
    problem = problem_of_apps(link.apps)
    assert problem.startswith("no_token")
    link.close()


def problem_of_apps(ask: Callable[[], object]) -> str:
    """The problem, whether it is raised or listed."""
    try:
        apps = ask()
    except CloudProblem as error:
        return f"{error.problem.kind} {error.problem.message}"
    found = getattr(apps, "problem", None)
    assert found is not None, apps
    return f"{found.kind} {found.message}"


def test_asks_are_answered_side_by_side(plane: Rehearsal, link: Link) -> None:
    """A stop that takes long holds up no listing."""
    app_ids = plane.start_apps("slow-stop")
    link.apps()
    began = time.monotonic()
    stop = threading.Thread(target=link.stop, args=(app_ids, "now", 0.0, lambda _: None))
    stop.start()
    link.apps()
    assert stop.is_alive() or time.monotonic() - began < 5
    stop.join(30)
    assert not stop.is_alive()
