"""Dictionaries and queues, with Modal's own library."""

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from modal_proto import api_pb2

from tests.rehearsal.planes import RunningPlane, running


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlane]:
    with running(tmp_path_factory.mktemp("rehearsal")) as plane:
        yield plane


@pytest.fixture(scope="module")
def client(plane: RunningPlane) -> Iterator[modal.Client]:
    with plane.client() as client:
        yield client


def test_a_dict_keeps_what_is_put_in(client: modal.Client) -> None:
    entries = modal.Dict.from_name("shelf", create_if_missing=True, client=client)
    entries["step"] = 7
    entries.update({"loss": 0.5, ("a", 1): b"\0raw"})
    assert entries["step"] == 7
    assert entries.get("nothing", "else") == "else"
    assert entries.contains("loss")
    assert not entries.contains("gain")
    assert entries.len() == 3
    assert dict(entries.items()) == {"step": 7, "loss": 0.5, ("a", 1): b"\0raw"}
    assert set(entries.keys()) == {"step", "loss", ("a", 1)}
    assert entries.pop("loss") == 0.5
    with pytest.raises(KeyError):
        entries.pop("loss")
    entries.clear()
    assert entries.len() == 0


def test_a_key_that_is_there_is_not_put_again(client: modal.Client) -> None:
    with modal.Dict.ephemeral(client=client) as entries:
        assert entries.put("owner", "first", skip_if_exists=True)
        assert not entries.put("owner", "second", skip_if_exists=True)
        assert entries["owner"] == "first"
        assert entries.put("owner", "third")
        assert entries["owner"] == "third"


def test_of_many_who_claim_a_key_one_wins(client: modal.Client) -> None:
    with modal.Dict.ephemeral(client=client) as entries:
        won: list[int] = []

        def claim(number: int) -> None:
            if entries.put("lease", number, skip_if_exists=True):
                won.append(number)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [entries["lease"]]


def test_an_unknown_dict_is_not_found_in_modals_own_words(client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="Dict 'none' not found in environ"):
        modal.Dict.from_name("none", client=client).hydrate()


def test_dicts_are_listed_and_deleted(client: modal.Client) -> None:
    for name in ("one", "two"):
        modal.Dict.objects.create(name, client=client)
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Dict.objects.create("one", client=client)
    names = [each.name for each in modal.Dict.objects.list(client=client)]
    assert names.index("two") < names.index("one")  # newest first
    modal.Dict.objects.delete("one", client=client)
    assert "one" not in [each.name for each in modal.Dict.objects.list(client=client)]


def test_dicts_and_queues_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as plane, plane.client() as client:
        modal.Dict.from_name("kept", create_if_missing=True, client=client)["step"] = 3
        modal.Queue.from_name("kept", create_if_missing=True, client=client).put_many([1, 2])
        with modal.Dict.ephemeral(client=client) as gone:
            gone["step"] = 4
        with modal.Queue.ephemeral(client=client) as gone_line:
            gone_line.put("gone")
    with running(tmp_path) as plane, plane.client() as client:
        assert modal.Dict.from_name("kept", client=client)["step"] == 3
        assert modal.Queue.from_name("kept", client=client).get_many(5) == [1, 2]
        with pytest.raises(modal.exception.NotFoundError):
            modal.Dict.from_id(gone.object_id, client=client).hydrate()
    for table, path in (("entries", "dicts.sqlite"), ("items", "queues.sqlite")):
        with contextlib.closing(sqlite3.connect(tmp_path / path)) as store:
            kept = store.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  # ours
        assert kept == ({"entries": 1, "items": 0}[table],)


def test_a_queue_is_first_in_first_out_in_each_partition(client: modal.Client) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        line.put_many([1, 2, 3])
        line.put("other", partition="side")
        assert line.len() == 3
        assert line.len(partition="side") == 1
        assert line.len(total=True) == 4
        assert [line.get(), line.get_many(5)] == [1, [2, 3]]
        assert line.get(partition="side") == "other"


def test_getting_waits_for_a_value(client: modal.Client) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        late = threading.Timer(0.2, line.put, ["late"])
        late.start()
        started = time.monotonic()
        assert line.get(timeout=20) == "late"
        assert time.monotonic() - started < 15
        late.join()


def test_getting_in_vain_ends_when_its_time_is_over(client: modal.Client) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        started = time.monotonic()
        with pytest.raises(queue.Empty):
            line.get(timeout=0.3)
        assert 0.25 < time.monotonic() - started < 10
        assert line.get(block=False) is None


def test_each_value_goes_to_one_taker(client: modal.Client) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        taken: list[int | None] = []
        takers = [
            threading.Thread(target=lambda: taken.append(line.get(timeout=20))) for _ in range(6)
        ]
        for taker in takers:
            taker.start()
        line.put_many(list(range(6)))
        for taker in takers:
            taker.join()
        assert {*taken} == {*range(6)}


def test_looking_through_a_queue_takes_nothing(client: modal.Client) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        line.put_many(list(range(150)))  # more than one answer holds
        assert list(line.iterate()) == list(range(150))
        assert line.len() == 150


def test_a_full_partition_takes_no_more(client: modal.Client) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        line.put_many([0] * 4999)
        with pytest.raises(queue.Full):
            line.put_many([1, 2], block=False)
        assert line.len() == 4999  # all or nothing
        line.put(1, block=False)
        with pytest.raises(queue.Full):
            line.put(2, timeout=0.2)
        line.put("elsewhere", partition="side", block=False)


def test_a_partition_is_cleared_when_its_lifetime_is_over(
    plane: RunningPlane, client: modal.Client
) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        line.put("short", partition="short", partition_ttl=1)
        line.put("long")
        deadline = time.monotonic() + 20
        while line.len(partition="short"):
            assert time.monotonic() < deadline, "it was never cleared"
            time.sleep(0.1)
        assert line.len(total=True) == 1


def test_clearing_is_of_one_partition_or_of_all(client: modal.Client) -> None:
    with modal.Queue.ephemeral(client=client) as line:
        for partition in (None, "a", "b"):
            line.put(1, partition=partition)
        line.clear(partition="a")
        assert line.len(total=True) == 2
        line.clear(all=True)
        assert line.len(total=True) == 0


def test_queues_are_listed_with_their_sizes(plane: RunningPlane, client: modal.Client) -> None:
    line = modal.Queue.from_name("listed", create_if_missing=True, client=client)
    line.put_many([1, 2])
    line.put(3, partition="side")
    [listed] = plane.rpc("QueueList", api_pb2.QueueListRequest(environment_name="main")).queues
    assert (listed.name, listed.num_partitions, listed.total_size) == ("listed", 2, 3)
    modal.Queue.objects.delete("listed", client=client)
    assert modal.Queue.objects.list(client=client) == []
