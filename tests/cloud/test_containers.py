"""Containers, their logs and their functions' statistics, by the command line."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_tui.cloud.app_logs import Lines, LogLine, parse_since
from tests.cloud.storage_fixtures import Shell
from tests.rehearsal.rehearsal import Rehearsal, wait_until

_APP = """
import modal, sys
app = modal.App(sys.argv[1])

@app.function(serialized=True, timeout=600)
def work(seconds):
    import sys, time
    print("hel", end="", flush=True)
    print("lo \\x1b]0;owned\\x07there", flush=True)
    print("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
    for number in range(int(seconds * 10)):
        print(f"beat {number}", flush=True)
        time.sleep(0.1)

with app.run(detach=True):
    work.spawn(float(sys.argv[2]))
    print(app.app_id)
"""


class Working(NamedTuple):
    app_id: str
    container_id: str


def spawn(plane: Rehearsal, folder: Path, name: str, seconds: float) -> str:
    script = folder / "app.py"
    script.write_text(_APP)
    return plane.script(script, name, str(seconds)).strip()


@pytest.fixture(scope="module")
def working(stored: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Working]:
    """An app with one container that has said hello."""
    app_id = spawn(stored, tmp_path_factory.mktemp("app"), "working", 300)
    wait_until(lambda: "beat 1" in stored.text(app_id), "a first beat")
    yield Working(app_id, stored.tasks(app_id)[0].task_id)
    stored.modal("app", "stop", app_id, "--yes")


def test_a_container_is_listed_with_its_app(shell: Shell, working: Working) -> None:
    listing = shell("containers", "--json").json
    (row,) = [one for one in listing["containers"] if one["app_id"] == working.app_id]
    assert row["container_id"] == working.container_id
    assert row["app_name"] == "working"
    assert 0 <= time.time() - row["started_at"] < 120


def test_an_app_is_found_by_its_name_and_its_functions_say_how_busy_they_are(
    shell: Shell, working: Working
) -> None:
    (function,) = shell("containers", "working", "--json").json["functions"]
    busy = (function["name"], function["containers"], function["running_inputs"])
    assert busy == ("work", 1, 1)
    assert "INPUTS RUNNING" in shell("containers", working.app_id).out


def test_lines_are_whole_clean_and_answered(shell: Shell, working: Working) -> None:
    done = shell("logs", "working", "--tail", "20000")
    assert done.status == 0, done.err
    assert "hello there\n" in done.out
    assert "\x1b" not in done.out
    assert done.err.count("\n") == 1
    assert "2.00 GiB more did not fit" in done.err
    assert "optimizer.micro_batches" in done.err


def test_a_containers_lines_are_its_own(shell: Shell, working: Working) -> None:
    lines = [
        json.loads(line) for line in shell("logs", working.container_id, "--json").out.splitlines()
    ]
    assert {line["container_id"] for line in lines} == {working.container_id}
    assert {line["source"] for line in lines} >= {"stdout"}
    assert all(abs(line["time"] - time.time()) < 120 for line in lines)


def test_since_leaves_out_what_was_before(
    shell: Shell, stored: Rehearsal, working: Working
) -> None:
    assert "hello" in shell("logs", working.app_id, "--since", "1h").out
    wait_until(lambda: "beat 40" in stored.text(working.app_id), "some more beats")
    recent = shell("logs", working.app_id, "--since", "1s").out
    assert "beat" in recent
    assert "hello" not in recent


def test_following_ends_with_the_app_and_misses_nothing(stored: Rehearsal, tmp_path: Path) -> None:
    app_id = spawn(stored, tmp_path, "followed", 1.5)
    done = subprocess.run(
        [sys.executable, "-m", "composer_tui", "logs", app_id, "-f"],
        env=stored.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    beats = [line for line in done.stdout.splitlines() if line.startswith("beat")]
    assert beats == [f"beat {number}" for number in range(15)]


def test_a_container_that_ended_still_has_its_lines(
    shell: Shell, stored: Rehearsal, tmp_path: Path
) -> None:
    app_id = spawn(stored, tmp_path, "brief", 0.1)
    tasks = wait_until(lambda: stored.tasks(app_id) or stored.states(app_id), "its container")
    container_id = tasks[0].task_id if hasattr(tasks[0], "task_id") else ""
    wait_until(lambda: not stored.tasks(app_id), "its end")
    assert "beat 0" in shell("logs", app_id).out
    if container_id:
        assert "beat 0" in shell("logs", container_id).out
        assert shell("logs", container_id, "-f").status == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("logs", "no-such-app"), "composer-tui apps"),
        (("logs", "ta-0000000000000000000000"), "not found"),
        (("logs", "ap-0000000000000000000000"), "refused"),
        (("logs", "x", "--since", "yesterday"), "30m"),
        (("logs", "x", "--since", "1h", "-f"), "--follow"),
    ],
)
def test_a_mistake_is_one_line(shell: Shell, arguments: tuple[str, ...], word: str) -> None:
    done = shell(*arguments)
    assert done.status == 2
    assert word in done.err
    assert len(done.err.splitlines()) == 1


_CHUNKS = st.lists(
    st.tuples(st.sampled_from(["ta-1", "ta-2"]), st.text("ab\n", max_size=6)), max_size=30
)


@given(_CHUNKS)
def test_chunks_of_two_containers_become_the_lines_of_each(chunks: list[tuple[str, str]]) -> None:
    lines = Lines()
    told = []
    for number, (where, text) in enumerate(chunks):
        chunk = LogLine(time=float(number), source="stdout", container_id=where, text=text)
        told += list(lines.feed(chunk))
    told += list(lines.flush())
    for where in ("ta-1", "ta-2"):
        whole = "".join(text for one, text in chunks if one == where)
        expected = whole.split("\n")
        if expected[-1] == "":
            expected.pop()
        assert [line.text for line in told if line.container_id == where] == expected
    assert all("\n" not in line.text for line in told)


def test_a_line_without_end_is_cut_and_nothing_is_lost() -> None:
    lines = Lines()
    chunk = LogLine(time=1.0, source="stdout", container_id="ta-1", text="x" * 200_000)
    told = [*lines.feed(chunk), *lines.flush()]
    assert "".join(line.text for line in told) == chunk.text
    assert max(len(line.text) for line in told) <= 1 << 16


def test_a_time_is_given_as_an_age_or_a_date() -> None:
    assert parse_since("30m", 10_000.0) == 10_000.0 - 1800
    assert parse_since("1d", 100_000.0) == 100_000.0 - 86_400
    assert parse_since("1970-01-01T00:00:10+00:00", 0.0) == 10.0
    for text in ("", "m", "-1h", "1w", "soon", "9999999999999d", "²s"):
        with pytest.raises(ValueError, match="such as"):
            parse_since(text, 0.0)
