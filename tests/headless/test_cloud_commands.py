"""What the commands for Modal do before they ask it anything."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    ],
)
def test_without_a_token_the_command_that_makes_one_is_named(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments, runs=tmp_path, PYTHONPATH="", **NO_ACCOUNT)
    said = done.stderr.decode()
    assert done.returncode == 2
    assert len(said.splitlines()) == 1
    assert "modal token new" in said
