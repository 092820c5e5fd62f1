"""What a run on Modal is known by, when the file that says so is damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from composer_engine.cloud_spec import app_name
from composer_tui.cloud.ledger import (
    CloudRef,
    cloud_runs,
    connection_file,
    known_ref,
    mark_gone,
    read_ref,
    write_ref,
)
from composer_tui.headless.costs import print_cost
from composer_tui.runners.cloud import CloudRun
from composer_tui.runs.cost import AttemptCost, append_costs
from composer_tui.runs.folder import DamagedFolder, RunFolder, Target
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import follow_to_end, lawful_events, small_config, talking_run
from tests.rehearsal.rehearsal import Rehearsal

DAMAGE = ["", "{", '{"app_name": 5}', "\x00\x00", "[" * 100_000]


def damaged(store: RunStore, target: Target, text: str = "{") -> RunFolder:
    folder = store.create(small_config(environment="staging", cap_usd=7.5), target, 1000.0)
    folder.cloud_path.write_text(text)
    return folder


def test_looking_at_a_run_whose_ledger_is_missing_writes_no_end_into_its_stream(
    store: RunStore,
) -> None:
    folder = store.create(small_config(), "modal", 1000.0)
    folder.events_path.write_bytes(
        b'{"event":"phase_changed","seq":0,"time":1.0,"phase":"queued"}\n'
    )
    before = folder.events_path.read_bytes()
    run = CloudRun(folder)
    assert run.alive()
    assert not run.settle()
    assert folder.events_path.read_bytes() == before
    assert known_ref(folder).rebuilt


@pytest.mark.parametrize("text", DAMAGE)
@pytest.mark.parametrize("target", ["modal", "rehearsal"])
def test_what_matters_of_a_damaged_ledger_comes_from_the_runs_record(
    store: RunStore, target: Target, text: str
) -> None:
    folder = damaged(store, target, text)
    ((found, ref),) = cloud_runs(store)
    connection = "" if target == "modal" else str(connection_file(folder.run_id))
    assert found == folder
    assert ref == known_ref(folder)
    assert (ref.app_name, ref.environment) == (app_name(folder.run_id), "staging")
    assert (ref.connection, ref.cap_usd, ref.rebuilt) == (connection, "7.5", True)
    assert ref.launched_at == 1000.0  # else it would be taken for one that was never launched
    assert not ref.ended
    assert (ref.app_id, ref.call_id, ref.lease_until) == ("", "", 0.0)


def test_nothing_is_made_up_for_a_run_that_is_not_known(store: RunStore) -> None:
    folder = damaged(store, "modal")
    folder.record_path.write_text("{")
    assert list(cloud_runs(store)) == []
    local = damaged(store, "local")
    absent = store.create(small_config(), "modal", 1000.0)
    for one in (folder, local, absent):
        with pytest.raises(DamagedFolder):
            known_ref(one)


@pytest.mark.parametrize("text", DAMAGE)
def test_what_was_damaged_is_kept_beside(store: RunStore, text: str) -> None:
    folder = damaged(store, "modal", text)
    write_ref(folder, known_ref(folder))
    kept = folder.path / "cloud.json.damaged"
    assert kept.read_text() == text
    write_ref(folder, CloudRef(app_name="a", ended=True))
    assert kept.read_text() == text
    assert read_ref(folder).ended


def test_a_ledger_that_is_no_file_is_kept_beside(store: RunStore) -> None:
    folder = store.create(small_config(), "modal", 1000.0)
    os.mkfifo(folder.cloud_path)
    write_ref(folder, known_ref(folder))
    assert (folder.path / "cloud.json.damaged").is_fifo()
    assert read_ref(folder).app_name == app_name(folder.run_id)


def test_what_a_run_with_a_damaged_ledger_cost_is_counted(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(store, "modal")
    attempt = AttemptCost(
        attempt=1, container_id="ta-1", started_at=99_000.0, seen_at=99_600.0, ended_at=99_600.0
    )
    append_costs(folder, [attempt])
    print_cost(store, "1h", "run", as_json=True, now=100_000.0)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == [folder.run_id]


def test_a_run_with_a_damaged_ledger_is_found_by_its_name_and_followed(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=10, pause=0.02)
    ids = read_ref(folder)
    (folder.path / ".launch").touch()
    folder.cloud_path.write_text("{")
    follow_to_end(folder, modal_plane)
    ref = read_ref(folder)
    assert (ref.app_id, ref.call_id, ref.rebuilt, ref.ended) == (
        ids.app_id,
        ids.call_id,
        False,
        True,
    )
    assert (folder.path / "cloud.json.damaged").read_text() == "{"
    assert lawful_events(folder)[-1].__class__.__name__ == "RunFinished"


def test_a_command_that_reads_a_log_is_soon_told_that_modal_is_away(tmp_path: Path) -> None:
    offline = {
        **os.environ,
        "MODAL_SERVER_URL": "http://127.0.0.1:1",
        "MODAL_TOKEN_ID": "ak-nobodys",
        "MODAL_TOKEN_SECRET": "as-nobodys",
    }
    app_id = "ap-" + "1" * 22
    several = [
        subprocess.Popen(
            [sys.executable, "-m", "composer_tui", "logs", which, *more],
            env=offline,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for which, *more in ((app_id,), (app_id, "-f"), ("a-name",))
    ]
    for process in several:
        out, err = process.communicate(timeout=25)
        assert (process.returncode, out) == (1, ""), err
        assert err.count("\n") == 1, err
        assert "modal" in err.lower()


def test_a_run_whose_app_was_seen_gone_is_over_at_once_and_no_other(store: RunStore) -> None:
    folders = [store.create(small_config(), "modal", 1000.0) for _ in range(3)]
    for number, folder in enumerate(folders[:2]):
        write_ref(folder, CloudRef(app_name="a", app_id=f"ap-{number}", launched_at=1.0))
    write_ref(folders[2], CloudRef(app_name="a"))
    mark_gone(store, {"ap-1", ""})
    assert [read_ref(folder).ended for folder in folders] == [False, True, False]
    run = CloudRun(folders[1])
    assert not run.alive()
    assert not run.settle(), "its last word is still to be had"
    assert not folders[1].events_path.exists()


def test_a_ledger_of_an_earlier_version_is_read(store: RunStore) -> None:
    folder = store.create(small_config(), "modal", 1000.0)
    folder.cloud_path.write_text('{"app_name": "a", "app_id": "ap-1", "launched_at": 5.0}')
    assert (read_ref(folder).account, read_ref(folder).workspace) == ("", "")
