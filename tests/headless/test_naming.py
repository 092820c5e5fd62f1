"""RUN is an id, the beginning of one, or "last", for every command that asks Modal."""

import os
from pathlib import Path
from typing import Any

import pytest

from composer_engine.config import load
from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.cloud.problems import CloudProblem
from composer_tui.headless.naming import in_its_account, named
from composer_tui.runs.folder import RunFolder, Target
from composer_tui.runs.store import RunStore

APP = "ap-" + "A1b2C3d4E5f" * 2


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def launched(
    store: RunStore, name: str, now: float, target: Target = "modal", **facts: Any
) -> RunFolder:
    folder = store.create(load("smoke", settings=[f"name={name}"]), target, now)
    write_ref(folder, CloudRef(app_name=folder.run_id, **facts))
    return folder


def refused(store: RunStore, text: str) -> str:
    with pytest.raises(CloudProblem) as caught:
        in_its_account(store, text)
    return str(caught.value)


def test_a_run_of_this_machine_is_its_app_by_any_of_its_names(store: RunStore) -> None:
    folder = launched(store, "good", 1.0, app_id=APP)
    for text in (folder.run_id, "goo", "last", APP):
        found = named(store, text)
        assert found.which == APP
        assert found.folder is not None
        assert found.folder.run_id == folder.run_id


def test_what_is_no_run_here_is_for_modal_to_know(store: RunStore) -> None:
    launched(store, "good", 1.0, app_id=APP)
    for text in ("someone-elses", APP[::-1], "ta-" + APP[3:], "ap-short"):
        assert named(store, text) == (text, None, CloudRef(app_name=""))


def test_last_is_no_app_where_there_is_no_run(store: RunStore) -> None:
    assert named(store, "last").folder is None


def test_a_beginning_of_several_is_refused(store: RunStore) -> None:
    launched(store, "good-a", 1.0, app_id=APP)
    launched(store, "good-b", 2.0, app_id=APP)
    assert "begins 2 runs" in refused(store, "good")


def test_a_run_without_an_app_says_so(store: RunStore) -> None:
    here = store.create(load("smoke", settings=["name=here"]), "local", 1.0)
    assert f"{here.run_id} runs on this machine" in refused(store, "here")
    launched(store, "early", 2.0)
    assert "no app on Modal yet" in refused(store, "early")


def test_a_rehearsal_that_has_ended_has_nothing_to_ask(store: RunStore, tmp_path: Path) -> None:
    launched(store, "play", 1.0, "rehearsal", app_id=APP, connection=str(tmp_path / "gone.json"))
    assert "has ended" in refused(store, "last")


def test_a_run_is_asked_for_in_its_own_environment(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_ENVIRONMENT", "another")
    launched(store, "good", 1.0, app_id=APP, environment="dev")
    assert in_its_account(store, "good").which == APP
    assert os.environ["MODAL_ENVIRONMENT"] == "dev"
