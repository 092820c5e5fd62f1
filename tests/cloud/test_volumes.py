"""Volumes, by the command line, in a real control plane; and where names of others' may lead."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_tui.cloud.landing import (
    PART_SUFFIX,
    UnsafeName,
    make_folder,
    part_file,
    place_below,
)
from composer_tui.cloud.problems import CloudProblem
from composer_tui.cloud.transfer import run, unstalled
from composer_tui.cloud.uploads import Upload, batches, plan_put
from composer_tui.cloud.volumes import container_path, path_on, usd_per_month
from composer_tui.pricing.rates import snapshot_rates
from tests.cloud.storage_fixtures import Shell, files_under
from tests.rehearsal.rehearsal import Rehearsal

_MAKE = """
import modal
for version in (1, 2):
    for number in range(7):
        modal.Volume.objects.create(f"v{version}-{number}", version=version)
"""


@pytest.fixture(scope="module")
def empty_volumes(
    stored: Rehearsal, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[str]]:
    script = tmp_path_factory.mktemp("make") / "make.py"
    script.write_text(_MAKE)
    stored.script(script)
    return {version: [f"v{version}-{number}" for number in range(7)] for version in (1, 2)}


@pytest.fixture(params=[1, 2])
def volume(request: pytest.FixtureRequest, empty_volumes: dict[int, list[str]]) -> str:
    """A volume of each of Modal's two kinds, empty."""
    return empty_volumes[request.param].pop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two levels, an empty file, one of several blocks, and a name that a terminal would obey."""
    source = tmp_path / "source"
    (source / "step-10/deep").mkdir(parents=True)
    (source / "step-10/deep/model.bin").write_bytes(os.urandom(9 << 20))
    (source / "step-10/config.json").write_text("{}")
    (source / "empty").touch()
    (source / "na\x1b]0;owned\x07me").write_text("escape")
    return source


def test_what_was_put_comes_back_byte_by_byte(
    shell: Shell, volume: str, folder: Path, tmp_path: Path
) -> None:
    assert shell("volumes", "put", volume, folder, "runs/r1").status == 0
    done = shell("volumes", "get", volume, "runs/r1", tmp_path / "back", "--verify", "--json")
    assert done.status == 0, done.err
    assert files_under(tmp_path / "back") == files_under(folder)
    assert {(one["outcome"], one["verified"]) for one in done.json} == {("downloaded", True)}
    one = shell("volumes", "get", volume, "runs/r1/step-10/config.json", tmp_path / "one.json")
    assert one.status == 0, one.err
    assert (tmp_path / "one.json").read_text() == "{}"


def test_a_download_goes_on_where_it_was_cut_short(
    shell: Shell, volume: str, folder: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    shell("volumes", "put", volume, folder, "r1")
    shell("volumes", "get", volume, "r1", back)
    kept = (back / "empty").stat().st_ino
    (back / "step-10/deep/model.bin").unlink()
    done = shell("volumes", "get", volume, "r1", back, "--json")
    outcomes = {one["remote"]: one["outcome"] for one in done.json}
    assert outcomes.pop("r1/step-10/deep/model.bin") == "downloaded"
    assert set(outcomes.values()) == {"kept"}
    assert (back / "empty").stat().st_ino == kept
    assert files_under(back) == files_under(folder)


def test_what_differs_here_is_replaced_only_when_told(
    shell: Shell, volume: str, folder: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    shell("volumes", "put", volume, folder / "step-10/config.json", "r1/")
    back.mkdir()
    (back / "config.json").write_text("mine")
    refused = shell("volumes", "get", volume, "r1", back)
    assert refused.status == 1
    assert "--force" in refused.err
    assert (back / "config.json").read_text() == "mine"
    assert shell("volumes", "get", volume, "r1", back, "--force").status == 0
    assert (back / "config.json").read_text() == "{}"


def test_bytes_that_rotted_here_are_found_by_reading_twice(
    shell: Shell, volume: str, folder: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    shell("volumes", "put", volume, folder / "step-10/config.json", "r1/")
    shell("volumes", "get", volume, "r1", back)
    times = (back / "config.json").stat()
    (back / "config.json").write_text("[]")
    os.utime(back / "config.json", (times.st_atime, times.st_mtime))
    assert "was here already" in shell("volumes", "get", volume, "r1", back).out
    found = shell("volumes", "get", volume, "r1", back, "--verify")
    assert found.status == 1
    assert "config.json" in found.err


def test_an_upload_says_where_a_container_will_see_it(shell: Shell, folder: Path) -> None:
    done = shell("volumes", "put", "composer-runs", folder, "data/set1", "--create")
    assert done.status == 0, done.err
    assert "a container sees it as /composer/runs/data/set1\n" in done.out
    done = shell("volumes", "put", "composer-cache", folder / "empty", "hub/", "--create")
    assert "a container sees it as /composer/cache/hub/empty\n" in done.out
    done = shell("volumes", "put", "mine", folder / "empty", "x", "--create")
    assert "a container sees it as <mount>/x\n" in done.out


def test_nothing_is_sent_over_what_is_there_unless_told(
    shell: Shell, volume: str, folder: Path
) -> None:
    shell("volumes", "put", volume, folder / "step-10/config.json", "r1/")
    (folder / "step-10/config.json").write_text("[1]")
    refused = shell("volumes", "put", volume, folder / "step-10", "r1")
    assert refused.status == 2
    assert "r1/config.json" in refused.err
    listed = shell("volumes", "ls", volume, "r1", "-R", "--json").json
    assert [(one["path"], one["size_bytes"]) for one in listed] == [("r1/config.json", 2)]
    assert shell("volumes", "put", volume, folder / "step-10", "r1", "--force").status == 0
    listed = shell("volumes", "ls", volume, "r1", "-R", "--json").json
    assert {one["path"]: one["size_bytes"] for one in listed}["r1/config.json"] == 3


def test_what_is_no_file_is_left_out_and_said(shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "good").write_text("x")
    (source / "to-folder").symlink_to("/etc")
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "fifo")
    (source / "bad\udcff").write_text("no name for a volume")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        done = shell("volumes", "put", "leavings", source, "--create", "--json")
    assert done.status == 1
    outcomes = {Path(one["local"]).name: one["outcome"] for one in done.json}
    assert outcomes.pop("good") == "uploaded"
    assert set(outcomes.values()) == {"left_out"}
    assert len(outcomes) == 5


def test_names_of_others_reach_no_terminal(shell: Shell, folder: Path) -> None:
    shell("volumes", "put", "loud", folder, "x", "--create")
    listed = shell("volumes", "ls", "loud", "x", "-R")
    assert "\x1b" not in listed.out
    assert "name" in listed.out
    assert "\x1b" not in shell("volumes", "rm", "loud", "x/na\x1b]0;owned\x07me").err


def test_links_on_the_way_are_not_followed(shell: Shell, folder: Path, tmp_path: Path) -> None:
    shell("volumes", "put", "linked", folder, "x", "--create")
    outside, back = tmp_path / "outside", tmp_path / "back"
    outside.mkdir()
    back.mkdir()
    (back / "step-10").symlink_to(outside)
    (back / "empty").symlink_to(outside / "new")
    done = shell("volumes", "get", "linked", "x", back, "--force", "--json")
    assert done.status == 1
    assert not list(outside.iterdir())
    assert not (back / "empty").is_symlink()
    left_out = {one["remote"] for one in done.json if one["outcome"] == "left_out"}
    assert left_out >= {"x/step-10/config.json", "x/step-10/deep/model.bin"}
    assert "x/empty" not in left_out


def test_removing_asks_and_a_folder_must_be_meant(shell: Shell, volume: str, folder: Path) -> None:
    shell("volumes", "put", volume, folder, "r1")
    assert shell("volumes", "rm", volume, "r1/empty").status == 2
    assert "--recursive" in shell("volumes", "rm", volume, "r1", "--yes").err
    assert len(shell("volumes", "ls", volume, "-R", "--json").json) == 7
    assert shell("volumes", "rm", volume, "r1/empty", "--yes").status == 0
    assert shell("volumes", "rm", volume, "r1", "-r", "--yes").status == 0
    assert shell("volumes", "ls", volume, "-R", "--json").json == []


def test_a_list_with_sizes_says_what_they_cost(shell: Shell, folder: Path) -> None:
    shell("volumes", "put", "composer-cache", folder, "sized", "--create")
    rows = {row["name"]: row for row in shell("volumes", "--sizes", "--json").json}
    assert rows["composer-cache"]["size_bytes"] >= 9 << 20
    assert rows["composer-cache"]["mount"] == "/composer/cache"
    assert float(rows["composer-cache"]["usd_per_month"]) > 0
    assert "$0.09 per GiB and month" in shell("volumes").out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ls", "no-such-volume"), "--create"),
        (("ls", "composer-runs", "no/such/path"), "no/such/path"),
        (("get", "composer-runs", "no/such"), "no/such"),
        (("rm", "composer-runs", "no/such", "--yes"), "no/such"),
        (("ls", "not a name/at all"), "alphanumeric"),
        (("put", "composer-runs", "pyproject.toml", "a/../../b"), "'..'"),
        (("put", "composer-runs", "no-such-file"), "no-such-file"),
    ],
)
def test_a_mistake_is_one_line(shell: Shell, arguments: tuple[str, ...], word: str) -> None:
    shell("volumes", "put", "composer-runs", "pyproject.toml", "p", "--create", "--force")
    done = shell("volumes", *arguments)
    assert done.status == 2
    assert word in done.err
    assert len(done.err.splitlines()) == 1


def test_readonly_changes_nothing(shell: Shell, folder: Path) -> None:
    for arguments in (
        ("put", "readonly", str(folder), "--create"),
        ("rm", "composer-runs", "p", "--yes"),
    ):
        assert "refused" in shell("volumes", *arguments, COMPOSER_READONLY="1").err
    assert "readonly" not in shell("volumes").out


def test_an_interrupted_download_leaves_whole_files_or_none(
    shell: Shell, stored: Rehearsal, tmp_path: Path
) -> None:
    source, back = tmp_path / "many", tmp_path / "back"
    source.mkdir()
    for number in range(24):
        (source / f"{number}").write_bytes(os.urandom(1 << 20))
    shell("volumes", "put", "many", source, "--create")
    command = [sys.executable, "-m", "composer_tui", "volumes", "get", "many", "/", str(back)]
    with subprocess.Popen(command, env=stored.environ(), stderr=subprocess.PIPE) as getting:
        while getting.poll() is None and not list(back.glob("[0-9]*")):
            os.sched_yield()
        getting.send_signal(signal.SIGINT)
        assert getting.wait(20) in (130, 0)
    assert not list(back.glob(f".*{PART_SUFFIX}"))
    here, there = files_under(back), files_under(source)
    assert here
    assert here.items() <= there.items()
    assert shell("volumes", "get", "many", "/", back).status == 0
    assert files_under(back) == there


def test_a_connection_that_broke_while_bytes_came_is_one_line() -> None:
    async def broken() -> None:
        raise aiohttp.ClientPayloadError("Response payload is not completed")

    with pytest.raises(CloudProblem) as found:
        run(broken())
    assert found.value.problem.kind == "no_network"


def test_a_stream_in_which_nothing_moves_is_given_up() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(60)

    async def read() -> list[bytes]:
        return [chunk async for chunk in unstalled(stuck(), 0.05)]

    with pytest.raises(CloudProblem) as found:
        run(read())
    assert found.value.problem.kind == "timeout"


_PARTS = st.sampled_from(["..", ".", "", "a", "b", "...", "a\n", "~", "C:", "\x1b[2J", "x" * 300])
_PATHS = st.lists(_PARTS, max_size=6).map("/".join) | st.text(max_size=30)


@given(root=_PATHS, remote=_PATHS)
def test_no_name_leads_out_of_the_folder(root: str, remote: str) -> None:
    try:
        inside = place_below(root, remote)
    except UnsafeName:
        return
    assert not inside.is_absolute()
    assert ".." not in inside.parts
    assert "\0" not in str(inside)
    target = Path("/target")
    assert Path(os.path.normpath(target / inside)).is_relative_to(target)


@pytest.mark.parametrize(
    "remote", ["../x", "r1/../../x", "/../x", "r2/x", "r10/x", "r1/a/../b", "r1/\0"]
)
def test_a_hostile_path_has_no_place(remote: str) -> None:
    with pytest.raises(UnsafeName):
        place_below("r1", remote)


def test_a_folder_is_not_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/tmp")  # noqa: S108  # somewhere else
    with pytest.raises(UnsafeName):
        make_folder(tmp_path, PurePosixPath("link/deeper"))
    (tmp_path / "file").touch()
    with pytest.raises(UnsafeName):
        make_folder(tmp_path, PurePosixPath("file"))
    assert make_folder(tmp_path, PurePosixPath("a/b")).is_dir()


def test_a_part_is_gone_unless_it_was_renamed(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    with contextlib.suppress(ConnectionError), part_file(target, 3) as (file, part):
        file.write(b"abc")
        assert part.exists()
        raise ConnectionError
    assert not list(tmp_path.iterdir())
    with part_file(target, 3) as (file, part):
        file.write(b"abc")
        file.flush()
        part.replace(target)
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_two_downloads_do_not_write_one_part(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    with part_file(target, 1), pytest.raises(UnsafeName), part_file(target, 1):
        pass


def test_what_a_killed_download_left_is_no_hindrance(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    with part_file(target, 10) as (_, part):
        left = part
    left.write_bytes(b"rubbish of a longer file")
    with part_file(target, 2) as (file, part):
        file.write(b"ok")
        file.flush()
        part.replace(target)
    assert target.read_bytes() == b"ok"


def test_a_link_in_the_place_of_a_part_is_not_written_through(tmp_path: Path) -> None:
    with part_file(tmp_path / "x", 1) as (_, part):
        name = part
    name.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"), part_file(tmp_path / "x", 1):
        pass
    assert not (tmp_path / "victim").exists()


@given(st.lists(st.integers(0, 200 << 20), max_size=500))
def test_batches_are_the_same_files_in_order_and_not_large(sizes: list[int]) -> None:
    uploads = [Upload(Path("x"), str(index), size) for index, size in enumerate(sizes)]
    parts = list(batches(uploads))
    assert [upload for part in parts for upload in part] == uploads
    for part in parts:
        assert 1 <= len(part) <= 200
        assert len(part) == 1 or sum(upload.size_bytes for upload in part) <= 64 << 20


def test_a_file_keeps_its_name_in_a_folder_that_ends_with_a_slash(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for remote, place in (("/", "f"), ("", "f"), ("d/", "d/f"), ("d/g", "d/g"), ("/d//./g", "d/g")):
        assert plan_put(tmp_path / "f", remote).uploads[0].remote == place
    with pytest.raises(ValueError, match=r"'\.\.'"):
        plan_put(tmp_path / "f", "../f")


def test_the_path_in_a_container_and_the_price() -> None:
    assert container_path("composer-runs", "/r1/") == "/composer/runs/r1"
    assert container_path("composer-cache", "/") == "/composer/cache"
    assert container_path("mine", "a") == "<mount>/a"
    for path in ("/", "/r1/", "/composer"):
        assert path_on("composer-runs", path) == path
    assert path_on("composer-runs", "/composer/runs/r1/") == "/r1/"
    assert path_on("composer-runs", "/composer/runs") == "/"
    assert path_on("composer-runs", "/composer/runs-2") == "/composer/runs-2"
    assert path_on("mine", "/composer/runs/r1") == "/composer/runs/r1"
    assert (
        usd_per_month(1 << 30, snapshot_rates())
        == snapshot_rates().usd_per_hour["volume_storage_gib_month_cost"]
    )
