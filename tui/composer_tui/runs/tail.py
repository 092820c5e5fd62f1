"""Following a file that grows, wherever it is in its life."""

import os
from pathlib import Path


class Tail:
    """Reads what a file gains. The file may not exist yet, and reading never blocks.

    A file that shrinks, or gives way to another of its name, is read again from its start and
    counted in ``resets``. (One that is cut and has grown past ``offset`` before it is looked at
    again cannot be told from one that has only grown.)
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.resets = 0
        self._fd: int | None = None

    def read(self, limit: int = 1 << 18) -> bytes:
        """At most ``limit`` new bytes; none at the end, or while there is no file to read."""
        if self._fd is None and not self._open():
            return b""
        data = self._read(limit)
        if data or not self._was_replaced():
            return data
        self.resets += 1
        self.offset = 0
        self.close()
        return self._read(limit) if self._open() else b""

    def close(self) -> None:
        """Lets go of the file; a later read opens it again where it was."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> bool:
        # O_NONBLOCK: opening a pipe of that name must not wait for its writer.
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        return True

    def _read(self, limit: int) -> bytes:
        if self._fd is None:
            return b""
        try:
            data = os.pread(self._fd, limit, self.offset)
        except OSError:  # a stale handle, a folder: nothing to read now, perhaps later
            self.close()
            return b""
        self.offset += len(data)
        return data

    def _was_replaced(self) -> bool:
        """At the end of what there is: the open file is shorter than before, or another's now."""
        if self._fd is None:
            return False
        ours = os.fstat(self._fd)
        if ours.st_size < self.offset:
            return True
        try:
            named = self.path.stat()
        except OSError:
            return False
        return (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino)
