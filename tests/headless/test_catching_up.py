"""How current a run on Modal is that nobody follows, and what is said while somebody does."""

import json
import os
import socket
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from composer_engine.protocol import RunFailed, RunFinished, StepCompleted
from composer_tui.cloud.ledger import CloudRef, read_ref, write_ref
from composer_tui.cloud.notebook import Notebook, only_follower
from composer_tui.headless.catching_up import catch_up, standing_of
from composer_tui.headless.listing import print_run, print_runs
from composer_tui.headless.notes import Closing
from composer_tui.headless.watch import tell_to_end, watch_once
from composer_tui.runners.cloud import CloudRun
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.journal import append
from composer_tui.runs.state import RunState, advance
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import events, modal_plane, small_config, store, talking_run
from tests.rehearsal.rehearsal import Rehearsal, wait_until
from tests.runs import lines, numbered, started, step

__all__ = ["modal_plane", "store"]

QUEUED = b'{"event":"phase_changed","seq":0,"time":1.0,"phase":"queued"}\n'
FAILED = b'{"event":"run_failed","seq":1,"time":2.0,"kind":"killed","message":"m"}\n'


def live_run(store: RunStore, connection: str = "") -> RunFolder:
    """A run on Modal of which an hour ago something was heard."""
    folder = store.create(small_config(), "modal", time.time())
    ref = CloudRef(app_name="a", app_id="ap-1", launched_at=1.0, connection=connection)
    write_ref(folder, ref)
    folder.events_path.write_bytes(QUEUED)
    Notebook(folder).mark_current(time.time() - 3600)
    return folder


def test_a_run_that_nobody_follows_is_brought_up_to_date(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=400, pause=0.05)
    wait_until(lambda: modal_plane.text(read_ref(folder).app_id).count("step_comp") > 3, "steps")
    began = time.time()
    standing = catch_up(store, [folder], seconds=30.0)[folder.run_id]
    assert standing.followed is False
    assert standing.as_of is not None
    assert standing.as_of >= began
    assert standing.words(time.time()) == ""
    assert sum(isinstance(event, StepCompleted) for event in events(folder)) > 3


def test_show_notices_that_the_engine_of_a_run_here_is_gone(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.create(small_config(), "local", time.time() - 3600)
    folder.events_path.write_bytes(lines(numbered([started(), step(1)])))
    gone = {"pid": os.getpid(), "start_time": 1.0, "pgid": os.getpgid(0)}  # the number is another's
    folder.process_path.write_bytes(msgspec.json.encode(gone))
    print_run(folder, as_json=True)
    assert json.loads(capsys.readouterr().out)["life"] == "failed"


def test_a_refused_connection_is_known_at_once_and_the_age_is_told(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:1")
    folder = live_run(store)
    began = time.monotonic()
    print_runs(store, as_json=False)
    (row,) = capsys.readouterr().out.splitlines()[1:]
    assert "as of 1h00m ago, not followed: Modal cannot be reached" in row
    watch_once(CloudRun(folder), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["followed"] is False
    assert 3590 < time.time() - facts["as_of"] < 3700
    assert time.monotonic() - began < 15


def test_modal_that_never_answers_is_waited_for_no_longer_than_was_said(
    store: RunStore, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        known = {
            "url": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "token_id": "ak-nobodys",
            "token_secret": "as-nobodys",
            "pid": os.getpid(),
            "start_time": psutil.Process().create_time(),
        }
        (tmp_path / "connection").write_bytes(msgspec.json.encode(known))
        folders = [live_run(store, str(tmp_path / "connection")) for _ in range(3)]
        began = time.monotonic()
        found = catch_up(store, folders, seconds=1.5)
        assert time.monotonic() - began < 15
    assert {one.why for one in found.values()} == {"Modal did not answer in time"}


def test_a_run_that_another_program_follows_is_current_unless_it_hears_nothing(
    store: RunStore,
) -> None:
    folder = live_run(store)
    with only_follower(folder):
        assert standing_of(folder).words(time.time()).endswith("its follower cannot hear it")
        Notebook(folder).mark_current(time.time())
        standing = standing_of(folder)
    assert standing.followed
    assert standing.words(time.time()) == ""


def test_a_run_that_is_only_being_launched_is_behind_of_nothing(store: RunStore) -> None:
    folder = live_run(store)
    (folder.path / ".current").unlink()
    with only_follower(folder):
        for launched_at, is_quiet in ((0.0, True), (time.time() - 5, True), (1.0, False)):
            write_ref(folder, msgspec.structs.replace(read_ref(folder), launched_at=launched_at))
            assert (standing_of(folder).words(time.time()) == "") == is_quiet


@pytest.mark.parametrize(("retries", "status"), [(0, 1), (1, 0)])
def test_an_attempt_that_modal_retries_is_no_failure_of_the_run_yet(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, retries: int, status: int
) -> None:
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:1")
    config = small_config(retries=retries)
    folder = store.create(config, "modal", time.time())
    write_ref(folder, CloudRef(app_name="a", app_id="ap-1", launched_at=1.0))
    crash = RunFailed(kind="engine", message="m")
    append(folder.events_path, numbered([started(), crash]))
    assert watch_once(CloudRun(folder), as_json=False) == status
    write_ref(folder, msgspec.structs.replace(read_ref(folder), ended=True))
    assert watch_once(CloudRun(folder), as_json=False) == 1


def test_a_long_silence_after_the_last_word_is_told_and_a_short_one_is_not() -> None:
    closing, over = Closing(), advance(RunState(), RunFinished(steps=3, stopped_early=False, seq=0))
    assert closing.look(RunState(), 0.0) == ""
    assert [closing.look(over, now) for now in (10.0, 11.9)] == ["", ""]
    assert not closing.was_told
    assert closing.look(over, 12.1, may_go_on=True) == ""
    assert closing.look(over, 12.1) == "finished; making sure that it is gone"
    assert (closing.look(over, 13.0), closing.was_told) == ("", True)


def test_a_run_that_is_over_or_here_has_no_age(store: RunStore) -> None:
    over = live_run(store)
    over.events_path.write_bytes(QUEUED + FAILED)
    write_ref(over, msgspec.structs.replace(read_ref(over), ended=True))
    here = store.create(small_config(), "local", 1.0)
    assert catch_up(store, [over, here]) == {}


def test_trouble_on_the_way_is_told_beside_the_events_and_a_runs_own_lines_are_not(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = live_run(store)
    notebook = Notebook(folder)
    notebook.note("an old one")
    notebook.write_lines(["a container's line"])
    moments = iter(range(100))

    def moment(_: float) -> None:
        match next(moments):
            case 0:
                notebook.note("log stream lost\x1b[31m (it is away); it is tried again")
                notebook.write_lines(["another"])
            case 1:
                folder.events_path.write_bytes(QUEUED + FAILED)
                write_ref(folder, msgspec.structs.replace(read_ref(folder), ended=True))

    assert tell_to_end(CloudRun(folder), as_json=True, heading="", wait=moment) == 1
    told = capsys.readouterr()
    assert told.out.encode() == QUEUED + FAILED
    assert told.err == "composer-tui: log stream lost (it is away); it is tried again\n"
