"""A run whose app is not in the account that was asked is neither over nor asked about for ever."""

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.protocol import RunFailed, RunFinished, StepCompleted
from composer_tui.cloud import tend as tending
from composer_tui.cloud.direct import DirectCloud
from composer_tui.cloud.ledger import CloudRef, read_ref, write_ref
from composer_tui.cloud.tend import still_there_words
from composer_tui.cloud.trouble import REMIND_SECONDS, Trouble
from composer_tui.cloud.wire import StopProgress
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import (
    events,
    follow_to_end,
    lawful_events,
    new_run,
    small_config,
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


FINISHED = (
    b'{"event":"run_finished","seq":0,"time":1.0,"steps":3,"stopped_early":false,"reason":""}\n'
)


@pytest.mark.parametrize(("account", "workspace"), [("profile team", ""), ("", "team")])
def test_a_run_of_another_account_is_never_taken_as_over(
    store: RunStore, modal_plane: Rehearsal, account: str, workspace: str
) -> None:
    folder = store.create(small_config(), "modal", 1.0)
    folder.events_path.write_bytes(FINISHED)
    ref = CloudRef(app_name="a", app_id=NO_APP, account=account, workspace=workspace)
    write_ref(folder, msgspec.structs.replace(ref, launched_at=1.0))
    follow_to_end(folder, modal_plane)
    assert not read_ref(folder).ended
    assert "team" in folder.log_path.read_text()


def test_nothing_is_said_of_a_launch_that_was_interrupted_in_another_account(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = store.create(small_config(), "modal", 1.0)
    write_ref(folder, CloudRef(app_name=folder.run_id, account="profile team"))
    (folder.path / ".launch").touch()
    follow_to_end(folder, modal_plane)
    assert events(folder) == []
    assert not read_ref(folder).ended
    assert "profile team" in folder.log_path.read_text()


def test_the_workspace_of_an_app_that_was_found_is_kept(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = talking_run(store, modal_plane, steps=2)
    write_ref(folder, msgspec.structs.replace(read_ref(folder), connection=""))
    follow_to_end(folder, modal_plane)
    assert modal_plane.connection.url in read_ref(folder).workspace


def test_a_run_that_was_stopped_and_that_nobody_knows_any_more_gets_its_last_word(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = new_run(store, modal_plane)
    ref = msgspec.structs.replace(read_ref(folder), app_id=NO_APP, launched_at=1.0, ended=True)
    write_ref(folder, ref)
    follow_to_end(folder, modal_plane)
    last = lawful_events(folder)[-1]
    assert isinstance(last, RunFailed)
    assert (last.kind, last.message) == ("killed", "the app was stopped")


def test_a_rehearsal_that_is_gone_ends_its_run_with_what_its_volume_has(
    store: RunStore, tmp_path: Path
) -> None:
    folder = store.create(small_config(), "rehearsal", 1.0)
    ref = CloudRef(app_name="r", connection=str(tmp_path / "gone"), app_id=NO_APP, launched_at=1.0)
    write_ref(folder, ref)
    copy = folder.path / "rehearsal" / "volumes" / "composer-runs" / folder.run_id
    copy.mkdir(parents=True)
    step = '{"event":"step_completed","seq":%d,"time":1.0,"step":%d,"loss":1.0,"channels":{}}\n'
    (copy / "events.jsonl").write_text("".join(step % (n, n + 1) for n in range(4)))
    tending.tend(folder, launch=False, should_stop=lambda: False)
    *steps, last = events(folder)
    assert [one.step for one in steps if isinstance(one, StepCompleted)] == [1, 2, 3, 4]
    assert isinstance(last, RunFailed)
    assert "control plane is gone" in last.message
    assert read_ref(folder).ended


def test_what_nobody_foresaw_is_told_once_without_a_token_and_kills_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_folder: RunFolder, **_: object) -> None:
        raise ValueError("a header held ak-1234567890abcdef")

    monkeypatch.setattr(tending, "tend", fails)
    folder = store.create(small_config(), "modal", 1.0)
    cloud = DirectCloud(store)
    for _ in range(3):
        cloud.tend(folder)
        cloud.close()
    log = folder.log_path.read_text()
    assert "Traceback" in log
    assert "ak-1234567890abcdef" not in log
    assert log.count("composer-tui: it cannot be followed: ValueError: a header held [token]") == 1


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 30.0)), max_size=200))
def test_trouble_is_told_once_a_minute_and_its_end_only_if_it_was_told(
    tries: list[tuple[bool, float]],
) -> None:
    trouble, now, told, lost_at = Trouble("it"), 0.0, False, -REMIND_SECONDS
    for works, seconds in tries:
        now += seconds
        line = trouble.back(now) if works else trouble.lost("why", now)
        assert trouble.is_lost is not works
        if works:
            assert (line is not None) == told
            told = False
        else:
            assert (line is not None) == (now - lost_at >= REMIND_SECONDS)
            lost_at, told = (now, True) if line is not None else (lost_at, told)


def test_what_lasts_is_said_to_last() -> None:
    trouble = Trouble("log stream")
    assert trouble.lost("refused", 10.0) == "log stream lost (refused); it is tried again"
    assert [trouble.lost("refused", 10.0 + s) for s in range(1, 60)] == [None] * 59
    assert trouble.lost("refused", 70.0) == "log stream still lost for 1m00s (refused)"
    assert trouble.back(93.0) == "log stream is back after 1m23s"


def test_what_is_tried_in_several_ways_is_one_trouble_and_back_when_all_are() -> None:
    way = Trouble("the way to Modal")
    assert (
        way.lost("no answer", 0.0, "call") == "the way to Modal lost (no answer); it is tried again"
    )
    assert way.lost("refused", 5.0, "log") is None
    assert way.remind(59.0) is None
    assert way.remind(60.0) == "the way to Modal still lost for 1m00s (refused)"
    assert way.back(61.0, "call") is None
    assert way.is_lost
    assert way.back(70.0, "log") == "the way to Modal is back after 1m10s"
    assert way.over(71.0) is None
    assert way.remind(500.0) is None


def test_containers_that_do_not_go_are_named_while_they_are_stopped() -> None:
    stop = StopProgress(
        app_id="ap-1", name="", stage="stopping", seconds=61.0, containers=("ta-1",), message="no"
    )
    assert still_there_words(stop) == "ap-1: its containers ta-1 are still there after 1m01s (no)"
