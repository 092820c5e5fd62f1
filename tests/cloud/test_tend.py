"""A run whose app is not in the account that was asked is neither over nor asked about for ever."""

import time
from pathlib import Path

import msgspec
import pytest

from composer_engine.protocol import RunFinished
from composer_tui.cloud.ledger import read_ref, write_ref
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import (
    events,
    follow_to_end,
    lawful_events,
    new_run,
    talking_run,
)
from tests.rehearsal.rehearsal import Rehearsal, rehearsal

LONG_AGO = 3600.0
NO_APP = "ap-" + "0" * 22


@pytest.mark.parametrize("damage", [False, True], ids=["known by id", "known by name"])
def test_another_account_says_nothing_of_a_run_and_its_own_ends_it(
    store: RunStore, modal_plane: Rehearsal, tmp_path: Path, damage: bool
) -> None:
    folder = talking_run(store, modal_plane, steps=6)
    ref = read_ref(folder)
    write_ref(folder, msgspec.structs.replace(ref, launched_at=time.time() - LONG_AGO))
    (folder.path / ".launch").touch()
    if damage:
        folder.cloud_path.write_text("{")
    with rehearsal(tmp_path / "other") as other:
        for _ in range(2):
            follow_to_end(folder, other, MODAL_PROFILE="elsewhere")
    assert events(folder) == []
    log = folder.log_path.read_text()
    assert log.count("\n") == 1
    assert "not in the account" in log
    assert other.connection.url in log
    follow_to_end(folder, modal_plane)
    assert isinstance(lawful_events(folder)[-1], RunFinished)
    assert read_ref(folder).ended


def test_a_run_whose_app_modal_has_forgotten_ends_as_its_volume_says_and_is_over(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=3)
    follow_to_end(folder, modal_plane)
    copy = new_run(store, modal_plane)
    source = modal_plane.root / "volumes" / "composer-runs"
    (source / copy.run_id).mkdir()
    told = (source / folder.run_id / "events.jsonl").read_bytes()
    (source / copy.run_id / "events.jsonl").write_bytes(told)
    ref = read_ref(folder)
    lost = msgspec.structs.replace(
        ref, app_name=copy.run_id, app_id=NO_APP, ended=False, launched_at=1.0
    )
    write_ref(copy, lost)
    follow_to_end(copy, modal_plane)
    assert isinstance(lawful_events(copy)[-1], RunFinished)
    assert read_ref(copy).ended
    assert copy.log_path.read_text().count("\n") == 1
    assert "taken as gone" in copy.log_path.read_text()
