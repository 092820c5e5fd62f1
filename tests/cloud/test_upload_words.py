"""A launch that sends much says what, and how far it has come."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from composer_engine.contract import INPUTS_MOUNT
from composer_tui.cloud.upload_words import SentBytes, UploadTeller, first_words, size_bytes

PATIENCE_SECONDS = 20.0


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """To a peer that reads whatever comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()

    def swallow() -> None:
        while theirs.recv(1 << 20):
            pass

    thread = threading.Thread(target=swallow)
    thread.start()
    with theirs:
        with ours:
            yield ours
        thread.join(PATIENCE_SECONDS)


def test_what_is_sent_is_told_by_what_it_is() -> None:
    said = first_words([("model", 98 << 20), ("data", 3 << 10)])
    assert (
        said == "uploading 98 MiB (model), 3 KiB (data); what Modal has already is not sent again"
    )


def test_links_count_as_the_files_that_are_sent_for_them(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").write_bytes(b"x" * 100)
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "weights").symlink_to(tmp_path / "blobs" / "b")
    (model / "nowhere").symlink_to(tmp_path / "nothing")
    (model / "sub" / "c").write_bytes(b"x" * 11)
    assert size_bytes(model) == 111
    assert size_bytes(model / "weights") == 100


def test_bytes_count_when_they_have_arrived_and_stay_counted(connection: socket.socket) -> None:
    sent = SentBytes()
    before = sent.total()
    connection.sendall(b"x" * 3_000_000)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sent.total() - before < 3_000_000:
        assert time.monotonic() < deadline
    connection.close()
    assert sent.total() - before >= 3_000_000


def test_an_upload_tells_how_far_it_is_until_it_is_over(
    connection: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"x" * (4 << 20))
    said: list[str] = []
    far = threading.Event()

    def say(words: str) -> None:
        said.append(words)
        if len(said) > 1:
            far.set()

    with UploadTeller([(tmp_path, f"{INPUTS_MOUNT}/model")], say, seconds=0.01):
        connection.sendall(b"x" * (1 << 20))
        assert far.wait(PATIENCE_SECONDS)
    count = len(said)
    assert said[0].startswith("uploading 4 MiB (model)")
    assert said[1].endswith(" of 4 MiB sent")
    connection.sendall(b"x" * (1 << 20))
    assert len(said) == count


def test_a_launch_that_brings_nothing_says_nothing() -> None:
    said: list[str] = []
    with UploadTeller([], said.append, seconds=0.01):
        pass
    assert said == []
