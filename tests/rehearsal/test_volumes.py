"""Volumes, with Modal's own library and command line."""

import asyncio
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from grpclib import GRPCError, Status
from hypothesis import given
from hypothesis import strategies as st
from modal_proto import api_pb2

from composer_tui.rehearsal.blobs import Blobs
from composer_tui.rehearsal.volume_files import BLOCK_BYTES, blocks
from composer_tui.rehearsal.volumes import Volumes
from tests.rehearsal.planes import RunningPlane, running

ODD_NAMES = [
    "plain",
    "with space",
    "-dash",
    "ünïcödé-名前",
    "quote'\"$(x);&|<>*?[]",
    "new\nline",
    "back\\slash",
    ".hidden",
    "%2e%2e",
    "x" * 255,
    "deep/er/than/that",
]
VERSIONS = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlane]:
    with running(tmp_path_factory.mktemp("rehearsal")) as plane:
        yield plane


@pytest.fixture(scope="module")
def client(plane: RunningPlane) -> Iterator[modal.Client]:
    with plane.client() as client:
        yield client


@pytest.fixture
def volume(client: modal.Client) -> Iterator[modal.Volume]:
    with modal.Volume.ephemeral(client=client) as volume:
        yield volume


def put(volume: modal.Volume, path: str, data: bytes, *, force: bool = False) -> None:
    with volume.batch_upload(force=force) as batch:
        batch.put_file(io.BytesIO(data), path)


def put_both(volume: modal.Volume) -> None:
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"new"), "/fresh")
        batch.put_file(io.BytesIO(b"second"), "/a/file")


def read(volume: modal.Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


def refusal(plane: RunningPlane, rpc: str, request: object) -> GRPCError:
    with pytest.raises(GRPCError) as caught:
        plane.rpc(rpc, request)
    assert len(str(caught.value.message).splitlines()) == 1
    return caught.value


@VERSIONS
def test_a_file_of_20_mb_comes_back_as_it_was(client: modal.Client, version: int) -> None:
    data = os.urandom(9_000_000) + bytes(9_000_000) + os.urandom(2_000_000) + bytes(100)
    with modal.Volume.ephemeral(client=client, version=version) as volume:
        put(volume, "/model.bin", data)
        assert hashlib.sha256(read(volume, "model.bin")).digest() == hashlib.sha256(data).digest()
        [entry] = volume.listdir("/")
        assert (entry.path, entry.size) == ("model.bin", len(data))
        assert abs(entry.mtime - time.time()) < 60


@VERSIONS
def test_odd_names_and_contents_survive(client: modal.Client, version: int) -> None:
    contents = {name: f"{name} {number}".encode() for number, name in enumerate(ODD_NAMES)}
    contents |= {"empty": b"", "zeros": bytes(100), "block": bytes(BLOCK_BYTES - 1) + b"1"}
    with modal.Volume.ephemeral(client=client, version=version) as volume:
        with volume.batch_upload() as batch:
            for name, data in contents.items():
                batch.put_file(io.BytesIO(data), f"/odd/{name}")
        for name, data in contents.items():
            assert read(volume, f"odd/{name}") == data
        listed = {each.path for each in volume.iterdir("odd") if each.type.name == "FILE"}
        assert listed == {f"odd/{name}" for name in contents}


@VERSIONS
def test_a_folder_goes_up_with_its_permissions(
    plane: RunningPlane, client: modal.Client, version: int, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "sub" / "run.sh").chmod(0o750)
    name = f"folder-{version}"
    modal.Volume.objects.create(name, version=version, client=client)
    with modal.Volume.from_name(name, client=client).batch_upload() as batch:
        batch.put_directory(tmp_path, "/up")
    committed = plane.plane.root / "volumes" / name / "up" / "sub" / "run.sh"
    assert committed.read_text() == "#!/bin/sh\n"
    assert committed.stat().st_mode & 0o777 == 0o750


@VERSIONS
def test_what_is_there_is_overwritten_only_by_force(client: modal.Client, version: int) -> None:
    with modal.Volume.ephemeral(client=client, version=version) as volume:
        put(volume, "/a/file", b"first")
        with pytest.raises(FileExistsError, match="/a/file"):
            put_both(volume)
        assert read(volume, "a/file") == b"first"
        assert [each.path for each in volume.listdir("/")] == ["a"]  # nothing of that batch
        put(volume, "/a/file", b"second", force=True)
        assert read(volume, "a/file") == b"second"
        for path in ("/a", "/a/file/below"):
            with pytest.raises(FileExistsError):
                put(volume, path, b"third", force=True)


def test_a_block_is_what_it_was_announced_to_be(plane: RunningPlane, client: modal.Client) -> None:
    with modal.Volume.ephemeral(client=client, version=2) as volume:
        block = api_pb2.VolumePutFiles2Request.Block(contents_sha256=hashlib.sha256(b"ab").digest())
        file = api_pb2.VolumePutFiles2Request.File(path="file", size=4, blocks=[block])
        request = api_pb2.VolumePutFiles2Request(volume_id=volume.object_id, files=[file])
        for body in (b"xx", bytes(BLOCK_BYTES + 1)):
            [missing] = plane.rpc("VolumePutFiles2", request).missing_blocks
            assert plane.fetch(missing.put_url, "PUT", body).status == 400
        [missing] = plane.rpc("VolumePutFiles2", request).missing_blocks
        assert volume.listdir("/") == []
        assert plane.fetch(missing.put_url, "PUT", b"ab").status == 200
        assert not plane.rpc("VolumePutFiles2", request).missing_blocks
        assert read(volume, "file") == b"ab\0\0"
        request.files[0].blocks.append(block)
        assert refusal(plane, "VolumePutFiles2", request).status is Status.INVALID_ARGUMENT


def test_listing_shows_one_level_or_all(volume: modal.Volume) -> None:
    for path in ("/top", "/d/one", "/d/e/two"):
        put(volume, path, b"x")
    assert [each.path for each in volume.listdir("/")] == ["d", "top"]
    assert [each.path for each in volume.listdir("d")] == ["d/e", "d/one"]
    assert [each.path for each in volume.listdir("/", recursive=True)] == [
        "d",
        "d/e",
        "d/e/two",
        "d/one",
        "top",
    ]
    assert [each.path for each in volume.listdir("/d/one")] == ["d/one"]
    assert [each.type.name for each in volume.listdir("d")] == ["DIRECTORY", "FILE"]
    with pytest.raises(modal.exception.NotFoundError, match="'none'"):
        volume.listdir("none")


def test_files_are_removed_and_folders_when_that_is_said(volume: modal.Volume) -> None:
    for path in ("/d/one", "/d/two", "/top"):
        put(volume, path, b"x")
    volume.remove_file("/d/one")
    with pytest.raises(FileNotFoundError):
        volume.remove_file("/d/one")
    with pytest.raises(modal.exception.InvalidError, match="recursive"):
        volume.remove_file("/d")
    volume.remove_file("/d", recursive=True)
    assert [each.path for each in volume.listdir("/")] == ["top"]
    with pytest.raises(modal.exception.InvalidError):
        volume.remove_file("/", recursive=True)


@VERSIONS
def test_copying_is_like_cp(client: modal.Client, version: int) -> None:
    with modal.Volume.ephemeral(client=client, version=version) as volume:
        put(volume, "/a", b"a")
        put(volume, "/d/b", b"b")
        volume.copy_files(["a"], "c")
        volume.copy_files(["a", "c"], "d")
        assert [read(volume, path) for path in ("c", "d/a", "d/c", "d/b")] == [
            b"a",
            b"a",
            b"a",
            b"b",
        ]
        with pytest.raises(modal.exception.InvalidError, match="same file"):
            volume.copy_files(["d/b"], "d")
        with pytest.raises(modal.exception.InvalidError, match="recursive"):
            volume.copy_files(["d"], "e")
        with pytest.raises(modal.exception.NotFoundError):
            volume.copy_files(["none"], "e")
        with pytest.raises(modal.exception.InvalidError):
            volume.copy_files(["a", "c"], "nowhere")
        if version == 2:
            volume.copy_files(["d"], "e", recursive=True)
            assert read(volume, "e/b") == b"b"
            with pytest.raises(modal.exception.InvalidError, match="file"):
                volume.copy_files(["d"], "a", recursive=True)
            with pytest.raises(modal.exception.InvalidError, match="itself"):
                volume.copy_files(["d"], "d", recursive=True)


@pytest.mark.parametrize("path", ["../outside", "/a/../../outside", "a\0b", "x" * 300])
def test_no_path_leads_out_of_a_volume(
    plane: RunningPlane, volume: modal.Volume, path: str
) -> None:
    (plane.plane.root / "outside").write_text("secret")
    volume_id = volume.object_id
    content = hashlib.sha256(b"x").hexdigest()
    plane.rpc("MountPutFile", api_pb2.MountPutFileRequest(data=b"x", sha256_hex=content))
    mount_file = api_pb2.MountFile(filename=path, sha256_hex=content)
    empty_file = api_pb2.VolumePutFiles2Request.File(path=path)
    for rpc, request in {
        "VolumeGetFile2": api_pb2.VolumeGetFile2Request(volume_id=volume_id, path=path),
        "VolumeGetFile": api_pb2.VolumeGetFileRequest(volume_id=volume_id, path=path),
        "VolumeRemoveFile": api_pb2.VolumeRemoveFileRequest(volume_id=volume_id, path=path),
        "VolumeCopyFiles": api_pb2.VolumeCopyFilesRequest(
            volume_id=volume_id, src_paths=[path], dst_path="in"
        ),
        "VolumePutFiles": api_pb2.VolumePutFilesRequest(volume_id=volume_id, files=[mount_file]),
        "VolumePutFiles2": api_pb2.VolumePutFiles2Request(volume_id=volume_id, files=[empty_file]),
    }.items():
        assert refusal(plane, rpc, request).status is Status.INVALID_ARGUMENT
    assert (plane.plane.root / "outside").read_text() == "secret"


def test_a_link_is_followed_only_inside_the_volume(
    plane: RunningPlane, client: modal.Client, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    volume = modal.Volume.from_name("links", create_if_missing=True, client=client)
    put(volume, "/d/file", b"inside")
    top = plane.plane.root / "volumes" / "links"
    (top / "near").symlink_to("d/file")
    (top / "far").symlink_to(tmp_path / "secret")
    (top / "away").symlink_to(tmp_path)
    assert read(volume, "near") == b"inside"
    with pytest.raises(FileNotFoundError):
        read(volume, "far")
    with pytest.raises(modal.exception.InvalidError):
        read(volume, "away/secret")
    with pytest.raises(modal.exception.InvalidError):
        put(volume, "/away/new", b"x")
    volume.remove_file("away", recursive=True)
    assert (tmp_path / "secret").read_text() == "secret"
    types = {each.path: each.type.name for each in volume.listdir("/")}
    assert types == {"d": "DIRECTORY", "far": "SYMLINK", "near": "SYMLINK"}


def test_parts_of_a_file_are_read(plane: RunningPlane, volume: modal.Volume) -> None:
    data = os.urandom(3 << 20)
    put(volume, "/file", data)
    for start, length in [(0, 10), (100, 0), (len(data), 0), (5, len(data) * 2), (1, 2 << 20)]:
        expected = data[start : start + length if length else None]
        answer = plane.rpc(
            "VolumeGetFile",
            api_pb2.VolumeGetFileRequest(
                volume_id=volume.object_id, path="file", start=start, len=length
            ),
        )
        got = answer.data
        if answer.data_blob_id:
            got = plane.get(plane.plane.area(Blobs).get, answer.data_blob_id)
        assert got == expected
        assert (answer.size, answer.start, answer.len) == (len(data), start, len(expected))
    beyond = api_pb2.VolumeGetFileRequest(
        volume_id=volume.object_id, path="file", start=len(data) + 1
    )
    assert refusal(plane, "VolumeGetFile", beyond).status is Status.OUT_OF_RANGE


@given(start=st.integers(0, 5 * BLOCK_BYTES), length=st.integers(0, 4 * BLOCK_BYTES))
def test_blocks_cover_a_range_without_gap_or_overlap(start: int, length: int) -> None:
    position = start
    for begin, size in blocks(start, length):
        assert begin == position
        assert 0 < size <= BLOCK_BYTES
        assert begin // BLOCK_BYTES == (begin + size - 1) // BLOCK_BYTES
        position += size
    assert position == start + length


def test_a_download_is_of_one_state_of_the_file(plane: RunningPlane, volume: modal.Volume) -> None:
    put(volume, "/log", b"1" * 1000)
    request = api_pb2.VolumeGetFile2Request(volume_id=volume.object_id, path="log")
    [url] = plane.rpc("VolumeGetFile2", request).get_urls
    put(volume, "/log", b"2" * 500, force=True)
    volume.remove_file("log")
    assert plane.fetch(url).body == b"1" * 1000


def test_reading_while_a_container_commits_gets_one_state_or_another(
    plane: RunningPlane, volume: modal.Volume
) -> None:
    volumes = plane.plane.area(Volumes)
    top = plane.do(volumes.open_mount(volume.object_id, "ta-w", read_only=False))
    over = threading.Event()

    def work() -> None:
        number = 0
        while not over.is_set():
            number += 1
            (top / "state").write_bytes(b"%d" % (number % 10) * (1000 * (number % 7 + 1)))
            commit(plane, volume.object_id, "ta-w")

    put(volume, "/state", b"0")
    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(40):
            assert len(set(read(volume, "state"))) == 1
    finally:
        over.set()
        worker.join()
    plane.do(volumes.drop_mounts("ta-w"))


def test_a_volume_is_found_made_renamed_and_deleted(client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="Volume 'runs' not found in environ"):
        modal.Volume.from_name("runs", client=client).hydrate()
    volume = modal.Volume.from_name("runs", create_if_missing=True, client=client)
    put(volume, "/file", b"kept")
    assert volume.info().name == "runs"
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Volume.objects.create("runs", client=client)
    with pytest.raises(modal.exception.InvalidError, match="version"):
        modal.Volume.from_name("runs", version=2, client=client).hydrate()
    modal.Volume.rename("runs", "walks", client=client)
    assert read(modal.Volume.from_name("walks", client=client), "file") == b"kept"
    assert modal.Volume.from_id(volume.object_id, client=client).hydrate().info().name == "walks"
    modal.Volume.objects.delete("walks", client=client)
    with pytest.raises(modal.exception.NotFoundError):
        volume.listdir("/")


@pytest.mark.parametrize("name", [".", "..", "a/b", "", "a b", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(plane: RunningPlane, name: str) -> None:
    request = api_pb2.VolumeGetOrCreateRequest(
        deployment_name=name,
        object_creation_type=api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
    )
    assert refusal(plane, "VolumeGetOrCreate", request).status is Status.INVALID_ARGUMENT


def test_the_command_line_works_on_a_volume(plane: RunningPlane, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for arguments in (
        ["create", "cli"],
        ["put", "cli", "notes.txt", "/d/"],
        ["cp", "cli", "d/notes.txt", "copy.txt"],
        ["get", "cli", "d", "."],
    ):
        done = plane.cli("volume", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "d" / "notes.txt").read_text() == "hello"
    listed = json.loads(plane.cli("volume", "ls", "cli", "--json").stdout)
    assert [(each["filename"], each["type"], each["size"]) for each in listed] == [
        ("copy.txt", "file", 5),
        ("d", "dir", 0),
    ]
    assert plane.cli("volume", "rm", "-r", "cli", "d").returncode == 0
    names = [each["name"] for each in json.loads(plane.cli("volume", "list", "--json").stdout)]
    assert "cli" in names
    refused = plane.cli("volume", "get", "cli", "d", ".", cwd=tmp_path)
    assert refused.returncode == 1
    assert "No such file or directory: 'd'" in refused.stderr
    assert plane.cli("volume", "delete", "-y", "cli").returncode == 0


def test_a_container_works_on_its_own_copy_until_it_commits(
    plane: RunningPlane, client: modal.Client
) -> None:
    volumes = plane.plane.area(Volumes)
    volume = modal.Volume.from_name("work", create_if_missing=True, client=client)
    put(volume, "/before", b"before")
    one = plane.do(volumes.open_mount(volume.object_id, "ta-one", read_only=False))
    assert (one / "before").read_bytes() == b"before"
    (one / "step-1").write_text("one")
    assert [each.path for each in volume.listdir("/")] == ["before"]
    commit(plane, volume.object_id, "ta-one")
    assert read(volume, "step-1") == b"one"
    two = plane.do(volumes.open_mount(volume.object_id, "ta-two", read_only=False))
    (two / "step-2").write_text("two")
    (one / "lost").write_text("lost")
    plane.do(volumes.drop_mounts("ta-one"))
    assert not one.exists()
    commit(plane, volume.object_id, "ta-two")
    assert [each.path for each in volume.listdir("/")] == ["before", "step-1", "step-2"]
    plane.do(volumes.drop_mounts("ta-two"))
    assert list((plane.plane.root / "working").iterdir()) == []


def test_a_commit_that_races_the_containers_end_deletes_nothing(
    plane: RunningPlane, volume: modal.Volume
) -> None:
    volumes = plane.plane.area(Volumes)
    top = plane.do(volumes.open_mount(volume.object_id, "ta-race", read_only=False))
    for number in range(500):
        (top / f"{number}").touch()
    commit(plane, volume.object_id, "ta-race")
    plane.do(volumes.drop_mounts("ta-race"))
    before = [each.path for each in volume.listdir("/")]
    assert len(before) == 500

    async def race(task_id: str, commits: int) -> None:
        top = await volumes.open_mount(volume.object_id, task_id, read_only=False)
        (top / "0").write_text("changed")
        ends = [volumes._mounts.commit(volume.object_id, task_id) for _ in range(commits)]
        await asyncio.gather(*ends, volumes.drop_mounts(task_id), return_exceptions=True)
        late = volumes._mounts.commit(volume.object_id, task_id)
        with pytest.raises(GRPCError):
            await late

    for commits in range(4):
        plane.do(race(f"ta-race-{commits}", commits))
        assert [each.path for each in volume.listdir("/")] == before


def commit(plane: RunningPlane, volume_id: str, task_id: str) -> None:
    """As the container does it: with its own headers."""
    as_container(plane, "VolumeCommit", api_pb2.VolumeCommitRequest(volume_id=volume_id), task_id)


def as_container(plane: RunningPlane, rpc: str, request: object, task_id: str) -> None:
    plane.get(plane.plane.admit_container, task_id, "its-secret")
    headers = {"x-composer-task": task_id, "x-composer-task-secret": "its-secret"}
    plane.rpc(rpc, request, **headers)


def test_a_reload_waits_for_nobodys_open_files(plane: RunningPlane, volume: modal.Volume) -> None:
    volumes = plane.plane.area(Volumes)
    put(volume, "/log", b"old")
    top = plane.do(volumes.open_mount(volume.object_id, "ta-r", read_only=False))
    put(volume, "/log", b"new", force=True)
    reload = api_pb2.VolumeReloadRequest(volume_id=volume.object_id)
    with (top / "log").open("rb"), pytest.raises(GRPCError) as caught:
        as_container(plane, "VolumeReload", reload, "ta-r")
    assert caught.value.status is Status.FAILED_PRECONDITION
    assert caught.value.message == (
        "there are open files preventing the operation: path log is open"
    )
    as_container(plane, "VolumeReload", reload, "ta-r")
    assert (top / "log").read_bytes() == b"new"
    plane.do(volumes.drop_mounts("ta-r"))


def test_what_is_mounted_read_only_is_never_committed(
    plane: RunningPlane, volume: modal.Volume
) -> None:
    volumes = plane.plane.area(Volumes)
    top = plane.do(volumes.open_mount(volume.object_id, "ta-ro", read_only=True))
    (top / "file").write_text("x")
    commit(plane, volume.object_id, "ta-ro")
    assert volume.listdir("/") == []
    plane.do(volumes.drop_mounts("ta-ro"))


def test_a_part_of_a_volume_is_mounted(plane: RunningPlane, volume: modal.Volume) -> None:
    volumes = plane.plane.area(Volumes)
    part = plane.do(
        volumes.open_mount(volume.object_id, "ta-p", read_only=False, sub_path="/runs/7")
    )
    (part / "file").write_text("x")
    commit(plane, volume.object_id, "ta-p")
    assert read(volume, "runs/7/file") == b"x"
    with pytest.raises(GRPCError, match="inside"):
        plane.do(volumes.open_mount(volume.object_id, "ta-p", read_only=False, sub_path="../.."))
    plane.do(volumes.drop_mounts("ta-p"))


def test_commit_and_reload_are_for_containers(volume: modal.Volume) -> None:
    with pytest.raises(RuntimeError, match="only inside a container"):
        volume.commit()
    with pytest.raises(RuntimeError, match="only inside a container"):
        volume.reload()


def test_what_is_committed_outlives_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as plane, plane.client() as client:
        volume = modal.Volume.from_name("kept", create_if_missing=True, version=2, client=client)
        put(volume, "/file", b"kept")
        volumes = plane.plane.area(Volumes)
        top = plane.do(volumes.open_mount(volume.object_id, "ta-x", read_only=False))
        (top / "lost").write_text("lost")
        with modal.Volume.ephemeral(client=client) as ephemeral:
            put(ephemeral, "/gone", b"gone")
    assert (tmp_path / "volumes" / "kept" / "file").read_bytes() == b"kept"
    with running(tmp_path) as plane, plane.client() as client:
        volume = modal.Volume.from_name("kept", version=2, client=client)
        assert [each.path for each in volume.listdir("/")] == ["file"]
        again = modal.Volume.from_id(ephemeral.object_id, client=client)
        with pytest.raises(modal.exception.NotFoundError):
            again.hydrate()


def test_volumes_of_two_environments_share_only_the_name(
    plane: RunningPlane, client: modal.Client
) -> None:
    modal.Environment.objects.create("side", client=client)
    main = modal.Volume.from_name("both", create_if_missing=True, client=client)
    side = modal.Volume.from_name(
        "both", environment_name="side", create_if_missing=True, client=client
    )
    put(main, "/main", b"m")
    put(side, "/side", b"s")
    assert [each.path for each in side.listdir("/")] == ["side"]
    there = modal.Volume.objects.list(environment_name="side", client=client)
    assert [each.name for each in there] == ["both"]
    modal.Environment.objects.delete("side", client=client)
    assert not (plane.plane.root / "volumes" / "both@side").exists()
    assert [each.path for each in main.listdir("/")] == ["main"]
