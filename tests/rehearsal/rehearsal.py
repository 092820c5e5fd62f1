"""One rehearsal as the tests see it: a process of its own, reached by real Modal clients."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpclib.client
import psutil
from modal_proto import api_grpc, api_pb2

from composer_tui.rehearsal import process
from composer_tui.rehearsal.connection import Connection
from tests.rehearsal import warm

MODAL = [sys.executable, "-m", "modal"]
SECONDS = 60.0  # nothing here takes so long; a hang ends


_APPS = """
import modal, sys

gpu, *names = sys.argv[1:]
for name in names:
    app = modal.App(name, include_source=False)
    if gpu:
        @app.function(gpu=gpu, serialized=True, timeout=600)
        def work():
            import time
            print("working", flush=True)
            time.sleep(300)
    with app.run(detach=True):
        if gpu:
            work.spawn()
        print(app.app_id, flush=True)
"""


class Rehearsal:
    """A running rehearsal below ``root``."""

    def __init__(self, root: Path, connection: Connection) -> None:
        self.root = root
        self.connection = connection

    @property
    def connection_file(self) -> Path:
        return self.root / "connection.json"

    @property
    def pid(self) -> int:
        pid: int = json.loads(self.connection_file.read_bytes())["pid"]
        return pid

    def environ(self, **extra: str) -> dict[str, str]:
        """A client's environment. The user's own Modal settings are not in it."""
        return {**os.environ, **self.connection.environ(), "COLUMNS": "200", **extra}

    def modal(self, *arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        """The command line, to its end."""
        return warm.run(["-m", "modal", *arguments], self.environ(**extra), self.root, SECONDS)

    def json(self, *arguments: str) -> Any:
        """What the command line prints with ``--json``."""
        done = self.modal(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def script(self, path: Path, *arguments: str, **extra: str) -> str:
        """What a user's program prints, that uses the library."""
        done = warm.run([str(path), *arguments], self.environ(**extra), path.parent, SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_apps(self, *names: str, gpu: str = "") -> list[str]:
        """The ids of detached apps, each of which is at work on a GPU if one is named."""
        path = self.root / "start_apps.py"
        path.write_text(_APPS)
        return self.script(path, gpu, *names).split()

    def call(self, rpc: str, request: Any, headers: dict[str, str | None] | None = None) -> Any:
        """One RPC as the wire has it, with the client's headers but for those given."""
        return asyncio.run(self._call(rpc, request, headers or {}))

    async def _call(self, rpc: str, request: Any, headers: dict[str, str | None]) -> Any:
        host, _, port = self.connection.url.removeprefix("http://").partition(":")
        channel = grpclib.client.Channel(host, int(port))
        try:
            method = getattr(api_grpc.ModalClientStub(channel), rpc)
            ours = {
                "x-modal-client-type": "1",
                "x-modal-token-id": self.connection.token_id,
                "x-modal-token-secret": self.connection.token_secret,
            }
            sent = {name: value for name, value in {**ours, **headers}.items() if value is not None}
            return await method(request, metadata=sent, timeout=SECONDS)
        finally:
            channel.close()

    def app(self, app_id: str) -> api_pb2.AppLifecycle:
        """Its life so far, with the states that the library does not tell apart."""
        request = api_pb2.AppGetLifecycleRequest(app_id=app_id)
        lifecycle: api_pb2.AppLifecycle = self.call("AppGetLifecycle", request).lifecycle
        return lifecycle

    def tasks(self, app_id: str) -> list[api_pb2.TaskStats]:
        """Its containers that are not gone."""
        return list(self.call("TaskList", api_pb2.TaskListRequest(app_id=app_id)).tasks)

    def log_lines(self, app_id: str) -> list[list[Any]]:
        """Everything in an app's log, changes of state included, as it is on disk."""
        path = self.root / "apps" / app_id / "logs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def text(self, app_id: str) -> str:
        """What has been printed."""
        return "".join(line[1] for line in self.log_lines(app_id))

    def states(self, app_id: str) -> list[int]:
        """The states its containers have been in, in order."""
        return [line[3] for line in self.log_lines(app_id) if line[3]]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs below the control plane."""
        return psutil.Process(self.pid).children(recursive=True)


def wait_until(is_so: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Waits for it to be true, and answers what it was. What takes long is asked less often."""
    deadline, pause = time.monotonic() + seconds, 0.02
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(pause)
        pause = min(0.2, pause * 1.3)
    return answer


@contextmanager
def rehearsal(root: Path, chaos: str = "", **settings: float) -> Iterator[Rehearsal]:
    """A rehearsal that ends with the block."""
    found = Rehearsal(
        root, process.start(root, root / "connection.json", chaos=chaos, settings=settings)
    )
    try:
        yield found
    finally:
        process.stop(found.connection_file)
