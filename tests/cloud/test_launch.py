"""A launch that is refused says why, once; one that is cut short leaves nothing unknown."""

import signal
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from composer_engine.cloud_spec import CloudSpec
from composer_engine.protocol import Event, PhaseChanged, RunFailed, RunFinished, StepCompleted
from composer_tui.cloud.ledger import read_ref
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import (
    events,
    follow_to_end,
    follower,
    lawful_events,
    new_run,
    refused_config,
    small_config,
)
from tests.rehearsal.rehearsal import Rehearsal, wait_until

CHILD = "composer_tui.cloud.launch_child"


def failure_of(folder: RunFolder) -> RunFailed:
    last = lawful_events(folder)[-1]
    assert isinstance(last, RunFailed), last
    return last


def live_apps(plane: Rehearsal, folder: RunFolder) -> list[str]:
    """The ids of apps that bear the run's name and are not over."""
    name = read_ref(folder).app_name
    rows = plane.json("app", "list")
    return [
        row["app_id"] for row in rows if row["description"] == name and row["state"] != "stopped"
    ]


def launch_child_of(parent: psutil.Process) -> psutil.Process:
    """The short program that puts the run on Modal."""

    def look() -> psutil.Process | None:
        for child in parent.children(recursive=True):
            if CHILD in " ".join(child.cmdline()):
                return child
        return None

    child = wait_until(look, "the launch")
    assert isinstance(child, psutil.Process)
    return child


def phases(found: list[Event]) -> list[str]:
    return [event.phase for event in found if isinstance(event, PhaseChanged)]


def test_the_engine_itself_runs_on_modal_from_launch_to_last_word(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = new_run(store, modal_plane)
    follow_to_end(folder, modal_plane, "launch")
    found = lawful_events(folder)
    assert isinstance(found[-1], RunFinished), found[-1]
    assert [event.step for event in found if isinstance(event, StepCompleted)] == [1, 2, 3]
    assert phases(found)[:3] == ["building", "queued", "loading"]
    ref = read_ref(folder)
    assert ref.app_id.startswith("ap-")
    assert ref.function_id.startswith("fu-")
    assert ref.call_id.startswith("fc-")
    assert ref.ended
    assert live_apps(modal_plane, folder) == []
    assert "Created function" in folder.log_path.read_text() or "Created objects" in (
        folder.log_path.read_text()
    )
    spec = msgspec.json.decode((folder.path / "spec.json").read_bytes(), type=CloudSpec)
    assert spec.run_id == folder.run_id


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"gpu": ("H999",)}, "config", "no such GPU"),
        ({"environment": "nowhere"}, "config", "nowhere"),
    ],
    ids=["a GPU", "an environment"],
)
def test_a_mistake_is_one_clear_word_and_leaves_nothing(
    store: RunStore,
    modal_plane: Rehearsal,
    settings: dict[str, object],
    kind: str,
    words: str,
) -> None:
    folder = new_run(store, modal_plane, small_config(**settings))
    follow_to_end(folder, modal_plane, "launch")
    failure = failure_of(folder)
    assert failure.kind == kind
    assert words in failure.message + failure.hint
    assert "\n" not in failure.message
    assert live_apps(modal_plane, folder) == []
    assert read_ref(folder).ended


def test_a_model_that_is_not_here_is_refused_before_modal_is_asked(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    config = small_config()
    elsewhere = msgspec.structs.replace(config.model, path="/no/such/model")
    folder = new_run(store, modal_plane, msgspec.structs.replace(config, model=elsewhere))
    follow_to_end(folder, modal_plane, "launch")
    assert failure_of(folder).kind == "config"
    assert "/no/such/model" in failure_of(folder).message
    assert read_ref(folder).app_id == ""


@pytest.mark.parametrize(
    ("environ", "kind", "words"),
    [
        ({"MODAL_TOKEN_SECRET": "as-wrong0000000000000000"}, "config", "token"),
        ({"MODAL_SERVER_URL": "http://127.0.0.1:9"}, "runner", "refused the connection"),
    ],
    ids=["a wrong token", "no network"],
)
def test_a_way_to_modal_that_is_barred_is_said_once(
    store: RunStore, modal_plane: Rehearsal, environ: dict[str, str], kind: str, words: str
) -> None:
    folder = new_run(store, modal_plane, small_config(secrets=("hf",)))
    follow_to_end(folder, modal_plane, "launch", **environ)
    failure = failure_of(folder)
    assert failure.kind == kind
    assert words in failure.message
    for path in folder.path.iterdir():
        assert b"as-wrong" not in path.read_bytes()
    assert read_ref(folder).ended


def test_the_death_of_the_launching_child_leaves_no_app(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = new_run(store, modal_plane)
    process = follower(folder, modal_plane, "launch")
    child = launch_child_of(psutil.Process(process.pid))
    child.kill()
    assert process.wait(60) == 0
    assert process.stderr is not None
    process.stderr.close()
    assert failure_of(folder).kind == "runner"
    assert live_apps(modal_plane, folder) == []


def test_the_death_of_the_launcher_loses_no_app(store: RunStore, modal_plane: Rehearsal) -> None:
    folder = new_run(store, modal_plane, refused_config())
    process = follower(folder, modal_plane, "launch")
    launch_child_of(psutil.Process(process.pid))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    follow_to_end(folder, modal_plane)  # whoever comes next sees it through
    kind = "config" if read_ref(folder).call_id else "runner"
    assert failure_of(folder).kind == kind
    assert live_apps(modal_plane, folder) == []
    assert read_ref(folder).ended


def test_a_stop_while_it_is_launched_ends_the_launch(
    store: RunStore, modal_plane: Rehearsal
) -> None:
    folder = new_run(store, modal_plane)
    process = follower(folder, modal_plane, "launch")
    wait_until(lambda: "building" in phases(events(folder)), "building")
    folder.stop_path.touch()
    begun = time.monotonic()
    assert process.wait(60) == 0
    assert process.stderr is not None
    process.stderr.close()
    assert time.monotonic() - begun < 30.0
    assert isinstance(lawful_events(folder)[-1], RunFailed | RunFinished)
    assert live_apps(modal_plane, folder) == []


def test_a_launch_that_never_reached_modal_is_over(
    store: RunStore, modal_plane: Rehearsal, tmp_path: Path
) -> None:
    folder = new_run(store, modal_plane)
    follow_to_end(folder, modal_plane)  # not asked to launch: its launcher died before it could
    failure = failure_of(folder)
    assert failure.kind == "runner"
    assert "no app was created" in failure.message
