"""Blobs: bytes too large for a message, sent over HTTP and kept as files."""

import asyncio
import base64
import binascii
import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from grpclib import Status
from modal_proto import api_pb2

from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.rpc import refuse, unary
from composer_tui.rehearsal.transfers import BadUpload, Handler, Received, Transfers, receive

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane

LOOPBACK = "127.0.0.1"
KEEP_SECONDS = 86400.0  # how old a blob may be when a rehearsal starts
PART_BYTES = 8 << 20  # larger blobs are uploaded in parts of this
_ID = re.compile(r"bl-[A-Za-z0-9]{22}")
_ETAG = re.compile(r"<ETag>\s*(?:\"|&quot;)?([0-9a-f]{32})(?:\"|&quot;)?\s*</ETag>")


class Blobs(Area):
    """The blobs of a rehearsal, and the HTTP side (`transfers`) that other areas use as well."""

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._folder = plane.root / "blobs"
        self._incoming = plane.root / "incoming"
        self.transfers = Transfers(plane.root / "outgoing")

    def restore(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._incoming.mkdir(exist_ok=True)
        for half in self._incoming.iterdir():
            half.unlink()
        for blob in self._folder.iterdir():
            if blob.stat().st_mtime < time.time() - KEEP_SECONDS:
                blob.unlink()

    async def start(self) -> None:
        await self.transfers.start(LOOPBACK)

    async def close(self) -> None:
        await self.transfers.close()

    @property
    def incoming(self) -> Path:
        """Where uploads land before they are what they were announced to be."""
        return self._incoming

    def put(self, data: bytes) -> str:
        """Keeps the bytes; returns the id under which they are found."""
        blob_id = new_id("bl")
        (self._folder / blob_id).write_bytes(data)
        return blob_id

    def get(self, blob_id: str) -> bytes:
        """Raises NOT_FOUND."""
        return self.path(blob_id).read_bytes()

    def path(self, blob_id: str) -> Path:
        """The blob's file. Raises NOT_FOUND."""
        path = self._folder / blob_id
        if not _ID.fullmatch(blob_id) or not path.is_file():
            refuse(Status.NOT_FOUND, f"Blob '{blob_id}' not found")
        return path

    @unary
    async def BlobCreate(self, request: api_pb2.BlobCreateRequest) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        try:
            sha256 = base64.b64decode(request.content_sha256_base64, validate=True)
        except binascii.Error:
            refuse(Status.INVALID_ARGUMENT, "content_sha256_base64 is not base64")
        response = api_pb2.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id])
        if request.content_length <= PART_BYTES:
            url = self._single(blob_id, request.content_length, sha256)
            response.upload_url = url
            response.upload_urls.items.append(url)
        else:
            parts = self._multipart(blob_id, request.content_length, sha256)
            response.multipart.CopyFrom(parts)
            response.multiparts.items.append(parts)
        return response

    @unary
    async def BlobGet(self, request: api_pb2.BlobGetRequest) -> api_pb2.BlobGetResponse:
        path = self.path(request.blob_id)
        _, [url] = self.transfers.allow_download(path, lambda size_bytes: [(0, size_bytes)])
        return api_pb2.BlobGetResponse(download_url=url)

    def _single(self, blob_id: str, length_bytes: int, sha256: bytes) -> str:
        async def put(request: web.Request) -> web.Response:
            received = await receive(request, self._incoming, length_bytes)
            self._adopt(blob_id, received.path, received.sha256, sha256)
            return web.Response(headers={"ETag": f'"{received.md5.hex()}"'})

        return self.transfers.allow("PUT", put)

    def _multipart(self, blob_id: str, length_bytes: int, sha256: bytes) -> api_pb2.MultiPartUpload:
        upload = _Multipart(self._incoming, length_bytes)

        async def complete(request: web.Request) -> web.Response:
            etags = _ETAG.findall((await request.read()).decode("ascii", "replace"))
            whole = await asyncio.to_thread(upload.assemble, etags)
            self._adopt(blob_id, whole.path, whole.sha256, sha256)
            return web.Response(text=f"<ETag>{whole.md5.hex()}-{len(etags)}</ETag>")

        return api_pb2.MultiPartUpload(
            part_length=PART_BYTES,
            upload_urls=[self.transfers.allow("PUT", put) for put in upload.parts()],
            completion_url=self.transfers.allow("POST", complete),
        )

    def _adopt(self, blob_id: str, path: Path, sha256: bytes, announced: bytes) -> None:
        """Makes an uploaded file the blob. Raises `BadUpload` when it is another content."""
        if announced and sha256 != announced:
            path.unlink()
            raise BadUpload("the content's SHA-256 is not the one that was announced")
        path.replace(self._folder / blob_id)


class _Multipart:
    """One upload in parts: each part a file, until they are put together."""

    def __init__(self, folder: Path, length_bytes: int) -> None:
        self._folder = folder
        self._lengths = [
            min(PART_BYTES, length_bytes - start) for start in range(0, length_bytes, PART_BYTES)
        ]
        self._received: dict[int, Received] = {}

    def parts(self) -> list[Handler]:
        return [self._part(number) for number in range(len(self._lengths))]

    def _part(self, number: int) -> Handler:
        async def put(request: web.Request) -> web.StreamResponse:
            received = await receive(request, self._folder, self._lengths[number])
            before = self._received.pop(number, None)
            if before is not None:  # the client did not get our answer and sent it again
                before.path.unlink(missing_ok=True)
            self._received[number] = received
            return web.Response(headers={"ETag": f'"{received.md5.hex()}"'})

        return put

    def assemble(self, etags: list[str]) -> Received:
        """Puts the parts together. The md5 is that of the parts' own, as S3 has it."""
        numbers = range(len(self._lengths))
        missing = [number + 1 for number in numbers if number not in self._received]
        if missing:
            raise BadUpload(f"parts are missing: {missing}")
        parts = [self._received[number] for number in numbers]
        if etags != [part.md5.hex() for part in parts]:
            raise BadUpload("the parts' checksums are not those of what came")
        whole, sha256 = self._folder / new_id("upload"), hashlib.sha256()
        with whole.open("xb") as writer:
            for part in parts:
                with part.path.open("rb") as reader:
                    while chunk := reader.read(1 << 20):
                        writer.write(chunk)
                        sha256.update(chunk)
                part.path.unlink()
        md5 = hashlib.md5(b"".join(part.md5 for part in parts), usedforsecurity=False)
        return Received(whole, sum(self._lengths), sha256.digest(), md5.digest())
