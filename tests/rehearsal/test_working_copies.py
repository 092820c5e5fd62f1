"""Working copies of a volume: what is committed is kept, what is not ends with its container."""

import os
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_tui.rehearsal import files
from composer_tui.rehearsal.paths import BadPath, beneath, inside
from composer_tui.rehearsal.tree import Tree, WorkingCopy

FILES = ("a", "d/a", "d/e/f")  # none is a folder of another


@dataclass
class Volume:
    """A tree and its copies; files get distinct times of long ago, so that nothing must wait."""

    root: Path
    copies: dict[int, WorkingCopy] = field(default_factory=dict)
    ticks: int = 0

    def __post_init__(self) -> None:
        for name in ("tree", "staging"):
            (self.root / name).mkdir()
        self.tree = Tree(self.root / "tree", self.root / "staging")

    def open(self, number: int) -> WorkingCopy:
        self.ticks += 1
        top = self.root / f"copy-{number}-{self.ticks}"
        self.copies[number] = WorkingCopy(self.tree, top, self.root / "staging")
        self.copies[number].open()
        return self.copies[number]

    def write(self, path: Path, data: bytes) -> None:
        self.ticks += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1e9 + self.ticks, 1e9 + self.ticks))

    def upload(self, relative: str, data: bytes) -> None:
        staged = self.root / "staging" / "upload"
        self.write(staged, data)
        self.tree.put(PurePosixPath(relative), staged)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def contents(top: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    found = {}
    for relative in files.walk(top):
        if (top / relative).is_file():
            found[str(relative)] = (top / relative).read_bytes()
    return found


@dataclass
class Expected:
    """A container's view, as the rules have it."""

    view: dict[str, bytes]
    synced: set[str]
    dirty: set[str] = field(default_factory=set)

    def write(self, path: str, data: bytes) -> None:
        self.view[path] = data
        self.dirty.add(path)

    def delete(self, path: str) -> None:
        if self.view.pop(path, None) is not None:
            (self.dirty.add if path in self.synced else self.dirty.discard)(path)

    def pull(self, committed: dict[str, bytes]) -> None:
        for path in FILES:
            if path in self.dirty:
                continue
            if path in committed:
                self.view[path] = committed[path]
                self.synced.add(path)
            else:
                self.view.pop(path, None)
                self.synced.discard(path)

    def commit(self, committed: dict[str, bytes]) -> None:
        for path in self.dirty:
            if path in self.view:
                committed[path] = self.view[path]
            else:
                committed.pop(path, None)
        self.dirty.clear()
        self.synced = set(self.view)
        self.pull(committed)


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "kill", "upload", "remove", "pull"]
            + ["write", "delete", "commit"] * 3  # the more often, the more of them in a row
        ),
        st.integers(0, 1),
        st.sampled_from(FILES),
        st.binary(max_size=2),
    ),
    min_size=12,
    max_size=30,
)


@settings(max_examples=80)
@given(steps=steps)
def test_exactly_what_was_committed_is_kept(
    steps: list[tuple[str, int, str, bytes]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volume = Volume(Path(folder))
        committed: dict[str, bytes] = {}
        expected: dict[int, Expected] = {}
        for verb, number, path, data in steps:
            if verb == "upload":
                volume.upload(path, data)
                committed[path] = data
            elif verb == "remove":
                volume.tree.remove(PurePosixPath(path))
                committed.pop(path, None)
            elif verb == "open" or number not in volume.copies:
                volume.open(number)
                expected[number] = Expected(dict(committed), set(committed))
            else:
                copy, view = volume.copies[number], expected[number]
                if verb == "write":
                    volume.write(copy.top / path, data)
                    view.write(path, data)
                elif verb == "delete":
                    (copy.top / path).unlink(missing_ok=True)
                    view.delete(path)
                elif verb == "commit":
                    copy.commit()
                    view.commit(committed)
                elif verb == "pull":
                    copy.pull()
                    view.pull(committed)
                elif verb == "kill":
                    shutil.rmtree(copy.top)
                    del volume.copies[number], expected[number]
            assert contents(volume.tree.top) == committed
            for each, copy in volume.copies.items():
                assert contents(copy.top) == expected[each].view
        assert list(volume.tree.staging.iterdir()) == []


def test_what_stood_behind_a_file_of_ours_is_taken_once_that_is_gone(volume: Volume) -> None:
    ours, theirs = volume.open(0), volume.open(1)
    volume.write(ours.top / "log", b"ours")
    volume.write(theirs.top / "log", b"theirs")
    theirs.commit()
    ours.pull()
    assert contents(ours.top) == {"log": b"ours"}
    (ours.top / "log").unlink()
    ours.commit()
    assert contents(ours.top) == contents(volume.tree.top) == {"log": b"theirs"}


def test_a_file_deleted_once_is_not_deleted_for_ever(volume: Volume) -> None:
    ours, theirs = volume.open(0), volume.open(1)
    volume.write(ours.top / "log", b"first")
    ours.commit()
    (ours.top / "log").unlink()
    ours.commit()
    volume.write(theirs.top / "log", b"second")
    theirs.commit()
    ours.commit()
    assert contents(volume.tree.top) == {"log": b"second"}


def test_what_others_deleted_and_made_anew_is_not_deleted_by_us(volume: Volume) -> None:
    ours, theirs = volume.open(0), volume.open(1)
    for data in (b"first", None, b"second"):
        if data is None:
            (theirs.top / "log").unlink()
        else:
            volume.write(theirs.top / "log", data)
        theirs.commit()
        if data != b"second":
            ours.pull()
    ours.commit()
    assert contents(ours.top) == contents(volume.tree.top) == {"log": b"second"}


def test_a_file_in_place_of_a_folder_is_taken_with_all_that_this_means(volume: Volume) -> None:
    ours, theirs = volume.open(0), volume.open(1)
    volume.write(ours.top / "run" / "deep" / "log", b"log")
    ours.commit()
    theirs.pull()
    shutil.rmtree(theirs.top / "run")
    volume.write(theirs.top / "run", b"file")
    volume.write(ours.top / "run" / "deep" / "more", b"more")
    ours.commit()
    theirs.commit()
    ours.pull()
    assert shape(ours.top) == shape(volume.tree.top) == {"run": b"file"}


def test_a_folder_behind_a_file_of_ours_is_taken_once_that_is_gone(volume: Volume) -> None:
    ours, theirs = volume.open(0), volume.open(1)
    volume.write(ours.top / "run", b"ours")
    volume.write(theirs.top / "run" / "log", b"theirs")
    theirs.commit()
    ours.pull()
    assert contents(ours.top) == {"run": b"ours"}
    (ours.top / "run").unlink()
    ours.pull()
    assert contents(ours.top) == {"run/log": b"theirs"}


def test_a_deleted_folder_goes_with_all_that_is_in_it(volume: Volume) -> None:
    copy = volume.open(0)
    volume.write(copy.top / "run" / "checkpoints" / "step-1", b"1")
    copy.commit()
    shutil.rmtree(copy.top / "run")
    copy.commit()
    assert shape(volume.tree.top) == {}


@settings(max_examples=80)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["write", "folder", "link", "delete", "commit", "commit", "pull"]),
            st.integers(0, 1),
            st.sampled_from(["a", "a/b", "a/b/c"]),
        ),
        min_size=12,
        max_size=30,
    )
)
def test_a_committed_copy_is_the_volume_whatever_stands_in_whose_way(
    steps: list[tuple[str, int, str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volume = Volume(Path(folder))
        for number in range(2):
            volume.open(number)
        for verb, number, path in steps:
            copy = volume.copies[number]
            target = copy.top / path
            if verb == "commit":
                copy.commit()
                assert shape(copy.top) == shape(volume.tree.top)
            elif verb == "pull":
                copy.pull()
            elif verb == "delete":
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                elif target.is_symlink() or target.exists():
                    target.unlink()
            elif target.parent.is_dir() and not target.is_symlink() and not target.exists():
                if verb == "write":
                    volume.write(target, b"x")
                elif verb == "folder":
                    target.mkdir()
                else:
                    target.symlink_to("nowhere")


def shape(top: Path) -> dict[str, object]:
    """Every entry: a file's bytes, a link's target, None for a folder."""
    found: dict[str, object] = {}
    for relative in files.walk(top):
        path = top / relative
        if path.is_symlink():
            found[str(relative)] = str(path.readlink())
        else:
            found[str(relative)] = path.read_bytes() if path.is_file() else None
    return found


def test_a_copy_that_is_gone_does_not_take_the_volume_with_it(volume: Volume) -> None:
    copy = volume.open(0)
    volume.write(copy.top / "model", b"model")
    copy.commit()
    shutil.rmtree(copy.top)
    with pytest.raises(FileNotFoundError):
        copy.commit()
    assert contents(volume.tree.top) == {"model": b"model"}


def test_a_change_right_after_a_commit_is_not_overlooked(volume: Volume) -> None:
    copy = volume.open(0)
    log = copy.top / "log"
    for number in range(30):  # the same size each time, and faster than the clock of files ticks
        log.write_text(f"{number:4}")
        copy.commit()
        assert contents(volume.tree.top) == {"log": f"{number:4}".encode()}


def test_what_is_read_while_others_commit_is_whole(volume: Volume) -> None:
    copy = volume.open(0)
    volume.write(copy.top / "model", b"1" * 100_000)
    copy.commit()
    with (volume.tree.top / "model").open("rb") as reader:
        volume.write(copy.top / "model", b"2" * 50_000)
        copy.commit()
        assert reader.read() == b"1" * 100_000


def test_permissions_links_and_empty_folders_come_along(volume: Volume) -> None:
    copy = volume.open(0)
    volume.write(copy.top / "run.sh", b"#!/bin/sh\n")
    (copy.top / "run.sh").chmod(0o755)
    (copy.top / "latest").symlink_to("run.sh")
    (copy.top / "empty").mkdir(mode=0o700)
    copy.commit()
    other = volume.open(1)
    assert stat.S_IMODE((other.top / "run.sh").stat().st_mode) == 0o755
    assert (other.top / "latest").readlink() == Path("run.sh")
    assert (other.top / "empty").is_dir()


def test_a_changed_permission_is_a_change(volume: Volume) -> None:
    copy = volume.open(0)
    volume.write(copy.top / "key", b"k")
    copy.commit()
    (copy.top / "key").chmod(0o600)
    assert copy.commit() == 1
    assert stat.S_IMODE((volume.tree.top / "key").stat().st_mode) == 0o600
    assert copy.commit() == 0


def test_pipes_and_sockets_are_passed_over(volume: Volume) -> None:
    copy = volume.open(0)
    os.mkfifo(copy.top / "pipe")
    volume.write(copy.top / "file", b"f")
    copy.commit()
    assert contents(volume.tree.top) == {"file": b"f"}


def test_holes_stay_holes(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    files.clone(sparse, tmp_path / "copy")
    copied = (tmp_path / "copy").stat()
    assert copied.st_size == 64 << 20
    assert copied.st_blocks * 512 < 1 << 20
    assert (tmp_path / "copy").read_bytes() == sparse.read_bytes()


def test_a_tree_without_permissions_can_be_discarded(tmp_path: Path) -> None:
    (tmp_path / "top" / "locked").mkdir(parents=True)
    (tmp_path / "top" / "locked" / "file").touch()
    (tmp_path / "top" / "locked").chmod(0)
    files.discard(tmp_path / "top")
    assert not (tmp_path / "top").exists()
    files.discard(tmp_path / "top")


@given(text=st.text(max_size=40) | st.from_regex(r"[./a]{0,12}", fullmatch=True))
def test_a_path_stays_inside_or_is_refused(text: str) -> None:
    try:
        relative = inside(text)
    except BadPath as error:
        assert len(str(error).splitlines()) == 1
        return
    assert not relative.is_absolute()
    assert ".." not in relative.parts
    assert (Path("/top") / relative).is_relative_to("/top")
    assert inside(str(relative)) == relative
    assert inside(f"/{relative}//") == relative


@pytest.mark.parametrize("path", ["..", "a/../b", "/../etc", "a\0b", "\udc80", "x" * 256])
def test_what_no_volume_can_hold_is_refused(path: str) -> None:
    with pytest.raises(BadPath):
        inside(path)


def test_links_do_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "top" / "in").mkdir(parents=True)
    (tmp_path / "top" / "out").symlink_to("/etc")
    (tmp_path / "top" / "same").symlink_to("in")
    with pytest.raises(BadPath):
        beneath(tmp_path / "top", PurePosixPath("out/passwd"))
    assert beneath(tmp_path / "top", PurePosixPath("same/file")).parent.name == "same"
    assert beneath(tmp_path / "top", PurePosixPath("out")).is_symlink()
