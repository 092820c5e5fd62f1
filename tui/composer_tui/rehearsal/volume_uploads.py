"""Uploading to a volume: whole files by their content (version 1), or in blocks (version 2)."""

import asyncio
import hashlib
import os
import time
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from grpclib import Status
from modal_proto import api_pb2

from composer_tui.rehearsal import files
from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.blobs import Blobs
from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.mounts import Mounts
from composer_tui.rehearsal.paths import BadPath, beneath, inside
from composer_tui.rehearsal.rpc import refuse, unary
from composer_tui.rehearsal.transfers import BadUpload, receive_up_to
from composer_tui.rehearsal.tree import Tree
from composer_tui.rehearsal.volume_files import BLOCK_BYTES, SharedTree

_BLOCK_KEEP_SECONDS = 3600.0  # from an uploaded block's last use
_SHA256_BYTES = 32
_EMPTY_SHA256 = hashlib.sha256().digest()  # of a block of zeros: trailing zeros are left out
_DEFAULT_PERMISSIONS = 0o644


class VolumeUploads(Area):
    """The RPCs that put files into a volume. All files of one request are checked first."""

    @abstractmethod
    def tree(self, volume_id: str) -> SharedTree:
        """The volume's committed files. Raises NOT_FOUND."""

    def restore(self) -> None:
        self._blocks.mkdir(exist_ok=True)

    @unary
    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest) -> Empty:
        mounts = self.plane.area(Mounts)
        sources = [mounts.content(file.sha256_hex) for file in request.files]
        shared = self.tree(request.volume_id)
        async with shared.lock:
            targets = _targets(
                shared.tree,
                [file.filename for file in request.files],
                request.disallow_overwrite_existing_files,
            )
            for file, source, target in zip(request.files, sources, targets, strict=True):
                permissions = file.mode & 0o777 if file.HasField("mode") else _DEFAULT_PERMISSIONS
                await asyncio.to_thread(_put_content, shared.tree, target, source, permissions)
        return Empty()

    @unary
    async def VolumePutFiles2(
        self, request: api_pb2.VolumePutFiles2Request
    ) -> api_pb2.VolumePutFiles2Response:
        shared = self.tree(request.volume_id)
        for file in request.files:
            _check_blocks(file)
        async with shared.lock:
            targets = _targets(
                shared.tree,
                [file.path for file in request.files],
                request.disallow_overwrite_existing_files,
            )
            missing = self._missing_blocks(request)
            if not missing:
                for file, target in zip(request.files, targets, strict=True):
                    await asyncio.to_thread(self._put_file, shared.tree, target, file)
        self._sweep_blocks()
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    @property
    def _blocks(self) -> Path:
        return self.plane.root / "blocks"

    def _block_path(self, sha256: bytes) -> Path:
        return self._blocks / sha256.hex()

    def _missing_blocks(
        self, request: api_pb2.VolumePutFiles2Request
    ) -> list[api_pb2.VolumePutFiles2Response.MissingBlock]:
        """Each block that is not here once, with an address for it."""
        asked = {_EMPTY_SHA256}
        missing = []
        for file_index, file in enumerate(request.files):
            for block_index, block in enumerate(file.blocks):
                path = self._block_path(block.contents_sha256)
                if block.contents_sha256 in asked:
                    continue
                asked.add(block.contents_sha256)
                if path.exists():
                    os.utime(path)
                    continue
                missing.append(
                    api_pb2.VolumePutFiles2Response.MissingBlock(
                        file_index=file_index,
                        block_index=block_index,
                        put_url=self._upload_url(block.contents_sha256),
                    )
                )
        return missing

    def _upload_url(self, sha256: bytes) -> str:
        blobs = self.plane.area(Blobs)

        async def put(request: web.Request) -> web.Response:
            received = await receive_up_to(request, blobs.incoming, BLOCK_BYTES)
            if received.sha256 != sha256:
                received.path.unlink()
                raise BadUpload("the block's SHA-256 is not the one that was announced")
            received.path.replace(self._block_path(sha256))
            return web.Response(body=sha256)

        return blobs.transfers.allow("PUT", put)

    def _put_file(
        self, tree: Tree, target: PurePosixPath, file: api_pb2.VolumePutFiles2Request.File
    ) -> None:
        """Puts a file together from its blocks; what a block leaves out at its end are zeros."""
        staged = tree.staging / new_id("upload")
        try:
            with staged.open("xb") as writer:
                for number, block in enumerate(file.blocks):
                    if block.contents_sha256 == _EMPTY_SHA256:
                        continue
                    writer.seek(number * BLOCK_BYTES)
                    writer.write(self._block_path(block.contents_sha256).read_bytes())
                writer.truncate(file.size)
            staged.chmod(file.mode & 0o777 if file.HasField("mode") else _DEFAULT_PERMISSIONS)
            tree.put(target, staged)
        except OSError:
            staged.unlink(missing_ok=True)
            raise

    def _sweep_blocks(self) -> None:
        limit = time.time() - _BLOCK_KEEP_SECONDS
        for path in self._blocks.iterdir():
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)


def _targets(tree: Tree, paths: Iterable[str], keep_existing: bool) -> list[PurePosixPath]:
    """Where the files go. Raises INVALID_ARGUMENT, or ALREADY_EXISTS for one that may not."""
    targets = []
    for path in paths:
        try:
            relative = inside(path)
            there = beneath(tree.top, relative)
        except BadPath as error:
            refuse(Status.INVALID_ARGUMENT, str(error))
        if there.is_dir() and not there.is_symlink():
            refuse(Status.ALREADY_EXISTS, f"'{path}' is a directory and cannot be overwritten")
        if keep_existing and (there.exists() or there.is_symlink()):
            refuse(
                Status.ALREADY_EXISTS,
                f"'{path}' already exists (to overwrite it: --force, or force=True)",
            )
        for parent in relative.parents[:-1]:
            if (tree.top / parent).is_file():
                refuse(Status.ALREADY_EXISTS, f"'{parent}' is a file, so '{path}' cannot be made")
        targets.append(relative)
    return targets


def _put_content(tree: Tree, target: PurePosixPath, source: Path, permissions: int) -> None:
    staged = tree.staging / new_id("upload")
    try:
        files.clone(source, staged)
        os.utime(staged)  # the time of the upload, not that of the same content's first one
        staged.chmod(permissions)
        tree.put(target, staged)
    except OSError:
        staged.unlink(missing_ok=True)
        raise


def _check_blocks(file: api_pb2.VolumePutFiles2Request.File) -> None:
    expected = -(-file.size // BLOCK_BYTES)
    if len(file.blocks) != expected:
        refuse(
            Status.INVALID_ARGUMENT,
            f"'{file.path}' of {file.size} bytes has {expected} blocks, not {len(file.blocks)}",
        )
    if any(len(block.contents_sha256) != _SHA256_BYTES for block in file.blocks):
        refuse(Status.INVALID_ARGUMENT, f"'{file.path}' has a block without a SHA-256")
