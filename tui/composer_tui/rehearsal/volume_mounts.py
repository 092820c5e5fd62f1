"""The working copies that containers have of volumes: opened, committed, reloaded, dropped."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from grpclib import Status

from composer_tui.rehearsal import files
from composer_tui.rehearsal.paths import BadPath, inside
from composer_tui.rehearsal.rpc import refuse
from composer_tui.rehearsal.tree import WorkingCopy
from composer_tui.rehearsal.volume_files import SharedTree


class _Mount(NamedTuple):
    """One container's copy of one volume."""

    shared: SharedTree
    copy: WorkingCopy
    read_only: bool


class VolumeMounts:
    """All working copies, in ``folder/TASK/VOLUME``.

    A copy is looked up again once its tree's lock is held: one that was dropped meanwhile would
    look as if its container had deleted everything.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mounts: dict[tuple[str, str], _Mount] = {}  # by task and volume

    async def open(
        self, shared: SharedTree, volume_id: str, task_id: str, read_only: bool, sub_path: str
    ) -> Path:
        """The folder to bind at the mount path. Raises INVALID_ARGUMENT or OSError."""
        try:
            below = inside(sub_path)
        except BadPath as error:
            refuse(Status.INVALID_ARGUMENT, str(error))
        key = (task_id, volume_id)
        async with shared.lock:
            if key not in self._mounts:
                of_task = self._folder / task_id
                copy = WorkingCopy(shared.tree, of_task / volume_id, of_task / "staging")
                await asyncio.to_thread(copy.open)
                self._mounts[key] = _Mount(shared, copy, read_only)
            mount = self._mounts[key]
            self._mounts[key] = mount._replace(read_only=mount.read_only and read_only)
        mounted = mount.copy.top / below
        mounted.mkdir(parents=True, exist_ok=True)
        return mounted

    async def drop(self, task_id: str) -> None:
        """The container is gone, and with it what it did not commit."""
        for key in [key for key in self._mounts if key[0] == task_id]:
            async with self._mounts[key].shared.lock:  # a commit that has begun ends first
                mount = self._mounts.pop(key)
                await asyncio.to_thread(files.discard, mount.copy.top)
        await asyncio.to_thread(files.discard, self._folder / task_id)

    async def commit(self, volume_id: str, task_id: str) -> int:
        """Commits a container's changes; returns how many entries.

        Raises FAILED_PRECONDITION when the container does not mount the volume, or a file of it
        cannot be read; NOT_FOUND when the volume was deleted.
        """
        async with self._find(volume_id, task_id).shared.lock:
            mount = self._find(volume_id, task_id)
            if not mount.shared.tree.top.is_dir():
                refuse(Status.NOT_FOUND, f"Volume with id '{volume_id}' not found")
            if mount.read_only:
                return 0
            try:
                return await asyncio.to_thread(mount.copy.commit)
            except OSError as error:
                name = Path(os.fsdecode(error.filename)).name if error.filename else "a file"
                refuse(
                    Status.FAILED_PRECONDITION,
                    f"the volume could not be committed: {name}: {error.strerror}",
                )

    async def reload(self, volume_id: str, task_id: str) -> None:
        """Brings in what others committed. Raises FAILED_PRECONDITION while a file is open."""
        async with self._find(volume_id, task_id).shared.lock:
            copy = self._find(volume_id, task_id).copy
            user = await asyncio.to_thread(_in_use, copy)
            if user is not None:
                refuse(
                    Status.FAILED_PRECONDITION,
                    f"there are open files preventing the operation: {user}",
                )
            await asyncio.to_thread(copy.pull)

    def _find(self, volume_id: str, task_id: str) -> _Mount:
        mount = self._mounts.get((task_id, volume_id))
        if mount is None:
            refuse(
                Status.FAILED_PRECONDITION,
                "commit() and reload() work only inside a container that mounts the volume",
            )
        return mount


def _in_use(copy: WorkingCopy) -> str | None:
    """In words, what of the working copy some process uses; None when none does.

    A process that works in one of its folders counts as well. Only processes of this user can be
    looked at; others cannot have the copy open.
    """
    inodes = copy.inodes()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for link in (process / "cwd", *(process / "fd").iterdir()):
                with contextlib.suppress(OSError):
                    status = link.stat()
                    relative = inodes.get((status.st_dev, status.st_ino))
                    if relative is not None and link.name == "cwd":
                        return "cwd is inside volume"
                    if relative is not None:
                        return f"path {relative} is open"
    return None
