"""What the commands for Modal do before they ask it anything."""

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from composer_engine.protocol import Channels, Event, PhaseChanged, StepCompleted, encode
from composer_tui.cloud.app_logs import LogLine
from composer_tui.cloud.problems import problem
from composer_tui.cloud.wire import ProblemKind, StopProgress
from composer_tui.headless.containers import _Teller
from composer_tui.headless.stop_targets import CloudTarget
from composer_tui.headless.stopping import by_hand_lines
from composer_tui.headless.troubles import status_of
from composer_tui.rehearsal.connection import Connection
from tests.headless.conftest import call, command_line
from tests.unit.test_import_hygiene import modules_after

NO_ACCOUNT = {
    "MODAL_TOKEN_ID": "",
    "MODAL_TOKEN_SECRET": "",
    "MODAL_CONFIG_PATH": "/nonexistent/modal.toml",
    "MODAL_PROFILE": "",
}


@pytest.mark.parametrize(
    "module",
    ["cli_cloud", "headless.volumes", "headless.secrets", "headless.containers", "doctor"],
)
def test_no_command_imports_modal_before_it_asks(module: str) -> None:
    assert modules_after(f"import composer_tui.{module}").isdisjoint(
        {"modal", "grpclib", "textual", "torch", "rich"}
    )


def test_the_help_names_every_command_and_imports_no_modal() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command_line("volumes", "get", "--help")[1:]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no checksum" in " ".join(done.stdout.split())
    assert "| modal\n" not in done.stderr
    helps = call("--help", runs=Path("/nonexistent")).stdout.decode()
    assert all(name in helps for name in ("containers", "logs", "secrets", "volumes"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("volumes",),
        ("volumes", "ls", "composer-runs"),
        ("volumes", "get", "composer-runs", "r1", "there"),
        ("secrets",),
        ("containers",),
        ("logs", "some-app"),
        ("apps",),
        ("gc",),
        ("lease", "some-app", "--minutes", "5"),
        ("attach", "some-app"),
        ("stop", "ap-1", "--yes"),
        ("stop", "ap-" + "1" * 22, "--yes"),
        ("stop", "--all", "--yes"),
        ("run", "smoke", "--target", "modal"),
    ],
)
def test_without_a_token_the_command_that_makes_one_is_named(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments, runs=tmp_path, PYTHONPATH="", **NO_ACCOUNT)
    said = done.stderr.decode()
    assert done.returncode == 2
    assert len(said.splitlines()) == (2 if arguments == ("apps",) else 1)
    assert "modal token new" in said


@pytest.mark.parametrize(
    "arguments",
    [("apps",), ("logs", "some-app"), ("gc",), ("volumes",), ("run", "smoke", "--target", "modal")],
)
def test_a_refused_connection_is_told_at_once(arguments: tuple[str, ...], tmp_path: Path) -> None:
    environ = Connection("http://127.0.0.1:9", "ak-nobody", "as-nobody").environ()
    began = time.monotonic()
    done = call(*arguments, runs=tmp_path, **environ)
    assert done.returncode == 1
    assert "127.0.0.1:9 refused the connection" in done.stderr.decode()
    assert time.monotonic() - began < 15, "modal's client, and its command line, try for long"
    assert not any(tmp_path.iterdir()), "a run that cannot be launched has no folder"


@pytest.mark.parametrize(
    "arguments", [("apps",), ("secrets",), ("containers",), ("stop", "--all", "--yes")]
)
def test_what_is_in_the_way_is_json_for_a_program_that_asked_for_that(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    environ = Connection("http://127.0.0.1:9", "ak-nobody", "as-nobody").environ()
    done = call(*arguments, "--json", runs=tmp_path, **environ)
    assert json.loads(done.stdout)["problem"]["kind"] == "no_network"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("no_token", 2),
        ("wrong_token", 2),
        ("clock", 2),
        ("refused", 2),
        ("no_network", 1),
        ("timeout", 1),
        ("server", 1),
        ("rate_limit", 1),
    ],
)
def test_the_shell_is_told_who_can_mend_it(kind: ProblemKind, status: int) -> None:
    assert status_of(problem(kind)) == status


def test_the_log_of_a_run_of_ours_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    teller = _Teller(timestamps=False)
    events: list[Event] = [
        PhaseChanged(seq=0, time=1.0, phase="loading"),
        StepCompleted(seq=1, time=2.0, step=7, loss=0.5, channels=Channels(), step_seconds=0.25),
    ]
    for text in [*(encode(event).decode().rstrip() for event in events), '{"lr": 3}', "hello"]:
        teller.take(LogLine(time=3.0, source="stdout", container_id="ta-1", text=text), text)
    loading, step, foreign, plain = capsys.readouterr().out.splitlines()
    assert loading == "loading..."
    assert step.startswith("step 7  ")
    assert (foreign, plain) == ('{"lr": 3}', "hello")


def test_what_was_not_seen_to_end_is_told_with_its_price_and_what_to_try() -> None:
    app_id = "ap-" + "1" * 22
    progress = StopProgress(
        app_id=app_id, name="x", stage="alarm", seconds=120.0, containers=("ta-1", "ta-2")
    )
    target = CloudTarget(app_id, "x", ref_usd_per_hour="2.50")
    said = "\n".join(by_hand_lines(progress, target))
    for words in ("$5.00/h", f"https://modal.com/id/{app_id}", f"modal app stop {app_id} --yes"):
        assert words in said
    assert "not known" in "\n".join(by_hand_lines(progress, None))
    assert not by_hand_lines(msgspec.structs.replace(progress, stage="gone"), target)
