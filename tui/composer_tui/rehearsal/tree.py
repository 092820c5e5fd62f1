"""The committed files of a volume, and the private copies that containers work on.

A container writes to its own copy. `commit` carries over what it changed, file by file, each
renamed into place; `pull` brings in what others have committed meanwhile. Where two containers
change the same file, the last commit wins. What was never committed ends with the copy.

These functions block; callers run them in a thread, one at a time for each tree.
"""

import contextlib
import errno
import stat
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from composer_tui.rehearsal import files
from composer_tui.rehearsal.files import Seen, seen
from composer_tui.rehearsal.paths import beneath

# A file that changes twice within one tick of the kernel's clock has the same time twice. A copy
# is therefore taken only of files whose last change is longer ago than this.
TICK_SECONDS = 0.02


class Tree:
    """The committed state: plain files under ``top``, which a person can look at.

    ``staging`` is a folder of the same file system in which files are made ready. All changes go
    through this object: it counts them, so that a working copy knows what it has not seen yet.
    """

    def __init__(self, top: Path, staging: Path) -> None:
        self.top = top
        self.staging = staging
        self.clock = 0
        self._changed_at: dict[PurePosixPath, int] = {}

    def put_copy(self, relative: PurePosixPath, source: Path) -> None:
        """A copy of a file or of a link takes the place of what is there. Raises OSError."""
        self._make_way(relative)
        self._make_room(relative)
        files.put_copy(source, self.top / relative, self.staging)
        self._touch(relative)

    def put(self, relative: PurePosixPath, staged: Path) -> None:
        """A file of the staging folder takes the place of what is there. Raises OSError."""
        self._make_way(relative)
        self._make_room(relative)
        staged.replace(self.top / relative)
        self._touch(relative)

    def make_folder(self, relative: PurePosixPath, permissions: int = 0o755) -> None:
        """A folder is there afterwards, and all above it."""
        self._make_way(relative)
        path = self.top / relative
        if path.is_symlink() or path.is_file():
            path.unlink()
        if not path.is_dir():
            path.mkdir()
        path.chmod(permissions | 0o700)  # this process must be able to change it
        self._touch(relative)

    def remove(self, relative: PurePosixPath) -> None:
        """Removes an entry with all that is in it; nothing happens when it is not there."""
        path = beneath(self.top, relative)
        gone = [relative, *(relative / below for below in files.walk(path))]
        if path.is_dir() and not path.is_symlink():
            files.discard(path)
        else:
            path.unlink(missing_ok=True)
        for each in gone:
            self._touch(each)

    def remove_empty(self, relative: PurePosixPath) -> None:
        """Removes an entry, but never a folder that somebody has put something into."""
        path = self.top / relative
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
            self._touch(relative)

    def changed_since(self, clock: int) -> list[PurePosixPath]:
        """What was put or removed after that time, in the order of names."""
        return sorted(path for path, when in self._changed_at.items() if when > clock)

    def _make_way(self, relative: PurePosixPath) -> None:
        """Folders down to there; a file or a link in the way of one goes."""
        for parent in reversed(relative.parents[:-1]):
            path = self.top / parent
            if path.is_dir() and not path.is_symlink():
                continue
            path.unlink(missing_ok=True)
            path.mkdir()
            self._touch(parent)

    def _make_room(self, relative: PurePosixPath) -> None:
        """A folder in the way of a file goes, with all that is in it."""
        path = self.top / relative
        if path.is_dir() and not path.is_symlink():
            self.remove(relative)

    def _touch(self, relative: PurePosixPath) -> None:
        self.clock += 1
        self._changed_at[relative] = self.clock


class WorkingCopy:
    """One container's own copy of a tree, at ``top``; ``staging`` is beside it."""

    def __init__(self, tree: Tree, top: Path, staging: Path) -> None:
        self.tree = tree
        self.top = top
        self._staging = staging
        self._synced: dict[PurePosixPath, Seen] = {}  # our entries, as of the last time
        self._clock = 0  # of the tree, then
        self._passed_over: set[PurePosixPath] = set()  # committed, but ours was in the way

    def open(self) -> None:
        """Takes everything that is committed now. Raises OSError."""
        self.top.mkdir(parents=True)
        self._staging.mkdir(parents=True, exist_ok=True)
        self._take_all(list(files.walk(self.tree.top)), set())

    def commit(self) -> int:
        """Carries over what was changed here and takes what others committed.

        Returns how many entries were carried over. Raises OSError when a file cannot be read.
        """
        changed, removed = self._changes()
        _settle(self._mtime_ns(relative) for relative in changed)
        for relative in reversed(removed):  # what is in a folder before the folder
            self.tree.remove_empty(relative)
            del self._synced[relative]
        for relative in changed:
            self._give(relative)
        self._take_all(self._news(), {*changed, *removed})
        self._passed_over -= {*changed, *removed}  # the tree has ours now
        return len(changed) + len(removed)

    def pull(self) -> None:
        """Takes what others committed; what was changed here and not committed stays."""
        changed, removed = self._changes()
        self._take_all(self._news(), {*changed, *removed})

    def inodes(self) -> dict[tuple[int, int], PurePosixPath]:
        """Device and inode of every entry here: tells who has one of them open."""
        found = {}
        for relative in [PurePosixPath(), *files.walk(self.top)]:
            with contextlib.suppress(FileNotFoundError):
                status = (self.top / relative).lstat()
                found[status.st_dev, status.st_ino] = relative
        return found

    def _mtime_ns(self, relative: PurePosixPath) -> int:
        try:
            return seen(self.top / relative).mtime_ns
        except OSError:
            return 0

    def _changes(self) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
        """What is new or different here, and what is gone; both in the order of names.

        Raises FileNotFoundError when the whole copy is gone.
        """
        now = {}
        if not self.top.is_dir():  # without it everything would look deleted
            raise FileNotFoundError(errno.ENOENT, "the working copy is gone", str(self.top))
        for relative in files.walk(self.top):
            with contextlib.suppress(FileNotFoundError):
                now[relative] = seen(self.top / relative)
        changed = [path for path, entry in now.items() if self._synced.get(path) != entry]
        return sorted(changed), sorted(path for path in self._synced if path not in now)

    def _give(self, relative: PurePosixPath) -> None:
        """Carries one entry over. What vanishes meanwhile is seen as removed the next time."""
        path = self.top / relative
        try:
            before = seen(path)  # of before the copy: a change during it is found the next time
            if before.kind == stat.S_IFDIR:
                self.tree.make_folder(relative, before.permissions)
            else:
                self.tree.put_copy(relative, path)
        except FileNotFoundError:
            return
        self._synced[relative] = before

    def _news(self) -> list[PurePosixPath]:
        """What others changed since the last time, and what was passed over then."""
        return sorted({*self.tree.changed_since(self._clock), *self._passed_over})

    def _take_all(self, paths: list[PurePosixPath], mine: set[PurePosixPath]) -> None:
        """Takes what is there in the tree, after dropping what is not there any more.

        What is ``mine`` stays as it is, and what is in the way of something of mine stays away.
        """
        self._passed_over = mine.intersection(paths)
        theirs = [path for path in paths if path not in mine]
        there = {path: None for path in theirs if _is_there(self.tree.top / path)}
        for relative in reversed(theirs):  # what is in a folder before the folder
            if relative not in there:
                self._drop(relative)
        for relative in there:
            if not self._take(relative):
                self._passed_over.add(relative)
        _settle(self._mtime_ns(relative) for relative in there)
        self._clock = self.tree.clock

    def _drop(self, relative: PurePosixPath) -> None:
        """Removes one entry here, but never a folder with something of ours in it."""
        path = self.top / relative
        self._synced.pop(relative, None)
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()

    def _take(self, relative: PurePosixPath) -> bool:
        """Takes one entry of the tree; False when something of ours is in its way."""
        source, target = self.tree.top / relative, self.top / relative
        if not self._make_way(relative):
            return False
        if source.is_dir() and not source.is_symlink():
            self._make_folder(relative)
            return True
        if target.is_dir() and not target.is_symlink():
            self._drop(relative)
            if target.is_dir():
                return False
        files.put_copy(source, target, self._staging)
        self._synced[relative] = seen(target)
        return True

    def _make_way(self, relative: PurePosixPath) -> bool:
        """Folders down to there; False when something of ours is in the way of one."""
        for parent in reversed(relative.parents[:-1]):
            path = self.top / parent
            if _is_there(path) and (path.is_symlink() or not path.is_dir()):
                return False
            if not path.is_dir():
                self._make_folder(parent)
        return True

    def _make_folder(self, relative: PurePosixPath) -> None:
        path = self.top / relative
        if _is_there(path) and (path.is_symlink() or not path.is_dir()):
            path.unlink()
        path.mkdir(exist_ok=True)
        path.chmod((self.tree.top / relative).stat().st_mode & 0o777)
        self._synced[relative] = seen(path)


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _settle(mtimes_ns: Iterable[int]) -> None:
    """Waits until a change made after this call cannot have one of these times."""
    newest_ns = max(mtimes_ns, default=0)
    if 0 <= time.time() - newest_ns / 1e9 < TICK_SECONDS:
        time.sleep(TICK_SECONDS)
