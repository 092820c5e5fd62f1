"""Files and folders on this machine: cheap copies, and putting one in another's place."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from composer_tui.rehearsal.ids import new_id

_FICLONE = 0x40049409  # Linux: share the blocks of two files
_CHUNK_BYTES = 1 << 20
_PERMISSIONS = 0o777


class Seen(NamedTuple):
    """What tells whether an entry is still the same. A folder's times and size say nothing."""

    kind: int  # stat.S_IFMT
    permissions: int
    size_bytes: int = 0
    mtime_ns: int = 0
    inode: int = 0


def seen(path: Path) -> Seen:
    """The entry as it is now, links not followed. Raises OSError."""
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    permissions = status.st_mode & _PERMISSIONS
    if kind == stat.S_IFDIR:
        return Seen(kind, permissions)
    return Seen(kind, permissions, status.st_size, status.st_mtime_ns, status.st_ino)


def walk(top: Path, *, deep: bool = True) -> Iterator[PurePosixPath]:
    """Everything below ``top``, folders before what is in them, in the order of names.

    Not ``deep``: only what is in ``top`` itself.
    Only folders, files and links: sockets, pipes and devices are passed over. What vanishes
    meanwhile is passed over as well.
    """
    yield from _walk(top, PurePosixPath(), deep)


def _walk(folder: Path, relative: PurePosixPath, deep: bool) -> Iterator[PurePosixPath]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_symlink() or entry.is_file(follow_symlinks=False):
            yield relative / entry.name
        elif entry.is_dir(follow_symlinks=False):
            yield relative / entry.name
            if deep:
                yield from _walk(folder / entry.name, relative / entry.name, deep)


def put_copy(source: Path, target: Path, staging: Path) -> None:
    """Copies a file or a link to ``target``, which is as it was, or whole. Raises OSError.

    ``staging`` is a folder of the same file system as ``target``.
    """
    staged = staging / new_id("copy")
    try:
        if source.is_symlink():
            staged.symlink_to(source.readlink())
        else:
            clone(source, staged)
        staged.replace(target)
    except OSError:
        staged.unlink(missing_ok=True)
        raise


def clone(source: Path, target: Path) -> None:
    """Makes ``target``, which must not be there: content, permissions and time of ``source``.

    Shares blocks where the file system can; holes stay holes.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        if not _share_blocks(reader.fileno(), writer.fileno()):
            _copy_data(reader.fileno(), writer.fileno())
        status = os.fstat(reader.fileno())
        os.fchmod(writer.fileno(), status.st_mode & _PERMISSIONS)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def discard(path: Path) -> None:
    """Removes a tree, whatever its permissions are, or nothing when it is not there."""

    def loosen(_function: object, failed: str, info: tuple[object, BaseException, object]) -> None:
        error = info[1]
        if isinstance(error, FileNotFoundError):
            return
        if not isinstance(error, PermissionError):
            raise error
        with contextlib.suppress(OSError):
            Path(failed).parent.chmod(0o700)
            Path(failed).chmod(0o700)
        with contextlib.suppress(FileNotFoundError):
            entry = Path(failed)
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    shutil.rmtree(path, onerror=loosen)


def _share_blocks(reader: int, writer: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    return True


def _copy_data(reader: int, writer: int) -> None:
    """Copies what is between the holes."""
    length = os.fstat(reader).st_size
    os.ftruncate(writer, length)
    offset = 0
    while offset < length:
        try:
            start = os.lseek(reader, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        offset = os.lseek(reader, start, os.SEEK_HOLE)
        _copy_range(reader, writer, start, offset)


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    while start < end:
        chunk = os.pread(reader, min(_CHUNK_BYTES, end - start), start)
        if not chunk:  # it became shorter meanwhile
            return
        view = memoryview(chunk)
        while view:
            written = os.pwrite(writer, view, start)
            view = view[written:]
            start += written
