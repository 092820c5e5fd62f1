"""A run read from its folder: the same whatever the reading, and nothing makes it fall over."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_engine.protocol import (
    AlertRaised,
    DeviceSample,
    Evaluated,
    Event,
    Logged,
    MemorySampled,
    RunFailed,
    SampleGenerated,
    StepCompleted,
    encode,
)
from composer_tui.runs.feed import MEMORY_COLUMNS, STEP_COLUMNS, RunFeed
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.table import StepTable
from tests.runs import folder_with, lines, numbered, started, step, whole_run

GARBAGE = [
    b"",
    b"garbage",
    b"\xff\xfe\x00",
    b"[" * 5000,
    b'{"event":"step_completed"}',
    b'{"event":"of_tomorrow","seq":3,"x":1}',
    b'{"event":"logged","seq":1,"level":"info","message":"\\ud800"}',
    b'{"event":"logged","seq":' + b"9" * 30 + b',"time":1,"level":"info","message":"m"}',
    b'{"event":"step_completed","seq":2,"time":1,"step":' + b"9" * 30 + b',"loss":1,"channels":{}}',
    b'{"event":"step_completed","seq":2,"time":1,"step":-1,"loss":1,"channels":{}}',
    "žluť 深層 👩‍🚀".encode(),
]


def read(folder: RunFolder, limit: int = 1 << 18) -> RunFeed:
    """The folder, read to its end."""
    feed = RunFeed(folder)
    while feed.poll(limit) or not feed.caught_up:
        pass
    feed.close()
    return feed


def contents(table: StepTable) -> object:
    columns = {
        name: [None if math.isnan(v) else v for v in series.values(0, len(table))]
        for name, series in table.series.items()
    }
    return (list(table.steps), table.times.tolist(), columns)


def everything(feed: RunFeed) -> object:
    """All that a viewer can see."""
    tables = [contents(table) for table in (feed.table, feed.memory, feed.evaluations)]
    log = (list(feed.log.lines), feed.log.total, feed.progress)
    return (feed.state, tables, log, list(feed.samples), feed.bad_lines, feed.truncated_lines)


def rich_stream() -> list[Event]:
    run = whole_run(6)
    extras: list[Event] = [
        Evaluated(step=3, metrics={"accuracy": 0.5, "žluť": None}),
        SampleGenerated(step=3, prompt="1+1=\n", completion="\x1b[31m2", reward=1.0),
        AlertRaised(rule="spike", level="warning", step=3, message="深層\x07"),
        MemorySampled(devices=(DeviceSample(index=1, utilization=0.5),)),
        Logged(level="error", message="two\nlines"),
    ]
    return numbered([*run[:9], *extras, *run[9:]])


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 4000), max_size=12),
    st.integers(1, 700),
    st.lists(st.tuples(st.integers(0, 22), st.sampled_from(GARBAGE)), max_size=4),
)
def test_any_cut_of_the_bytes_gives_the_same_run(
    places: list[int], limit: int, garbage: list[tuple[int, bytes]]
) -> None:
    stream = [encode(event) for event in rich_stream()]
    for place, line in garbage:
        stream.insert(place, line + b"\n")
    data = b"".join(stream)
    log = "start\nžluť 深\r 10%\r 20%|##\nWARNING: x\n 90%|深".encode()
    ends = [*sorted(min(place, len(data)) for place in places), len(data)]
    with TemporaryDirectory() as root:
        expected = folder_with(Path(root) / "whole", data)
        expected.log_path.write_bytes(log)
        grown = folder_with(Path(root) / "grown", b"")
        feed = RunFeed(grown)
        for start, end in zip([0, *ends], ends, strict=False):
            with grown.events_path.open("ab") as file:
                file.write(data[start:end])
            with grown.log_path.open("ab") as file:
                file.write(log[start * len(log) // len(data) : end * len(log) // len(data)])
            feed.poll(limit)
        while feed.poll(limit) or not feed.caught_up:
            pass
        feed.close()
        whole = read(expected)
        # Lines of the two files mix as they are read; each file's own keep their order.
        assert sorted(feed.log.lines, key=str) == sorted(whole.log.lines, key=str)
        feed.log, whole.log = whole.log, whole.log
        assert everything(feed) == everything(whole)


def test_a_run_becomes_a_state_and_a_table(tmp_path: Path) -> None:
    feed = read(folder_with(tmp_path, lines(rich_stream())))
    assert feed.state.life == "finished"
    assert list(feed.table.series) == [*STEP_COLUMNS, "kl"]
    assert list(feed.table.steps) == [1, 2, 3, 4, 5, 6]
    assert feed.table.series["channel/grpo"].values(0, 2).tolist() == [0.5, 1.0]
    assert feed.table.series["channel/sdpo"].empty
    assert list(feed.memory.series) == [
        *MEMORY_COLUMNS,
        "gpu1/utilization",
        "gpu1/power_watts",
        "gpu1/temperature_c",
        "gpu1/used_bytes",
        "gpu1/total_bytes",
    ]
    assert list(feed.memory.steps) == [0, 1]
    assert list(feed.evaluations.series) == ["accuracy", "žluť"]
    assert feed.samples[0].prompt == "1+1=\n"
    assert feed.samples[0].completion == "2"
    assert [line.text for line in feed.log.lines] == [
        "loading...",
        "builtin, 1,000 parameters, on a CPU; 6 steps",
        "training...",
        "off we go",
        "evaluated at step 3: accuracy 0.5, žluť —",
        "spike: 深層",
        "two",
        "lines",
        "saved checkpoints/last at step 6",
        "finished after 6 steps",
    ]
    assert (feed.bad_lines, feed.state.missing) == (0, 0)


def test_a_feed_waits_for_a_folder_that_has_nothing_yet(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "later")
    feed = RunFeed(folder)
    assert not feed.poll()
    assert (feed.version, feed.caught_up) == (0, True)
    folder_with(folder.path, lines(whole_run()[:5]))
    assert feed.poll()
    assert (feed.version, len(feed.table)) == (1, 1)
    assert not feed.poll()
    assert feed.version == 1
    with folder.events_path.open("ab") as file:
        file.write(lines(whole_run()[5:]))
    assert feed.poll()
    assert feed.state.ended
    feed.close()


@pytest.mark.parametrize("line", GARBAGE[1:])
def test_a_line_of_garbage_costs_itself_and_nothing_else(tmp_path: Path, line: bytes) -> None:
    stream = whole_run()
    data = [*map(encode, stream)]
    feed = read(folder_with(tmp_path, b"".join([*data[:5], line + b"\n", *data[5:]])))
    assert feed.bad_lines + feed.state.duplicates == 1
    assert feed.state.life == "finished"
    assert len(feed.table) == 10


def test_the_event_of_a_newer_version_leaves_no_hole(tmp_path: Path) -> None:
    data = [*map(encode, whole_run())]
    data[5] = b'{"event":"of_tomorrow","seq":5,"x":1}\n'
    feed = read(folder_with(tmp_path, b"".join(data)))
    assert (feed.state.missing, feed.state.unrecognized, feed.bad_lines) == (0, 1, 0)
    assert len(feed.table) == 9


def test_a_line_over_a_megabyte_is_counted_and_keeps_its_place(tmp_path: Path) -> None:
    stream = whole_run()
    stream[3] = msgspec.structs.replace(stream[3], message="x" * (3 << 20))
    feed = read(folder_with(tmp_path, lines(stream)))
    assert (feed.truncated_lines, feed.state.missing, feed.bad_lines) == (1, 0, 0)
    assert feed.state.life == "finished"


def test_duplicated_events_are_counted_and_not_stored_twice(tmp_path: Path) -> None:
    stream = rich_stream()
    doubled = [event for event in stream for _ in range(2)]
    feed, once = read(folder_with(tmp_path / "2", lines(doubled))), None
    once = read(folder_with(tmp_path / "1", lines(stream)))
    assert feed.state.duplicates == len(stream)
    feed.state = msgspec.structs.replace(feed.state, duplicates=0)
    assert everything(feed) == everything(once)


def test_a_gap_that_is_filled_late_leaves_the_table_as_if_it_had_not_been(tmp_path: Path) -> None:
    stream = whole_run(40)
    late = stream[:10] + stream[25:] + stream[12:25] + stream[10:12]
    feed = read(folder_with(tmp_path / "late", lines(late)))
    in_time = read(folder_with(tmp_path / "in-time", lines(stream)))
    assert feed.state.missing == 0
    assert contents(feed.table) == contents(in_time.table)


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    died = RunFailed(kind="killed", message="!")
    stream = numbered([started(), step(1), step(2), step(3), died, started(2), step(2)])
    feed = read(folder_with(tmp_path, lines(stream)))
    assert list(feed.table.steps) == [1, 2]
    assert feed.state.life == "training"
    assert feed.state.attempt == 2


@pytest.mark.parametrize("limit", [64, 1 << 18])
def test_a_file_that_is_replaced_is_read_again_and_nothing_doubles(
    tmp_path: Path, limit: int
) -> None:
    folder = folder_with(tmp_path, lines(whole_run()[:8]) + b'{"event":"torn')
    feed = RunFeed(folder)
    while feed.poll(limit) or not feed.caught_up:
        pass
    (tmp_path / "restored").write_bytes(lines(whole_run()))
    (tmp_path / "restored").replace(folder.events_path)
    while feed.poll(limit) or not feed.caught_up:
        pass
    feed.close()
    assert feed.resets == 1
    assert feed.state.duplicates == 8
    assert (feed.state.life, len(feed.table), feed.bad_lines) == ("finished", 10, 0)


def test_hostile_names_and_text_come_out_clean(tmp_path: Path) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07"
    hostile: list[Event] = [
        started(),
        msgspec.structs.replace(step(1), metrics={f"kl{evil}": 1.0, "loss": 2.0}),
        SampleGenerated(step=1, prompt=evil, completion=evil, reward=None),
        Logged(level="info", message=evil),
        AlertRaised(rule="oom", level="error", message=evil),
        RunFailed(kind="engine", message=evil, hint=evil, detail=evil),
    ]
    folder = folder_with(tmp_path, lines(numbered(hostile)) + evil.encode() + b"\n")
    folder.log_path.write_bytes(f"{evil}\n{evil} 10%".encode())
    feed = read(folder)
    assert "\x1b" not in repr(everything(feed)).replace("\\x1b", "\x1b")
    assert list(feed.table.series)[-2:] == ["kl", "metrics/loss"]
    assert feed.table.series["metrics/loss"].last == 2.0
    assert isinstance(feed.state.last, StepCompleted)
    assert list(feed.state.last.metrics) == ["kl", "loss"]


def test_a_progress_bar_is_one_live_line_and_then_one_line(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, b"")
    folder.log_path.write_bytes(b"loading\n\r 10%|#  |\r 20%|## |")
    feed = RunFeed(folder)
    feed.poll()
    assert feed.progress == " 20%|## |"
    assert [line.text for line in feed.log.lines] == ["loading"]
    with folder.log_path.open("ab") as file:
        file.write(b"\r100%|###|\nERROR: full\n")
    feed.poll()
    feed.close()
    assert feed.progress == ""
    assert [(line.level, line.text) for line in feed.log.lines] == [
        ("info", "loading"),
        ("info", "100%|###|"),
        ("error", "ERROR: full"),
    ]


def test_the_log_is_a_ring_that_counts(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, b"")
    folder.log_path.write_bytes(b"".join(b"%d\n" % i for i in range(25_000)))
    feed = read(folder)
    assert (len(feed.log), feed.log.total, feed.log.dropped) == (10_000, 25_000, 15_000)
    assert feed.log.lines[-1].text == "24999"
