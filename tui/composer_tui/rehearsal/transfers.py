"""The HTTP side, on 127.0.0.1: who knows an address may do the one thing that it is for."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from composer_tui.rehearsal.ids import new_id

EXPIRY_SECONDS = 600.0  # from the making of an address to its end
_CHUNK_BYTES = 1 << 20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BadUpload(ValueError):  # noqa: N818  # says what the matter is
    """What came is not what was announced; the message is one line for a person."""


class Received(NamedTuple):
    """A body that was uploaded into a file."""

    path: Path
    size_bytes: int
    sha256: bytes
    md5: bytes


class _Grant(NamedTuple):
    method: str
    handler: Handler
    expires_at: float  # monotonic seconds
    snapshot: Path | None  # removed with the grant


class Transfers:
    """Addresses, each with 256 random bits in it, and the server that answers them.

    ``folder`` holds what addresses for downloading need, and is emptied at the start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._grants: dict[str, _Grant] = {}  # in the order of their making
        self._runner: web.AppRunner | None = None
        self._base_url = ""

    async def start(self, host: str) -> None:
        """Listens on a free port. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.iterdir():
            left_over.unlink()
        app = web.Application()
        app.router.add_route("*", "/{capability}", self._answer)
        # A log would hold the addresses.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self._base_url = f"http://{host}:{port}"

    async def close(self) -> None:
        """Ends the listening and forgets all addresses."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for capability in list(self._grants):
            self._forget(capability)

    def allow(self, method: str, handler: Handler) -> str:
        """A new address that answers to ``method`` with ``handler``, until it expires."""
        return self._add(method, handler, None)

    def allow_download(
        self, path: Path, parts: Callable[[int], Iterable[tuple[int, int]]]
    ) -> tuple[int, list[str]]:
        """The file's size, and addresses of its parts, as it is now, whatever becomes of it.

        ``parts`` makes (start, length) of the size. The file may be replaced or removed
        meanwhile, but not changed in place. Raises OSError.
        """
        snapshot = self.folder / new_id("part")
        snapshot.hardlink_to(path)
        try:
            size_bytes = snapshot.stat().st_size
            senders = [_sender(snapshot, start, length) for start, length in parts(size_bytes)]
        except BaseException:  # the caller's refusal, most likely
            snapshot.unlink()
            raise
        if not senders:
            snapshot.unlink()
        # The last address to expire takes the snapshot along.
        snapshots = [*([None] * (len(senders) - 1)), snapshot]
        addresses = [
            self._add("GET", sender, ends) for sender, ends in zip(senders, snapshots, strict=False)
        ]
        return size_bytes, addresses

    def _add(self, method: str, handler: Handler, snapshot: Path | None) -> str:
        now = time.monotonic()
        for capability, grant in list(self._grants.items()):
            if grant.expires_at > now:
                break
            self._forget(capability)
        capability = secrets.token_urlsafe(32)
        self._grants[capability] = _Grant(method, handler, now + EXPIRY_SECONDS, snapshot)
        return f"{self._base_url}/{capability}"

    def _forget(self, capability: str) -> None:
        grant = self._grants.pop(capability)
        if grant.snapshot is not None:
            grant.snapshot.unlink(missing_ok=True)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        grant = self._grants.get(request.match_info["capability"])
        if grant is None or grant.expires_at <= time.monotonic():
            return web.Response(status=404, text="there is nothing at this address, or no more")
        if grant.method != request.method:
            return web.Response(status=405, text=f"this address is for {grant.method}")
        try:
            return await grant.handler(request)
        except BadUpload as error:
            return web.Response(status=400, text=str(error))


async def receive(request: web.Request, folder: Path, length_bytes: int) -> Received:
    """Streams the body into a new file of ``folder``.

    Raises `BadUpload` when it is not ``length_bytes`` long; then there is no file.
    """
    received = await receive_up_to(request, folder, length_bytes)
    if received.size_bytes < length_bytes:
        received.path.unlink()
        raise BadUpload(f"{length_bytes} bytes were announced, {received.size_bytes} came")
    return received


async def receive_up_to(request: web.Request, folder: Path, limit_bytes: int) -> Received:
    """Streams the body into a new file of ``folder``. Raises `BadUpload` when it is longer."""
    path = folder / new_id("upload")
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size_bytes = 0
    try:
        with path.open("xb") as file:
            async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
                size_bytes += len(chunk)
                _check_length(size_bytes, limit_bytes)
                await asyncio.to_thread(_take, chunk, file.write, sha256.update, md5.update)
    except BaseException:  # whatever ended it: half a body is no use to anybody
        path.unlink(missing_ok=True)
        raise
    return Received(path, size_bytes, sha256.digest(), md5.digest())


def _check_length(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise BadUpload(f"more than {limit_bytes} bytes came")


def _take(chunk: bytes, *receivers: Callable[[bytes], object]) -> None:
    for receiver in receivers:
        receiver(chunk)


def _sender(path: Path, start: int, length: int) -> Handler:
    async def send(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = length
        await response.prepare(request)
        with path.open("rb") as file:
            file.seek(start)
            left = length
            while left:
                chunk = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, left))
                if not chunk:  # the file is shorter than it was: the client sees a cut body
                    break
                await response.write(chunk)
                left -= len(chunk)
        return response

    return send
