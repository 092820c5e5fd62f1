"""The files of a volume, as a client sees them: list, read, remove, copy."""

import asyncio
import contextlib
import os
import stat
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from google.protobuf.empty_pb2 import Empty
from grpclib import Status
from grpclib.server import Stream
from modal_proto import api_pb2

from composer_tui.rehearsal import files
from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.blobs import Blobs
from composer_tui.rehearsal.paths import BadPath, beneath, inside
from composer_tui.rehearsal.rpc import received, refuse, unary
from composer_tui.rehearsal.tree import Tree

BLOCK_BYTES = 8 << 20  # the client's: addresses are handed out block by block
INLINE_BYTES = 2 << 20  # more than this goes through a blob
_BATCH = 500  # entries in one message of a listing
_TYPES = {
    stat.S_IFREG: api_pb2.FileEntry.FILE,
    stat.S_IFDIR: api_pb2.FileEntry.DIRECTORY,
    stat.S_IFLNK: api_pb2.FileEntry.SYMLINK,
}


_GetFile = api_pb2.VolumeGetFileRequest | api_pb2.VolumeGetFile2Request


class SharedTree(NamedTuple):
    """A tree, and the lock that its reader or writer holds while it is in another thread."""

    tree: Tree
    lock: asyncio.Lock


def blocks(start: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts (start, length) of a byte range, cut at multiples of `BLOCK_BYTES`."""
    end = start + length
    while start < end:
        stop = min(end, (start // BLOCK_BYTES + 1) * BLOCK_BYTES)
        yield start, stop - start
        start = stop


class VolumeFiles(Area):
    """The RPCs about committed files. Links are shown, and followed only inside the volume."""

    @abstractmethod
    def tree(self, volume_id: str) -> SharedTree:
        """The volume's committed files. Raises NOT_FOUND."""

    async def VolumeListFiles(
        self, stream: Stream[api_pb2.VolumeListFilesRequest, api_pb2.VolumeListFilesResponse]
    ) -> None:
        request = await received(stream)
        entries = await self._list(request)
        while batch := list(islice(entries, _BATCH)):
            await stream.send_message(api_pb2.VolumeListFilesResponse(entries=batch))

    async def VolumeListFiles2(
        self, stream: Stream[api_pb2.VolumeListFiles2Request, api_pb2.VolumeListFiles2Response]
    ) -> None:
        request = await received(stream)
        entries = await self._list(request)
        while batch := list(islice(entries, _BATCH)):
            await stream.send_message(api_pb2.VolumeListFiles2Response(entries=batch))

    @unary
    async def VolumeGetFile(
        self, request: api_pb2.VolumeGetFileRequest
    ) -> api_pb2.VolumeGetFileResponse:
        path = self._find_file(request)
        with _still_there(request.path):
            size, start, data = await asyncio.to_thread(_read, path, request)
        response = api_pb2.VolumeGetFileResponse(size=size, start=start, len=len(data))
        if len(data) > INLINE_BYTES:
            response.data_blob_id = self.plane.area(Blobs).put(data)
        else:
            response.data = data
        return response

    @unary
    async def VolumeGetFile2(
        self, request: api_pb2.VolumeGetFile2Request
    ) -> api_pb2.VolumeGetFile2Response:
        path = self._find_file(request)
        with _still_there(request.path):
            size, urls = self.plane.area(Blobs).transfers.allow_download(
                path, lambda size: blocks(*_range(request, size))
            )
        start, length = _range(request, size)
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=start, len=length)

    @unary
    async def VolumeRemoveFile(self, request: api_pb2.VolumeRemoveFileRequest) -> Empty:
        await self._remove(request.volume_id, request.path, request.recursive)
        return Empty()

    @unary
    async def VolumeRemoveFile2(self, request: api_pb2.VolumeRemoveFile2Request) -> Empty:
        await self._remove(request.volume_id, request.path, request.recursive)
        return Empty()

    @unary
    async def VolumeCopyFiles(self, request: api_pb2.VolumeCopyFilesRequest) -> Empty:
        await self._copy(request)
        return Empty()

    @unary
    async def VolumeCopyFiles2(self, request: api_pb2.VolumeCopyFiles2Request) -> Empty:
        await self._copy(request)
        return Empty()

    def _find(self, tree: Tree, path: str) -> tuple[PurePosixPath, Path]:
        """An entry that is there, links on the way followed. Raises NOT_FOUND."""
        try:
            relative = inside(path)
            found = beneath(tree.top, relative)
        except BadPath as error:
            refuse(Status.INVALID_ARGUMENT, str(error))
        if not found.exists() and not found.is_symlink():
            refuse(Status.NOT_FOUND, f"No such file or directory: '{path}'")
        return relative, found

    async def _list(
        self, request: api_pb2.VolumeListFilesRequest | api_pb2.VolumeListFiles2Request
    ) -> Iterator[api_pb2.FileEntry]:
        relative, found = self._find(self.tree(request.volume_id).tree, request.path)
        entries = await asyncio.to_thread(_entries, found, relative, request.recursive)
        return islice(entries, request.max_entries if request.HasField("max_entries") else None)

    def _find_file(self, request: _GetFile) -> Path:
        """The file itself, links followed inside the volume. Raises NOT_FOUND."""
        tree = self.tree(request.volume_id).tree
        path = self._find(tree, request.path)[1].resolve()
        if not path.is_relative_to(tree.top.resolve()):
            refuse(Status.NOT_FOUND, f"the link leads outside the volume: '{request.path}'")
        if not path.is_file():
            refuse(Status.NOT_FOUND, f"not a file: '{request.path}'")
        return path

    async def _remove(self, volume_id: str, path: str, recursive: bool) -> None:
        shared = self.tree(volume_id)
        async with shared.lock:
            relative, found = self._find(shared.tree, path)
            if not relative.parts:
                refuse(Status.INVALID_ARGUMENT, "the top of a volume cannot be removed")
            if found.is_dir() and not found.is_symlink() and not recursive:
                refuse(
                    Status.INVALID_ARGUMENT, f"'{path}' is a directory: removing it needs recursive"
                )
            await asyncio.to_thread(shared.tree.remove, relative)

    async def _copy(
        self, request: api_pb2.VolumeCopyFilesRequest | api_pb2.VolumeCopyFiles2Request
    ) -> None:
        """Like cp: into a folder that is there, else to that name in one that is there."""
        shared = self.tree(request.volume_id)
        async with shared.lock:
            try:
                target = inside(request.dst_path)
                into_folder = beneath(shared.tree.top, target).is_dir()
            except BadPath as error:
                refuse(Status.INVALID_ARGUMENT, str(error))
            if len(request.src_paths) != 1 and not into_folder:
                refuse(Status.INVALID_ARGUMENT, f"'{request.dst_path}' is not a directory")
            if not into_folder and not (shared.tree.top / target.parent).is_dir():
                refuse(Status.NOT_FOUND, f"No such directory: '{target.parent}'")
            for source in request.src_paths:
                relative, found = self._find(shared.tree, source)
                copy_to = target / relative.name if into_folder else target
                _check_copy(relative, found, copy_to, shared.tree.top / copy_to, request.recursive)
                await asyncio.to_thread(_copy_tree, shared.tree, relative, copy_to)


def _check_copy(
    relative: PurePosixPath, found: Path, copy_to: PurePosixPath, target: Path, recursive: bool
) -> None:
    """Raises INVALID_ARGUMENT for what cp would not do."""
    problem = ""
    if found.is_dir() and not found.is_symlink():
        if not recursive:
            problem = f"'{relative}' is a directory: copying it needs recursive"
        elif copy_to.is_relative_to(relative):
            problem = f"'{relative}' cannot be copied into itself: '{copy_to}'"
        elif target.is_file():
            problem = f"'{copy_to}' is a file: no directory can be copied over it"
    elif copy_to == relative:
        problem = f"'{relative}' and its copy are the same file"
    elif target.is_dir():
        problem = f"'{copy_to}' is a directory: no file can be copied over it"
    if problem:
        refuse(Status.INVALID_ARGUMENT, problem)


def _entries(found: Path, relative: PurePosixPath, recursive: bool) -> Iterator[api_pb2.FileEntry]:
    """The entry itself for a file or a link, what is in it for a folder."""
    below: Iterable[PurePosixPath] = [PurePosixPath()]
    if found.is_dir() and not found.is_symlink():
        below = files.walk(found, deep=recursive)
    entries = []
    for path in below:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            entries.append(_entry(found / path, relative / path))
    return iter(entries)


def _entry(path: Path, relative: PurePosixPath) -> api_pb2.FileEntry:
    status = path.lstat()
    return api_pb2.FileEntry(
        path=os.fsencode(relative).decode(errors="backslashreplace"),
        type=_TYPES.get(stat.S_IFMT(status.st_mode), api_pb2.FileEntry.UNSPECIFIED),
        mtime=max(0, int(status.st_mtime)),
        size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
    )


@contextlib.contextmanager
def _still_there(path: str) -> Iterator[None]:
    """Tells the client when a file was removed right after it was found."""
    try:
        yield
    except FileNotFoundError:
        refuse(Status.NOT_FOUND, f"No such file or directory: '{path}'")


def _range(request: _GetFile, size: int) -> tuple[int, int]:
    """The part of a file that is asked for: start and length; a length of 0 is to the end."""
    if request.start > size:
        refuse(Status.OUT_OF_RANGE, f"'{request.path}' has only {size} bytes")
    left = size - request.start
    return request.start, min(request.len or left, left)


def _read(path: Path, request: _GetFile) -> tuple[int, int, bytes]:
    """The file's size, and the start and the bytes of the part that is asked for."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start, length = _range(request, size)
        file.seek(start)
        return size, start, file.read(length)


def _copy_tree(tree: Tree, source: PurePosixPath, target: PurePosixPath) -> None:
    top = tree.top / source
    if not top.is_dir() or top.is_symlink():
        tree.put_copy(target, top)
        return
    tree.make_folder(target)
    for below in files.walk(top):
        entry = top / below
        if entry.is_dir() and not entry.is_symlink():
            tree.make_folder(target / below)
        else:
            tree.put_copy(target / below, entry)
