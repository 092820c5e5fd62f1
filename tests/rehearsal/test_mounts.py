"""Mounts: the client's files, by content, laid out for a container."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from grpclib import GRPCError, Status
from hypothesis import given
from hypothesis import strategies as st
from modal._load_context import LoadContext
from modal._resolver import Resolver
from modal._utils.async_utils import TaskContext
from modal.mount import _Mount
from modal_proto import api_pb2

from composer_tui.rehearsal.mounts import Mounts
from tests.rehearsal.planes import RunningPlane, running


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlane]:
    with running(tmp_path_factory.mktemp("rehearsal")) as plane:
        yield plane


def upload(plane: RunningPlane, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    request = api_pb2.MountPutFileRequest(data=data, sha256_hex=sha256)
    assert plane.rpc("MountPutFile", request).exists
    return sha256


def mount(plane: RunningPlane, **files: bytes) -> str:
    """A mount of files in /root; the names are their modules'."""
    request = api_pb2.MountGetOrCreateRequest(
        files=[
            api_pb2.MountFile(filename=f"/root/{name}.py", sha256_hex=upload(plane, data))
            for name, data in files.items()
        ]
    )
    mount_id: str = plane.rpc("MountGetOrCreate", request).mount_id
    return mount_id


def unpacked(plane: RunningPlane, mount_id: str, into: Path) -> dict[str, bytes]:
    plane.do(plane.plane.area(Mounts).unpack(mount_id, into))
    return {
        str(path.relative_to(into)): path.read_bytes()
        for path in sorted(into.rglob("*"))
        if path.is_file()
    }


def test_a_folder_of_the_client_arrives_whole(plane: RunningPlane, tmp_path: Path) -> None:
    source = tmp_path / "package"
    (source / "sub").mkdir(parents=True)
    (source / "__init__.py").write_text("")
    (source / "sub" / "weights.bin").write_bytes(bytes(5 << 20))  # through a blob
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)

    async def deploy(client: modal.client._Client) -> str:
        found = _Mount._from_local_dir(source, remote_path="/opt/package")
        async with TaskContext() as tasks:
            context = LoadContext(client=client, environment_name="main", task_context=tasks)
            await Resolver().load(found, context)  # type: ignore[no-untyped-call]
        return found.object_id

    with plane.client() as client:
        mount_id = modal._utils.async_utils.synchronizer.create_blocking(deploy)(client)
    files = unpacked(plane, mount_id, tmp_path / "root")
    assert {path: len(data) for path, data in files.items()} == {
        "opt/package/__init__.py": 0,
        "opt/package/run.sh": 10,
        "opt/package/sub/weights.bin": 5 << 20,
    }
    assert (tmp_path / "root" / "opt/package/run.sh").stat().st_mode & 0o777 == 0o755


def test_only_what_is_missing_is_asked_for(plane: RunningPlane) -> None:
    there = upload(plane, b"there")
    missing = hashlib.sha256(b"missing").hexdigest()
    answer = plane.rpc(
        "MountBatchedCheckExistence",
        api_pb2.MountBatchedCheckExistenceRequest(sha256_hex_hashes=[there, missing]),
    )
    assert list(answer.missing_sha256_hex_hashes) == [missing]


def test_the_same_files_are_the_same_mount(plane: RunningPlane) -> None:
    assert mount(plane, a=b"1", b=b"2") == mount(plane, b=b"2", a=b"1")
    assert mount(plane, a=b"1") != mount(plane, a=b"2")


def test_other_content_than_its_checksum_is_refused(plane: RunningPlane) -> None:
    sha256 = hashlib.sha256(b"announced").hexdigest()
    with pytest.raises(GRPCError) as caught:
        plane.rpc("MountPutFile", api_pb2.MountPutFileRequest(data=b"other", sha256_hex=sha256))
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert not plane.rpc("MountPutFile", api_pb2.MountPutFileRequest(sha256_hex=sha256)).exists


@pytest.mark.parametrize("filename", ["../up", "/root/../../up", "a\0b"])
def test_no_mount_leads_out_of_its_root(plane: RunningPlane, filename: str) -> None:
    file = api_pb2.MountFile(filename=filename, sha256_hex=upload(plane, b"x"))
    with pytest.raises(GRPCError) as caught:
        plane.rpc("MountGetOrCreate", api_pb2.MountGetOrCreateRequest(files=[file]))
    assert caught.value.status is Status.INVALID_ARGUMENT


@given(text=st.text(max_size=70))
def test_a_checksum_is_no_path(text: str) -> None:
    from composer_tui.rehearsal.mounts import _SHA256

    assert not _SHA256.fullmatch(text) or set(text) <= set("0123456789abcdef")


def test_a_file_that_was_never_uploaded_makes_no_mount(plane: RunningPlane) -> None:
    file = api_pb2.MountFile(filename="/a", sha256_hex="0" * 64)
    with pytest.raises(GRPCError) as caught:
        plane.rpc("MountGetOrCreate", api_pb2.MountGetOrCreateRequest(files=[file]))
    assert caught.value.status is Status.NOT_FOUND


def test_modals_global_mounts_are_known_and_empty(plane: RunningPlane, tmp_path: Path) -> None:
    request = api_pb2.MountGetOrCreateRequest(
        deployment_name="modal-client-mount-1.6.4",
        namespace=api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL,
    )
    mount_id = plane.rpc("MountGetOrCreate", request).mount_id
    assert mount_id == plane.rpc("MountGetOrCreate", request).mount_id
    assert unpacked(plane, mount_id, tmp_path) == {}


def test_a_container_cannot_change_what_another_gets(plane: RunningPlane, tmp_path: Path) -> None:
    mount_id = mount(plane, work=b"print(1)")
    unpacked(plane, mount_id, tmp_path / "one")
    (tmp_path / "one" / "root" / "work.py").write_bytes(b"print(2)")
    assert unpacked(plane, mount_id, tmp_path / "two") == {"root/work.py": b"print(1)"}


def test_mounts_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path / "root") as plane:
        mount_id = mount(plane, work=b"print(1)")
    with running(tmp_path / "root") as plane:
        assert unpacked(plane, mount_id, tmp_path / "into") == {"root/work.py": b"print(1)"}
