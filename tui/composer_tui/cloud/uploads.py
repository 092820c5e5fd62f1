"""Files from this disk to a volume."""

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from composer_tui.cloud.downloads import verified
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.transfer import Moved, OnBytes, run
from composer_tui.cloud.volumes import CALL_SECONDS, entries_at, open_volume

if TYPE_CHECKING:
    from modal import Volume

SLOWEST_BYTES_PER_SECOND = 50_000  # an upload that is slower has failed
_BATCH_FILES, _BATCH_BYTES = 200, 64 << 20


class Upload(NamedTuple):
    """One file to be sent: ``remote`` is its path on the volume, without a leading slash."""

    local: Path
    remote: str
    size_bytes: int


class Plan(NamedTuple):
    """What is to be sent, and what is not and why."""

    uploads: list[Upload]
    left_out: list[Moved]


def plan_put(local: Path, remote: str) -> Plan:
    """A folder's files keep their places below ``remote``; one file becomes ``remote``, or lies in
    it if that ends with a slash. Links to folders are not followed, links to files are sent as the
    files. Raises OSError, and ValueError for a path that no volume has.
    """
    parts = [part for part in remote.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in remote:
        raise ValueError("a path on a volume has no '..' in it")
    place = PurePosixPath(*parts)
    if local.is_dir():
        found = [(path, place / path.relative_to(local)) for path in _walk(local)]
    else:
        found = [(local, place / local.name if not parts or remote.endswith("/") else place)]
    uploads: list[Upload] = []
    left_out: list[Moved] = []
    for path, target in found:
        if why := _unsendable(path, str(target)):
            moved = Moved(remote=str(target), local=str(path), outcome="left_out", why=why)
            left_out.append(moved)
        else:
            uploads.append(Upload(path, str(target), path.stat().st_size))
    return Plan(uploads, left_out)


def put(
    volume: str,
    uploads: Sequence[Upload],
    *,
    create: bool = False,
    force: bool = False,
    verify: bool = False,
    on_bytes: OnBytes = lambda _path, _count: None,
) -> list[Moved]:
    """Sends files, in batches that each come to be as a whole.

    Modal is told the sha256 of each file (or block) and asks for what it has not: an upload that
    was cut short goes on cheaply with ``force``. Without ``force`` nothing is sent when any of the
    files is there already. ``verify`` reads all of them back; ``create`` makes a volume that is not
    there.

    Raises `CloudProblem` and OSError.
    """

    async def work() -> list[Moved]:
        handle = open_volume(volume, create=create)
        async with asyncio.timeout(CALL_SECONDS):
            await handle.hydrate.aio()
        if not force:
            await _require_absent(handle, volume, uploads)
        done: list[Moved] = []
        for batch in batches(uploads):
            await _put_batch(handle, batch, force=force)
            for upload in batch:
                on_bytes(upload.remote, upload.size_bytes)
            done += map(_uploaded, batch)
        return [await verified(handle, moved) for moved in done] if verify else done

    return run(work())


def batches(uploads: Sequence[Upload]) -> Iterator[list[Upload]]:
    """The same files in the same order, some at a time."""
    batch: list[Upload] = []
    size = 0
    for upload in uploads:
        if batch and (len(batch) >= _BATCH_FILES or size + upload.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(upload)
        size += upload.size_bytes
    if batch:
        yield batch


async def _put_batch(handle: "Volume", batch: Sequence[Upload], *, force: bool) -> None:
    size = sum(upload.size_bytes for upload in batch)
    try:
        async with asyncio.timeout(CALL_SECONDS * 4 + size / SLOWEST_BYTES_PER_SECOND):
            async with handle.batch_upload.aio(force=force) as sending:
                for upload in batch:
                    sending.put_file(upload.local, f"/{upload.remote}")
    except FileExistsError as error:
        raise _already(str(error)) from None


async def _require_absent(handle: "Volume", volume: str, uploads: Sequence[Upload]) -> None:
    wanted = {upload.remote for upload in uploads}
    top = {PurePosixPath(path).parts[0] for path in wanted}
    there: list[str] = []
    for entry in await entries_at(handle, volume, "/", recursive=False):
        if entry.path.strip("/") not in top:
            continue
        if entry.kind == "folder":
            below = await entries_at(handle, volume, entry.path, recursive=True)
            there += [inner.path.strip("/") for inner in below if inner.kind != "folder"]
        else:
            there.append(entry.path.strip("/"))
    if clash := sorted(wanted.intersection(there)):
        raise _already(f"{clash[0]} and {len(clash) - 1} more" if clash[1:] else clash[0])


def _already(which: str) -> CloudProblem:
    hint = "--force replaces them; what Modal has already is not sent again"
    return CloudProblem(problem("refused", f"the volume has {which} already", hint))


def _uploaded(upload: Upload) -> Moved:
    return Moved(
        remote=upload.remote,
        local=str(upload.local),
        outcome="uploaded",
        size_bytes=upload.size_bytes,
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Everything in it that is no folder, links to folders included, in the order of names."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]  # noqa: PTH114, PTH118
        yield from (Path(root, name) for name in sorted(files + links))


def _unsendable(path: Path, remote: str) -> str:
    """Why a file cannot be sent, or ''. Raises OSError for one that is not there."""
    if not remote.isprintable() and any(map(_is_surrogate, remote)):
        return "its name is not UTF-8"
    if path.is_symlink() and not path.exists():
        return "it is a link to nothing"
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "it is a link to a folder"
    return "" if stat.S_ISREG(mode) else "it is no file"


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"
