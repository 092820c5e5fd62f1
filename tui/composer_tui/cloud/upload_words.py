"""What is said while a launch sends the run's model and data to Modal.

Modal's client tells nobody how far it has come, but the kernel knows of every connection how many
bytes of it have arrived. Where the kernel does not say (anywhere but Linux) only the size is told.
"""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from composer_engine.contract import INPUTS_MOUNT
from composer_tui.numbers import memory

SECONDS_BETWEEN_WORDS = 5.0
_LEAST_BYTES = 1 << 18  # what a launch without any upload sends, too
_FDS = Path("/proc/self/fd")
_ACKED_OFFSET, _ACKED_BYTES = 120, 8  # struct tcp_info: tcpi_bytes_acked

Say = Callable[[str], object]


class SentBytes:
    """What this process's TCP connections have delivered, as far as it was asked in time."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}

    def total(self) -> int:
        """Bytes that the other ends have acknowledged; 0 where the kernel does not say."""
        try:
            links = [*_FDS.iterdir()]
        except OSError:
            return 0
        for link in links:
            with contextlib.suppress(OSError):  # closed in the meantime, or no TCP
                opened = str(link.readlink())
                if opened.startswith("socket:"):
                    self._of[opened] = max(self._of.get(opened, 0), _acknowledged(int(link.name)))
        return sum(self._of.values())


class UploadTeller:
    """Says what is sent, and from time to time how much of it has been, until it is left."""

    def __init__(
        self,
        inputs: Sequence[tuple[Path, str]],
        say: Say,
        seconds: float = SECONDS_BETWEEN_WORDS,
    ) -> None:
        """``inputs``: what of this disk is sent, each with its path in the container."""
        self._sizes = [(_noun(remote), size_bytes(local)) for local, remote in inputs]
        self._say, self._seconds = say, seconds
        self._sent, self._before = SentBytes(), 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="upload words", daemon=True)

    def __enter__(self) -> None:
        if self._sizes:
            self._say(first_words(self._sizes))
            self._before = self._sent.total()
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._sizes:
            self._thread.join()

    def _tell(self) -> None:
        total, told = sum(size for _, size in self._sizes), 0
        while not self._over.wait(self._seconds):
            now = self._sent.total() - self._before
            if now > told + _LEAST_BYTES:
                told = now
                self._say(f"uploading: {memory(min(now, total))} of {memory(total)} sent")


def first_words(sizes: Sequence[tuple[str, int]]) -> str:
    """``uploading 98 MiB (model), 3 KiB (data): ...``."""
    parts = ", ".join(f"{memory(size)} ({noun})" for noun, size in sizes)
    return f"uploading {parts}; what Modal has already is not sent again"


def size_bytes(place: Path) -> int:
    """A file's size, or that of all files in a folder, links to files included."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def _noun(remote: str) -> str:
    return PurePosixPath(remote).relative_to(INPUTS_MOUNT).parts[0]


def _acknowledged(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _ACKED_OFFSET + _ACKED_BYTES:
        return 0
    return int(struct.unpack_from("=Q", info, _ACKED_OFFSET)[0])
