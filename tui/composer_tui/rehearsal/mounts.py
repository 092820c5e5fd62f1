"""Mounts: the client's local files, kept once for each content, laid out for containers."""

import asyncio
import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec
from grpclib import Status
from modal_proto import api_pb2

from composer_tui.rehearsal import files
from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.blobs import Blobs
from composer_tui.rehearsal.digests import id_of
from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.paths import BadPath, inside
from composer_tui.rehearsal.rpc import refuse, unary
from composer_tui.runs.folder import read_json, write_whole

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"mo-[A-Za-z0-9]{22}")
_DEFAULT_PERMISSIONS = 0o644


class MountedFile(msgspec.Struct, frozen=True, order=True):
    """One file of a mount; ``path`` is relative to the root of a container."""

    path: str
    sha256: str
    permissions: int


class Mounts(Area):
    """Every mount, and the contents that their files have.

    A mount of the same files is the same mount. Those in Modal's global namespace (the client
    itself, standalone Pythons) are known by any name and have no files: a container runs with
    what this machine has.
    """

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._folder = plane.root / "mounts"
        self._contents = self._folder / "contents"

    def restore(self) -> None:
        self._contents.mkdir(parents=True, exist_ok=True)
        for half in self._contents.glob("upload-*"):
            half.unlink()

    def content(self, sha256_hex: str) -> Path:
        """The file with that content. Raises INVALID_ARGUMENT or NOT_FOUND."""
        path = self._content_path(sha256_hex)
        if not path.is_file():
            refuse(Status.NOT_FOUND, f"no file with SHA-256 {sha256_hex} was uploaded")
        return path

    def metadata(self, mount_id: str) -> api_pb2.MountHandleMetadata:
        return api_pb2.MountHandleMetadata(
            content_checksum_sha256_hex=_digest(self._read(mount_id))
        )

    async def unpack(
        self,
        mount_id: str,
        into: Path,
        place: Callable[[str], str | None] | None = None,
    ) -> None:
        """Lays the mount's files out below ``into``. Raises NOT_FOUND or OSError.

        ``place`` tells where a file goes that is not to keep its path; None leaves it out.
        """
        await asyncio.to_thread(self._unpack, self._read(mount_id), into, place or str)

    @unary
    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        response = api_pb2.MountBatchedCheckExistenceResponse(
            missing_sha256_hex_hashes=[
                sha256_hex
                for sha256_hex in request.sha256_hex_hashes
                if not self._content_path(sha256_hex).is_file()
            ]
        )
        response.checked_at.FromNanoseconds(int(self.plane.now() * 1e9))
        return response

    @unary
    async def MountPutFile(
        self, request: api_pb2.MountPutFileRequest
    ) -> api_pb2.MountPutFileResponse:
        path = self._content_path(request.sha256_hex)
        if not path.is_file() and (request.HasField("data") or request.data_blob_id):
            await asyncio.to_thread(self._keep, request, path)
        response = api_pb2.MountPutFileResponse(exists=path.is_file())
        response.checked_at.FromNanoseconds(int(self.plane.now() * 1e9))
        return response

    @unary
    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest
    ) -> api_pb2.MountGetOrCreateResponse:
        if request.deployment_name:
            if request.namespace != api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL or request.files:
                refuse(
                    Status.UNIMPLEMENTED,
                    f"the rehearsal keeps no mounts with names: '{request.deployment_name}'",
                )
            mounted: list[MountedFile] = []
            mount_id = id_of("mo", f"global {request.deployment_name}")
        else:
            mounted = [self._mounted(file) for file in request.files]
            mount_id = id_of("mo", _digest(mounted))
        if not self._index_path(mount_id).exists():
            write_whole(self._index_path(mount_id), msgspec.json.encode(mounted))
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount_id, handle_metadata=self.metadata(mount_id)
        )

    def _mounted(self, file: api_pb2.MountFile) -> MountedFile:
        self.content(file.sha256_hex)
        try:
            path = inside(file.filename)
        except BadPath as error:
            refuse(Status.INVALID_ARGUMENT, str(error))
        permissions = file.mode & 0o777 if file.HasField("mode") else _DEFAULT_PERMISSIONS
        return MountedFile(str(path), file.sha256_hex, permissions)

    def _keep(self, request: api_pb2.MountPutFileRequest, path: Path) -> None:
        """Makes the uploaded bytes a content. Raises INVALID_ARGUMENT when they are others."""
        if request.data_blob_id:
            source = self.plane.area(Blobs).path(request.data_blob_id)
            with source.open("rb") as file:
                sha256_hex = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            source = self._contents / new_id("upload")
            source.write_bytes(request.data)
            sha256_hex = hashlib.sha256(request.data).hexdigest()
        if sha256_hex != request.sha256_hex:
            source.unlink()
            refuse(Status.INVALID_ARGUMENT, "the content's SHA-256 is not the one given")
        path.parent.mkdir(exist_ok=True)
        source.replace(path)

    def _content_path(self, sha256_hex: str) -> Path:
        if not _SHA256.fullmatch(sha256_hex):
            refuse(Status.INVALID_ARGUMENT, f"not a SHA-256 in hexadecimal: {sha256_hex[:80]!r}")
        return self._contents / sha256_hex[:2] / sha256_hex

    def _index_path(self, mount_id: str) -> Path:
        return self._folder / f"{mount_id}.json"

    def _read(self, mount_id: str) -> list[MountedFile]:
        if not _ID.fullmatch(mount_id) or not self._index_path(mount_id).is_file():
            refuse(Status.NOT_FOUND, f"Mount with id '{mount_id}' not found")
        return read_json(self._index_path(mount_id), list[MountedFile])

    def _unpack(
        self, mounted: list[MountedFile], into: Path, place: Callable[[str], str | None]
    ) -> None:
        for file in mounted:
            placed = place(file.path)
            if placed is None:
                continue
            relative = PurePosixPath(inside(placed))
            target = into / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            files.clone(self.content(file.sha256), target)
            target.chmod(file.permissions)


def _digest(mounted: list[MountedFile]) -> str:
    return hashlib.sha256(msgspec.json.encode(sorted(mounted))).hexdigest()
