"""A token is in its owner's file and in the environment of who needs it, and nowhere else."""

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from composer_tui.cloud.accounts import Accounts
from composer_tui.cloud.ledger import cloud_runs
from composer_tui.rehearsal import process
from composer_tui.runs.store import RunStore
from tests.rehearsal.rehearsal import wait_until

COMMAND = [sys.executable, "-m", "composer_tui"]
_SETTINGS = [
    "--set",
    "optimizer.steps=3",
    "--set",
    "modal.gpu=",
    "--set",
    "optimizer.warmup_steps=0",
]


class Machine:
    """One machine's files, and the command line on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"
        self.environ = {
            **os.environ,
            "XDG_STATE_HOME": str(root / "state"),
            "XDG_CACHE_HOME": str(root / "cache"),
            "COMPOSER_RUNS_DIR": str(self.runs),
        }

    def say(self, *arguments: str, **extra: str) -> str:
        """All that a command prints."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env={**self.environ, **extra},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return done.stdout + done.stderr

    def files_with(self, secret: str) -> list[Path]:
        needle = secret.encode()
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [path for path in files if needle in path.read_bytes()]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = Machine(tmp_path)
    yield found
    for _, ref in cloud_runs(RunStore(found.runs)):
        if ref.connection:
            process.stop(Path(ref.connection))


@contextmanager
def watching_argv() -> Iterator[set[str]]:
    """Every command line of this machine that is seen meanwhile."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for one in psutil.process_iter():
                try:
                    seen.add("\0".join(one.cmdline()))
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_run_from_launch_to_stop_leaves_its_token_in_one_file_of_its_owners(
    machine: Machine,
) -> None:
    said = []
    with watching_argv() as argv:
        said.append(machine.say("run", "smoke", "--target", "rehearsal", "--detach", *_SETTINGS))
        ((_, ref),) = cloud_runs(RunStore(machine.runs))
        connection = process.find(Path(ref.connection))
        assert connection is not None
        account = connection.environ()
        said.append(machine.say("apps", "--json", **account))
        said.append(machine.say("doctor", "--online", **account))
        time.sleep(1.0)
        said.append(machine.say("show", "last", "--json"))
        said.append(machine.say("stop", "last", "--now", "--json"))
        said.append(machine.say("watch", "last"))
    joined = "\n".join([*said, *argv])
    for secret in (connection.token_secret, connection.token_id):
        assert secret not in joined
        assert machine.files_with(secret) == [Path(ref.connection)]
    mode = stat.S_IMODE(Path(ref.connection).stat().st_mode)
    assert mode == 0o600


def test_no_error_says_the_token_that_it_is_about(machine: Machine) -> None:
    account = {
        "MODAL_TOKEN_ID": "ak-WRONGWRONGWRONGWRONG00",
        "MODAL_TOKEN_SECRET": "as-SECRETSECRETSECRET0000",
        "MODAL_SERVER_URL": "http://127.0.0.1:9",
    }
    said = [machine.say("apps", **account), machine.say("doctor", "--online", **account)]
    assert all(said)
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        assert account[name] not in "\n".join(said)
        assert machine.files_with(account[name]) == []


def test_a_picture_of_the_app_has_no_token_in_it(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = machine.say("run", "smoke", "--target", "rehearsal", "--detach", *_SETTINGS)
    ((folder, ref),) = cloud_runs(RunStore(machine.runs))
    assert said.strip() == folder.run_id
    connection = process.find(Path(ref.connection))
    assert connection is not None
    for name, text in connection.environ().items():
        monkeypatch.setenv(name, text)
    accounts = Accounts(RunStore(machine.runs))
    try:
        wait_until(lambda: accounts("").apps().apps, "the app is listed")
        picture = _picture(machine, connection.environ())
    finally:
        accounts.close()
    assert folder.run_id in picture
    for secret in (connection.token_secret, connection.token_id):
        assert secret not in picture
        assert secret not in json.dumps(picture)
    machine.say("stop", "last", "--now")


def _picture(machine: Machine, account: dict[str, str]) -> str:
    code = """
import asyncio, os, sys
from pathlib import Path
from composer_tui.app import ComposerApp
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.store import RunStore

async def main():
    store = RunStore(Path(sys.argv[1]))
    app = ComposerApp(store, runner=LocalRunner(store), start="apps")
    async with app.run_test(size=(160, 40)) as pilot:
        for _ in range(400):
            await pilot.pause(0.05)
            svg = app.export_screenshot()
            if sys.argv[2] in svg:
                break
        print(svg)
    app.let_cloud_go()

asyncio.run(main())
"""
    (folder, _), *_ = cloud_runs(RunStore(machine.runs))
    done = subprocess.run(
        [sys.executable, "-c", code, str(machine.runs), folder.run_id],
        env={**machine.environ, **account},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout
