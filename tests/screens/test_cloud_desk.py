"""The app and Modal, end to end: real helpers, a real control plane, real containers."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from composer_tui.cloud.ledger import connection_file
from composer_tui.rehearsal import process
from composer_tui.runs.store import RunStore
from tests.rehearsal.rehearsal import Rehearsal, rehearsal, wait_until
from tests.screens.conftest import Opening, Stage, soon
from tests.screens.test_launch_screen import choose_target

_STOPPED = 5


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with rehearsal(tmp_path_factory.mktemp("plane"), stop_grace_seconds=0.5) as found:
        yield found


@pytest.fixture
def account(plane: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The user's own account is the rehearsed one."""
    environ = plane.connection.environ()
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    return environ


async def until_soon(stage: Stage, *words: str) -> None:
    """The same as `until_shown`, for what has to go through processes and a control plane."""
    deadline = time.monotonic() + 60
    while not all(word in stage.shown for word in words):
        assert time.monotonic() < deadline, f"{words} never came; on show:\n{stage.shown}"
        await stage.pilot.pause(0.05)


async def test_what_is_live_is_listed_with_its_price_and_ends_verified(
    opened: Opening, plane: Rehearsal, account: dict[str, str]
) -> None:
    app_ids = plane.start_apps("forgotten-a", "forgotten-b", gpu="H100")
    async with opened(size=(120, 40), start="apps", environ=account) as stage:
        await until_soon(stage, "forgotten-a", "forgotten-b", "2 apps", "H100")
        await stage.press("space", "down", "space", "K")
        await stage.until_shown("Stop 2 apps?")
        await stage.pilot.pause(0.4)  # keys that come at once are not meant for the dialog
        await stage.press("2", "enter")
        await until_soon(stage, "2 apps are gone")
    for app_id in app_ids:
        assert (await asyncio.to_thread(plane.app, app_id)).app_state == _STOPPED
        assert not await asyncio.to_thread(plane.tasks, app_id)


async def test_a_rehearsal_is_launched_from_the_form_and_stopped_from_the_monitor(
    opened: Opening, store: RunStore
) -> None:
    async with opened(size=(120, 40)) as stage:
        await stage.until_shown("ready to launch")
        await choose_target(stage, "rehearsal")
        await stage.press("f5")
        await until_soon(stage, "rehearsal", "building")
        (folder,) = store.folders()
        await soon(
            lambda: folder.cloud_path.exists() and '"call_id": "fc-' in text(folder.cloud_path)
        )
        await stage.press("K")
        await stage.until_shown("Stop")
        await stage.pilot.pause(0.4)
        await stage.press("n", "y")
        await until_soon(stage, "stopped")
        await soon(lambda: '"ended": true' in text(folder.cloud_path))
    containers = [one for one in psutil.process_iter() if is_container_of(one, folder.path)]
    process.stop(connection_file(folder.run_id))
    assert not containers


async def test_leaving_the_app_leaves_no_helper_behind(
    opened: Opening, plane: Rehearsal, account: dict[str, str]
) -> None:
    before = set(helpers())
    async with opened(start="apps", environ=account) as stage:
        await until_soon(stage, "main")
        ours = set(helpers()) - before
        assert ours
        began = time.monotonic()
        stage.app.let_cloud_go()
        assert time.monotonic() - began < 0.3
    wait_until(lambda: not any(one.is_running() for one in ours), "no helper is left")


def helpers() -> list[psutil.Process]:
    """The helper processes that this one has started."""
    children = psutil.Process().children()
    return [one for one in children if "composer_tui.cloud.bridge" in " ".join(words_of(one))]


def words_of(one: psutil.Process) -> list[str]:
    try:
        return one.cmdline()
    except psutil.Error:
        return []


def text(path: Path) -> str:
    return path.read_text()


def is_container_of(one: psutil.Process, root: Path) -> bool:
    words = " ".join(words_of(one))
    return "_container_entrypoint" in words and str(root) in words
