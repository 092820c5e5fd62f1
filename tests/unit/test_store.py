"""Runs on disk: there whole or not at all, found by a few letters, listed even when damaged."""

import os
from pathlib import Path

import pytest

from composer_engine.config import RunConfig, load
from composer_engine.protocol import RunFailed, decode
from composer_tui.runs import store as store_module
from composer_tui.runs.folder import DamagedFolder, ProcessRef, RunFolder
from composer_tui.runs.journal import append, read_end
from composer_tui.runs.store import (
    AmbiguousRun,
    RunNotFound,
    RunStore,
    default_runs_dir,
)
from tests.runs import EPOCH, folder_with, lines, numbered, started, step, whole_run


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def test_a_run_is_created_whole(store: RunStore) -> None:
    config = RunConfig(name="smoke", tags=("a",))
    launcher = ProcessRef(pid=1, start_time=2.0, pgid=3)
    folder = store.create(config, "local", EPOCH, launcher)
    record = folder.read_record()
    assert folder.run_id == record.run_id
    assert record.run_id.startswith("smoke-2023111")
    assert (record.config, record.target, record.launcher) == (config, "local", launcher)
    assert record.cwd == str(Path.cwd())
    assert load(file=folder.config_path) == config
    assert [path.name for path in store.root.iterdir()] == [folder.run_id]
    assert {path.name for path in folder.path.iterdir()} == {"run.json", "config.toml"}


def test_a_run_that_cannot_be_written_leaves_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        store.create(RunConfig(), "local", EPOCH)
    assert list(store.root.iterdir()) == []


def test_what_a_killed_launch_left_is_no_run_and_is_swept_in_a_day(store: RunStore) -> None:
    store.root.mkdir()
    unborn = store.root / ".new-abc"
    unborn.mkdir()
    os.utime(unborn, (EPOCH, EPOCH))
    assert store.folders() == []
    store.create(RunConfig(), "local", EPOCH + 60)
    assert unborn.exists()
    store.create(RunConfig(), "local", EPOCH + 100_000)
    assert not unborn.exists()


def test_runs_of_the_same_second_have_different_names(store: RunStore) -> None:
    ids = {store.create(RunConfig(), "local", EPOCH).run_id for _ in range(20)}
    assert len(ids) == 20


def test_folders_come_newest_first_whatever_their_names(store: RunStore) -> None:
    old = store.create(RunConfig(name="zebra"), "local", EPOCH)
    new = store.create(RunConfig(name="ant"), "local", EPOCH + 0.5)
    assert store.folders() == [new, old]
    assert store.find("last") == new


def test_a_run_is_found_by_its_id_or_by_how_it_begins(store: RunStore) -> None:
    one = store.create(RunConfig(name="smoke"), "local", EPOCH)
    two = store.create(RunConfig(name="short"), "local", EPOCH + 1)
    (store.root / f"{one.run_id}-copy").mkdir()
    assert store.find(one.run_id) == one
    assert store.find("sho") == two
    with pytest.raises(AmbiguousRun, match=r"'s' begins 3 runs: .*short-.*smoke-"):
        store.find("s")
    with pytest.raises(RunNotFound, match="no run is called 'x'"):
        store.find("x")
    with pytest.raises(RunNotFound, match="no run is called ''"):
        store.find("")


def test_a_store_without_runs_says_so(store: RunStore) -> None:
    with pytest.raises(RunNotFound, match="there are no runs in "):
        store.find("last")
    assert store.summaries() == []


def test_a_summary_tells_the_end_of_a_run_from_its_two_ends(store: RunStore) -> None:
    folder = store.create(RunConfig(name="smoke"), "local", EPOCH)
    [summary] = store.summaries()
    assert (summary.life, summary.steps, summary.total_steps) == ("launching", 0, 150)
    folder.events_path.write_bytes(lines(whole_run(5000)))
    [summary] = store.summaries()
    assert (summary.life, summary.steps, summary.total_steps) == ("finished", 5000, 5000)
    assert summary.reward_mean == 5000 / 16
    assert (summary.model, summary.target, summary.damage) == ("builtin", "local", "")
    assert summary.ended_at == EPOCH + 5006
    assert store.summaries()[0] is summary  # not read again


def test_a_summary_tells_why_a_run_failed(store: RunStore) -> None:
    folder = store.create(RunConfig(), "local", EPOCH)
    failed = RunFailed(kind="oom", message="out of\x1b[2J memory")
    folder.events_path.write_bytes(lines(numbered([started(), step(1), failed])))
    [summary] = store.summaries()
    assert (summary.life, summary.failure) == ("failed", "out of memory")


@pytest.mark.parametrize("record", [None, b"", b"{", b'{"version": 1}', b"\xff\x00", b"[" * 9999])
def test_a_damaged_run_is_listed_with_its_damage(store: RunStore, record: bytes | None) -> None:
    folder = folder_with(store.root / "broken", b"\x00\xff garbage \n{\n")
    if record is not None:
        folder.record_path.write_bytes(record)
    [summary] = store.summaries()
    assert summary.run_id == "broken"
    assert summary.damage.startswith("run.json is ")
    assert store.find("last") == folder
    with pytest.raises(DamagedFolder, match=r"run\.json is "):
        folder.read_record()


def test_a_run_whose_files_are_folders_is_listed_too(store: RunStore) -> None:
    folder = RunFolder(store.root / "odd")
    folder.record_path.mkdir(parents=True)
    folder.events_path.mkdir()
    (store.root / "a-file").write_text("no run")
    [summary] = store.summaries()
    assert "run.json is not a file" in summary.damage
    assert "events.jsonl cannot be read" in summary.damage


def test_the_runs_folder_can_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSER_RUNS_DIR", "~/my-runs")
    assert default_runs_dir() == Path.home() / "my-runs"
    monkeypatch.delenv("COMPOSER_RUNS_DIR")
    assert default_runs_dir().parts[-2:] == ("composer-tui", "runs")


def test_only_one_holds_a_folders_lock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock() as first, folder.lock() as second:
        assert (first, second) == (True, False)
    with folder.lock() as third:
        assert third


@pytest.mark.parametrize(
    ("tail", "next_seq"),
    [
        (b"", 17),
        (b'{"event":"logged","seq":17,"ti', 17),
        (b"garbage\n" * 5000, 17),
        (b"x" * (3 << 20) + b"\n", 17),
        (b'{"event":"logged","seq":17,"message":"' + b"x" * (3 << 20) + b'"}\n', 18),
        (b'{"event":"of_tomorrow","seq":17}\n', 18),
    ],
    ids=["whole", "torn", "garbage", "long garbage", "long event", "newer event"],
)
def test_the_next_number_is_found_behind_any_damage(
    tmp_path: Path, tail: bytes, next_seq: int
) -> None:
    folder = folder_with(tmp_path, lines(whole_run()) + tail)
    assert read_end(folder.events_path).next_seq == next_seq
    word = RunFailed(seq=next_seq, time=1.0, kind="killed", message="!")
    append(folder.events_path, [word])
    *before, last, nothing = folder.events_path.read_bytes().split(b"\n")
    assert (decode(last), nothing) == (word, b"")
    assert (lines(whole_run()) + tail).rstrip(b"\n") == b"\n".join(before)


def test_a_stream_that_has_not_begun_begins_at_zero(tmp_path: Path) -> None:
    assert read_end(tmp_path / "events.jsonl").next_seq == 0
