"""A container's view of the file system: this machine's folders, with its own laid over them.

Runs between the fork and the exec of a container, so it imports nothing but the standard library.

Where the kernel allows it, the container gets a mount namespace: a root of its own, made of bind
mounts of this machine's top-level folders, in which any path can be a mount point and nothing is
made on the machine itself. Elsewhere the mount points outside of the home folder are symbolic
links, made only where nothing is there, and removed afterwards.
"""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HOME = "/root"  # a container's home and working folder, as on Modal
SCRATCH = "/__modal"  # where a container finds what the control plane has for it

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_NOATIME, _MS_NODIRATIME, _MS_BIND, _MS_REC, _MS_PRIVATE = 1024, 2048, 4096, 16384, 1 << 18
_MS_RELATIME = 1 << 21
_KEPT_FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOATIME | _MS_NODIRATIME | _MS_RELATIME
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class SandboxRefused(OSError):  # noqa: N818  # says what is the matter
    """The container cannot have the file system it asked for; the message is one line."""


class Bind(NamedTuple):
    """A file or folder of this machine, seen by the container at an absolute path."""

    source: str
    target: str
    read_only: bool = False


def isolate(scaffold: str, binds: Sequence[Bind]) -> None:
    """Gives this process a root of its own. ``scaffold`` is an empty folder to build it on.

    Later binds cover earlier ones. Raises OSError where the kernel does not allow it.
    """
    _unshare()
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", scaffold, "tmpfs", 0, "mode=755")
    root = _Root(scaffold)
    for entry in Path("/").iterdir():
        root.show(str(entry), scaffold + str(entry))
    for bind in binds:
        root.bind(bind)
    os.chroot(scaffold)
    os.chdir("/")


def is_available() -> bool:
    """Whether `isolate` works on this machine. Tries it, in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _unshare()
            _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
            _mount("tmpfs", "/tmp", "tmpfs", 0, "mode=755")  # noqa: S108  # in a namespace of its own
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


class _Root:
    """The new root while it is being built. Paths that are ours may be written to."""

    def __init__(self, scaffold: str) -> None:
        self._scaffold = scaffold
        self._ours = {scaffold}

    def show(self, source: str, place: str) -> None:
        """Makes one entry of this machine visible at a place that is ours."""
        mode = os.lstat(source).st_mode
        if stat.S_ISLNK(mode):
            Path(place).symlink_to(Path(source).readlink())
            return
        self._make(place, is_folder=stat.S_ISDIR(mode))
        _mount(source, place, None, _MS_BIND | _MS_REC)

    def bind(self, bind: Bind) -> None:
        """Lays a source over a path, which is made where it is not there."""
        parent, name = os.path.split(os.path.normpath(bind.target))
        is_folder = Path(bind.source).is_dir()
        place = self._scaffold
        for part in filter(None, _real(parent).split("/")):
            place = self._step(place, part, is_folder=True)
        place = self._step(place, name, is_folder=is_folder)
        _mount(bind.source, place, None, _MS_BIND | _MS_REC)
        if bind.read_only:
            kept = os.statvfs(place).f_flag & _KEPT_FLAGS
            _mount(None, place, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)
        elif bind.target == HOME:
            self._ours.add(place)

    def _step(self, folder: str, name: str, *, is_folder: bool) -> str:
        """The entry of that name, made where there is none."""
        place = f"{folder}/{name}"
        if not os.path.lexists(place):
            self._claim(folder)
            self._make(place, is_folder=is_folder)
            self._ours.add(place)
        return place

    def _claim(self, folder: str) -> None:
        """Makes a folder of this machine ours: the same entries, in a folder of memory."""
        if folder in self._ours:
            return
        original = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            entries = f"/proc/self/fd/{original}"
            names = [entry.name for entry in Path(entries).iterdir()]
            _mount("tmpfs", folder, "tmpfs", 0, "mode=755")
            for name in names:
                self.show(f"{entries}/{name}", f"{folder}/{name}")
        finally:
            os.close(original)
        self._ours.add(folder)

    @staticmethod
    def _make(place: str, *, is_folder: bool) -> None:
        if is_folder:
            Path(place).mkdir(exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))


def link(binds: Sequence[Bind]) -> list[str]:
    """Makes symbolic links instead of mounts; answers those it made. Raises `SandboxRefused`."""
    made: list[str] = []
    for bind in binds:
        path = Path(bind.target)
        try:
            if os.path.lexists(path):
                raise SandboxRefused(
                    errno.EEXIST,
                    f"{path} exists on this machine, and it allows no mount namespaces: "
                    "the rehearsal cannot put a mount there",
                )
            path.symlink_to(bind.source)
        except OSError as error:
            unlink(made)
            if isinstance(error, SandboxRefused):
                raise
            raise SandboxRefused(
                error.errno,
                f"{path} cannot be made ({error.strerror}), and this machine allows no mount "
                "namespaces: the rehearsal cannot put a mount there",
            ) from error
        made.append(bind.target)
    return made


def unlink(links: Sequence[str]) -> None:
    """Removes the links that `link` made."""
    for path in links:
        if Path(path).is_symlink():
            Path(path).unlink()


def adopt_orphans() -> None:
    """From now on every descendant whose parent dies becomes a child of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signal_number: int) -> None:
    """Has the kernel send the signal when the parent dies. Ends here when it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def _unshare() -> None:
    """A mount namespace: as it is for root, else inside of a user namespace."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _libc.unshare(_CLONE_NEWNS) == 0:
        return
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _real(folder: str) -> str:
    """The folder without symbolic links; those of the home folder are the container's own."""
    if folder == HOME or folder.startswith(HOME + "/"):
        return folder
    return os.path.realpath(folder)


def _write(path: str, text: str) -> None:
    with Path(path).open("w") as file:
        file.write(text)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str = ""
) -> None:
    _check(
        _libc.mount(
            source.encode() if source else None,
            target.encode(),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        target,
    )


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0))


def _check(result: int, path: str = "") -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path or None)


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else ctypes.CDLL(None)
