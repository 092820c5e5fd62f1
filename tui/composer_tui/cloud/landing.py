"""Where a file of a volume's lands on this disk: below the folder that was asked for, or nowhere.

Its names were chosen by others. No link in the folder is followed, and none is made.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

PART_SUFFIX = ".composer-part"
_READ_BYTES = 1 << 20


class UnsafeName(ValueError):  # noqa: N818  # says what it is
    """A path of the volume's that has no place below the folder; the message says why."""


def place_below(root: str, remote: str) -> PurePosixPath:
    """Where below the folder that stands for ``root`` a path belongs. Raises `UnsafeName`.

    The answer has no "..", no root and no empty part; it is "." for ``root`` itself.
    """
    if "\0" in remote:
        raise UnsafeName("its name has a zero byte")
    parts, base = _parts(remote), _parts(root)
    if ".." in parts:
        raise UnsafeName("its name leads out of the folder")
    if parts[: len(base)] != base:
        raise UnsafeName("it does not lie in the folder that was asked for")
    return PurePosixPath(*parts[len(base) :])


def make_folder(folder: Path, inside: PurePosixPath) -> Path:
    """The folder ``inside`` of ``folder``, made if need be. Raises `UnsafeName` and OSError."""
    for part in inside.parts:
        folder /= part
        try:
            folder.mkdir()
        except FileExistsError:
            if folder.is_symlink() or not folder.is_dir():
                raise UnsafeName("a link or a file is where its folder should be") from None
    return folder


@contextlib.contextmanager
def part_file(target: Path, size_bytes: int) -> Iterator[tuple[BinaryIO, Path]]:
    """An empty file beside ``target`` with room for its bytes; gone at the end unless renamed.

    Its name is the same each time, so what a killed download left is used again. Raises
    `UnsafeName` while another one writes it, and OSError when the disk has no room.
    """
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    part = target.with_name(f".{name}{PART_SUFFIX}")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(part, flags, 0o666), "wb") as file:  # noqa: PTH123  # the flags matter
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnsafeName("another download is writing it") from None
        try:
            os.ftruncate(file.fileno(), 0)
            if size_bytes > 0:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            yield file, part
        finally:
            # Under our lock: nobody else can have written it, and a rename has taken it away.
            part.unlink(missing_ok=True)


def is_same(target: Path, size_bytes: int, modified_at: float) -> bool:
    """A plain file of that size and time: what a finished download leaves."""
    try:
        stat = target.lstat()
    except OSError:
        return False
    times = int(stat.st_mtime) == int(modified_at)
    return target.is_file() and not target.is_symlink() and stat.st_size == size_bytes and times


def sha256_of(path: Path) -> str:
    """Of the whole file, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
