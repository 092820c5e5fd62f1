"""Blobs: what is too large for a message, over the HTTP side."""

import base64
import hashlib
import io
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from grpclib import GRPCError, Status
from modal._utils.blob_utils import blob_download, blob_upload, blob_upload_file
from modal_proto import api_pb2

from composer_tui.rehearsal.blobs import PART_BYTES, Blobs
from tests.rehearsal.planes import RunningPlane, running


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlane]:
    with running(tmp_path_factory.mktemp("rehearsal")) as plane:
        yield plane


def create(plane: RunningPlane, data: bytes) -> api_pb2.BlobCreateResponse:
    response: api_pb2.BlobCreateResponse = plane.rpc(
        "BlobCreate",
        api_pb2.BlobCreateRequest(
            content_sha256_base64=base64.b64encode(hashlib.sha256(data).digest()).decode(),
            content_length=len(data),
        ),
    )
    return response


def kept(plane: RunningPlane, blob_id: str) -> bytes:
    return plane.get(plane.plane.area(Blobs).get, blob_id)


@pytest.mark.parametrize("size", [0, 1, 3 << 20, PART_BYTES, PART_BYTES + 1, 20_000_000])
def test_modals_own_upload_and_download_agree(plane: RunningPlane, size: int) -> None:
    data = os.urandom(size)

    async def there_and_back(client: modal.client._Client) -> tuple[str, bytes]:
        blob_id = await blob_upload(data, client._stub)
        return blob_id, await blob_download(blob_id, client._stub)

    with plane.client() as client:
        run = modal._utils.async_utils.synchronizer.create_blocking(there_and_back)
        blob_id, returned = run(client)
    assert returned == data
    assert kept(plane, blob_id) == data


def test_a_file_is_uploaded_in_parts(plane: RunningPlane, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * PART_BYTES + 5))

    async def upload(client: modal.client._Client) -> str:
        with path.open("rb") as file:
            return await blob_upload_file(file, client._stub)

    with plane.client() as client:
        blob_id = modal._utils.async_utils.synchronizer.create_blocking(upload)(client)
    assert kept(plane, blob_id) == path.read_bytes()


def test_other_content_than_announced_is_refused(plane: RunningPlane) -> None:
    created = create(plane, b"announced")
    answer = plane.fetch(created.upload_url, "PUT", b"different")
    assert answer.status == 400
    assert b"SHA-256" in answer.body
    with pytest.raises(GRPCError) as caught:
        plane.rpc("BlobGet", api_pb2.BlobGetRequest(blob_id=created.blob_id))
    assert caught.value.status is Status.NOT_FOUND
    assert plane.fetch(created.upload_url, "PUT", b"announced").status == 200  # a second try
    assert kept(plane, created.blob_id) == b"announced"


@pytest.mark.parametrize("body", [b"", b"shor", b"longer"])
def test_another_length_than_announced_is_refused(plane: RunningPlane, body: bytes) -> None:
    created = create(plane, b"12345")
    answer = plane.fetch(created.upload_url, "PUT", body)
    assert answer.status == 400
    assert b"bytes" in answer.body


def test_parts_with_other_checksums_make_no_blob(plane: RunningPlane) -> None:
    data = os.urandom(PART_BYTES + 10)
    created = create(plane, data)
    first, second = created.multipart.upload_urls
    completion = created.multipart.completion_url
    assert plane.fetch(completion, "POST", b"<Part></Part>").status == 400
    etags = [
        plane.fetch(url, "PUT", part).headers["ETag"].strip('"')
        for url, part in ((first, data[:PART_BYTES]), (second, bytes(10)))
    ]
    assert etags[1] == hashlib.md5(bytes(10), usedforsecurity=False).hexdigest()
    assert plane.fetch(completion, "POST", _parts(reversed(etags))).status == 400
    assert plane.fetch(completion, "POST", _parts(etags)).status == 400  # not what was announced
    assert list((plane.plane.root / "incoming").iterdir()) == []


def _parts(etags: "Iterator[str] | list[str]") -> bytes:
    return "".join(f"<Part><ETag>{etag}</ETag></Part>" for etag in etags).encode()


def test_a_connection_that_breaks_leaves_nothing_behind(plane: RunningPlane) -> None:
    created = create(plane, bytes(1 << 20))
    host, _, rest = created.upload_url.removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    with socket.create_connection((host, int(port))) as connection:
        head = f"PUT /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 20}\r\n\r\n"
        connection.sendall(head.encode() + bytes(1000))
    deadline = time.monotonic() + 20
    while list((plane.plane.root / "incoming").iterdir()):
        assert time.monotonic() < deadline, "half an upload is still there"
        time.sleep(0.01)


def test_an_address_does_one_thing_and_cannot_be_guessed(plane: RunningPlane) -> None:
    created = create(plane, b"data")
    assert plane.fetch(created.upload_url).status == 405
    base, _, capability = created.upload_url.rpartition("/")
    assert base.startswith("http://127.0.0.1:")
    assert len(capability) >= 43  # 256 bits
    for guess in ("", "x", capability[:-1], f"{capability}x", "../../etc/passwd"):
        assert plane.fetch(f"{base}/{guess}").status == 404


def test_an_id_is_no_path(plane: RunningPlane) -> None:
    for blob_id in ("", "../environments.json", "bl-../../../../../../etc/pa", "bl-" + "x" * 22):
        with pytest.raises(GRPCError) as caught:
            plane.rpc("BlobGet", api_pb2.BlobGetRequest(blob_id=blob_id))
        assert caught.value.status is Status.NOT_FOUND


def test_blobs_outlive_a_restart_until_they_are_old(tmp_path: Path) -> None:
    with running(tmp_path) as plane:
        young, old = (plane.get(plane.plane.area(Blobs).put, data) for data in (b"y", b"o"))
    os.utime(tmp_path / "blobs" / old, (0, 0))
    with running(tmp_path) as plane:
        assert kept(plane, young) == b"y"
        assert not (tmp_path / "blobs" / old).exists()


def test_large_files_of_a_volume_version_1_go_through_parts(plane: RunningPlane) -> None:
    data = os.urandom(PART_BYTES * 2)
    with plane.client() as client, modal.Volume.ephemeral(version=1, client=client) as volume:
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(data), "/file")
        assert b"".join(volume.read_file("file")) == data
