"""The app as a person meets it: a screen to read, keys to press, runs that are real or recorded."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from textual.pilot import Pilot

from composer_engine.config import RunConfig, load
from composer_engine.protocol import Event
from composer_tui.app import ComposerApp
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.runs import lines

STAND_IN = Path(__file__).parent.parent / "faults" / "stand_in.py"
PATIENCE_SECONDS = 60.0


class Stage:
    """A running app and the hand at its keyboard."""

    def __init__(self, app: ComposerApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def shown(self) -> str:
        """The whole screen as text, one line a row."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text for strip in strips)

    @property
    def focused(self) -> str:
        """The id of the widget that has the focus."""
        widget = self.app.screen.focused
        return (widget.id or "") if widget is not None else ""

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, condition: Callable[[], object]) -> None:
        deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.02
        while not condition():
            assert time.monotonic() < deadline, f"it never came; on show:\n{self.shown}"
            await self.pilot.pause(pause)
            pause = min(0.2, pause * 1.3)  # to look at all of a screen is work

    async def until_shown(self, *words: str) -> None:
        await self.until(lambda: all(word in self.shown for word in words))


Opening = Callable[..., "contextlib.AbstractAsyncContextManager[Stage]"]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program to be launched as if it were a Python that knows the engine."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {STAND_IN} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def runner(store: RunStore, stand_in: str) -> Iterator[LocalRunner]:
    """A runner of stand-ins; whatever a test left running is ended after it."""
    runner = LocalRunner(store, python=stand_in)
    yield runner
    for folder in store.folders():
        process = folder.read_process()
        if process is not None and process.pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                psutil.Process(process.pid).kill()
    for child in runner._children.values():
        child.process.wait()


@pytest.fixture
def opened(store: RunStore, runner: LocalRunner, tmp_path: Path) -> Opening:
    """Opens the app: ``async with opened(size=(80, 24)) as stage``."""

    @asynccontextmanager
    async def open_app(
        *,
        size: tuple[int, int] = (80, 24),
        start: str = "launch",
        run: RunFolder | None = None,
        by: LocalRunner | None = None,
        environ: dict[str, str] | None = None,
        readonly: bool = False,
        kind: type[ComposerApp] = ComposerApp,
    ) -> AsyncIterator[Stage]:
        app = kind(
            store,
            runner=by or runner,
            start=start,
            run=run,
            presets_dir=tmp_path / "presets",
            readonly=readonly,
            environ=environ or {},
        )
        try:
            async with app.run_test(size=size, notifications=True) as pilot:
                yield Stage(app, pilot)
        finally:
            app.let_cloud_go()

    return open_app


def record(store: RunStore, events: list[Event], **settings: object) -> RunFolder:
    """A run that was recorded: it has ended if its events say so."""
    folder = store.create(config(**settings), "local", time.time())
    folder.events_path.write_bytes(lines(events))
    return folder


def config(**settings: object) -> RunConfig:
    return load("smoke", settings=[f"{name}={value}" for name, value in settings.items()])


def alive(folder: RunFolder) -> bool:
    """The engine of a run is a process that runs."""
    process = folder.read_process()
    if process is None:
        return False
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    return False


async def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)
