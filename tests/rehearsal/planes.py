"""A control plane that runs in a thread of the test's own process, and what talks to it."""

import asyncio
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import modal
from grpclib.client import Channel
from modal_proto.api_grpc import ModalClientStub

from composer_tui.rehearsal.chaos import Chaos
from composer_tui.rehearsal.control_plane import ControlPlane
from tests.rehearsal import warm

PATIENCE_SECONDS = 60.0
TOKEN_ID, TOKEN_SECRET = "ak-rehearsed", "as-rehearsed"
_T = TypeVar("_T")


class Fetched(NamedTuple):
    """An answer of the HTTP side."""

    status: int
    body: bytes
    headers: dict[str, str]


class RunningPlane:
    """A control plane that serves; its own state may be touched only through `do`."""

    def __init__(self, plane: ControlPlane, loop: asyncio.AbstractEventLoop) -> None:
        self.plane = plane
        self._loop = loop

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine where the control plane runs."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    def get(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Calls a function where the control plane runs."""

        async def call() -> _T:
            return function(*arguments)

        return self.do(call())

    def rpc(self, name: str, request: object, **metadata: str) -> Any:
        """One request without Modal's client: what it would never send, and no retries."""

        async def call() -> Any:
            host, _, port = self.plane.connection.url.removeprefix("http://").partition(":")
            headers = metadata or {
                "x-modal-token-id": TOKEN_ID,
                "x-modal-token-secret": TOKEN_SECRET,
            }
            async with Channel(host, int(port)) as channel:
                method = getattr(ModalClientStub(channel), name)
                return await method(request, metadata=headers, timeout=PATIENCE_SECONDS)

        return asyncio.run(call())

    def fetch(self, url: str, method: str = "GET", body: bytes | None = None) -> Fetched:
        """One request to the HTTP side."""
        request = urllib.request.Request(url, data=body, method=method)  # noqa: S310  # loopback
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
                return Fetched(answer.status, answer.read(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            with error:
                return Fetched(error.code, error.read(), dict(error.headers))

    def environ(self) -> dict[str, str]:
        return {**os.environ, **self.plane.connection.environ()}

    def cli(self, *arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs Modal's command line."""
        where = cwd or Path.cwd()
        return warm.run(["-m", "modal", *arguments], self.environ(), where, PATIENCE_SECONDS)

    @contextmanager
    def client(self) -> Iterator[modal.Client]:
        """Modal's library in this process, which sees nothing but this control plane."""
        with mock.patch.dict(os.environ, self.plane.connection.environ()):
            client = modal.Client.from_credentials(TOKEN_ID, TOKEN_SECRET)
            with client:
                yield client


@contextmanager
def running(root: Path, chaos: Chaos | None = None) -> Iterator[RunningPlane]:
    """Serves until the end of the block."""
    plane = ControlPlane(root, TOKEN_ID, TOKEN_SECRET, chaos=chaos)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runs = RunningPlane(plane, loop)
    try:
        runs.do(plane.start())
        yield runs
    finally:
        runs.do(plane.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)
        loop.close()
