"""Files from a volume to this disk: whole, checked, or not at all."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from composer_tui.cloud.landing import (
    UnsafeName,
    is_same,
    make_folder,
    part_file,
    place_below,
    sha256_of,
)
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.transfer import Moved, OnBytes, run, together, unstalled
from composer_tui.cloud.volumes import Entry, entries_at, open_volume

if TYPE_CHECKING:
    from modal import Volume

STALL_SECONDS = 60.0  # a download in which nothing moves for so long has failed
AT_ONCE = 8  # files read at the same time

OnStart = Callable[[Sequence[Entry]], object]


class _Wish(NamedTuple):
    verify: bool
    force: bool
    on_bytes: OnBytes


def get(
    volume: str,
    remote: str,
    local: Path,
    *,
    verify: bool = False,
    force: bool = False,
    on_start: OnStart = lambda _: None,
    on_bytes: OnBytes = lambda _path, _count: None,
) -> list[Moved]:
    """Downloads a file to ``local``, or what a folder holds into the folder ``local``.

    A file that is here already with the volume's size and time is kept; another one at its place is
    replaced only with ``force``. Each is written under a temporary name and renamed when whole, so
    a download that was cut short leaves whole files or none, and goes on with the first that is
    missing: Modal's client offers no part of a file. ``verify`` reads everything a second time.

    Raises `CloudProblem` and OSError. What has no safe place here is left out, and says why.
    """

    async def work() -> list[Moved]:
        handle = open_volume(volume)
        entries = await entries_at(handle, volume, remote, recursive=True)
        on_start([entry for entry in entries if entry.kind == "file"])
        wish = _Wish(verify, force, on_bytes)
        if _is_one_file(remote, entries):
            _make_parents(local.parent)
            only = _landed(handle, entries[0], local.parent, PurePosixPath(local.name), wish)
            return [moved for moved in [await only] if moved]
        _make_parents(local)
        return await _get_folder(handle, remote, entries, local, wish)

    return run(work())


def _is_one_file(remote: str, entries: Sequence[Entry]) -> bool:
    if len(entries) != 1 or entries[0].kind != "file":
        return False
    return entries[0].path.strip("/") == remote.strip("/")


async def _get_folder(
    handle: "Volume", remote: str, entries: Sequence[Entry], folder: Path, wish: _Wish
) -> list[Moved]:
    done: dict[int, Moved] = {}
    waiting = list(enumerate(entries))[::-1]

    async def worker() -> None:
        while waiting:
            index, entry = waiting.pop()
            try:
                inside = place_below(remote, entry.path)
            except UnsafeName as error:
                done[index] = _left_out(entry, str(error))
                continue
            if moved := await _landed(handle, entry, folder, inside, wish):
                done[index] = moved

    await together(worker() for _ in range(min(AT_ONCE, len(entries))))
    return [moved for _, moved in sorted(done.items())]


async def _landed(
    handle: "Volume", entry: Entry, folder: Path, inside: PurePosixPath, wish: _Wish
) -> Moved | None:
    """What became of one entry; None for a folder."""
    try:
        if entry.kind == "folder":
            make_folder(folder, inside)
            return None
        if entry.kind != "file" or not inside.name:
            return _left_out(entry, "it is a link" if entry.kind == "link" else "it is no file")
        target = make_folder(folder, inside.parent) / inside.name
        return await _fetched(handle, entry, target, wish)
    except UnsafeName as error:
        return _left_out(entry, str(error))
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        return _left_out(entry, "a folder or another file is in its place")


async def _fetched(handle: "Volume", entry: Entry, target: Path, wish: _Wish) -> Moved:
    moved = Moved(remote=entry.path, local=str(target), outcome="kept", size_bytes=entry.size_bytes)
    if is_same(target, entry.size_bytes, entry.modified_at):
        wish.on_bytes(entry.path, entry.size_bytes)
    elif _is_there(target) and not wish.force:
        return _left_out(entry, f"{target} is there, of another time or size; --force replaces it")
    else:
        digest = await _download(handle, entry, target, wish.on_bytes)
        moved = msgspec.structs.replace(moved, outcome="downloaded", sha256=digest)
    return await verified(handle, moved) if wish.verify else moved


async def _download(handle: "Volume", entry: Entry, target: Path, on_bytes: OnBytes) -> str:
    """Its sha256. The target is there whole, with the volume's time, or as it was before."""
    digest, size = hashlib.sha256(), 0
    with part_file(target, entry.size_bytes) as (file, part):
        async for chunk in _chunks(handle, entry.path):
            size += len(chunk)
            if size > entry.size_bytes:
                break
            digest.update(chunk)
            file.write(chunk)
            on_bytes(entry.path, len(chunk))
        if size != entry.size_bytes:
            raise _changed(entry.path, f"{entry.size_bytes} bytes were listed, others came")
        file.flush()
        os.fsync(file.fileno())
        os.utime(part, (time.time(), entry.modified_at))
        part.replace(target)
    return digest.hexdigest()


async def verified(handle: "Volume", moved: Moved) -> Moved:
    """Both sides are read again. Raises `CloudProblem` where they differ."""
    there = hashlib.sha256()
    async for chunk in _chunks(handle, moved.remote):
        there.update(chunk)
    here = await asyncio.to_thread(sha256_of, Path(moved.local))
    if here != there.hexdigest():
        raise _changed(moved.remote, f"its bytes are not those of {moved.local}")
    return msgspec.structs.replace(moved, sha256=here, verified=True)


async def _chunks(handle: "Volume", path: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in unstalled(aiter(handle.read_file.aio(path)), STALL_SECONDS):
            yield chunk
    except FileNotFoundError:
        raise _changed(path, "it is gone") from None


def _make_parents(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _left_out(entry: Entry, why: str) -> Moved:
    return Moved(
        remote=entry.path, local="", outcome="left_out", size_bytes=entry.size_bytes, why=why
    )


def _changed(path: str, how: str) -> CloudProblem:
    hint = "it changed meanwhile, or came damaged: try again"
    return CloudProblem(problem("server", f"{path}: {how}", hint))
