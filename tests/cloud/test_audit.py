"""What was stopped is written down before and after, whatever else happens to the file."""

import stat
import threading
from pathlib import Path

import pytest

from composer_tui.cloud import audit


def a_line(app_id: str = "ap-1", message: str = "") -> audit.AuditLine:
    return audit.line_of(
        12.5, "after", app_id, "run\x1b[2J", "now", result="gone", seconds=2.18, message=message
    )


def test_a_line_says_who_where_what_and_how_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "state" / "audit.jsonl"
    audit.append(path, [a_line()])
    (line,) = audit.read(path)
    assert (line.who, line.host) == audit.who_am_i()
    assert (line.app_id, line.name, line.mode) == ("ap-1", "run", "now")
    assert (line.result, line.seconds, line.time) == ("gone", 2.18, 12.5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_lines_of_many_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def write(writer: int) -> None:
        for number in range(20):
            audit.append(path, [a_line(f"ap-{writer}-{number}", "x" * 300)])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({line.app_id for line in audit.read(path)}) == 160


def test_a_torn_line_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit.append(path, [a_line("ap-1")])
    with path.open("ab") as file:
        file.write(b'{"time": 1, "wh\xff\n')
    audit.append(path, [a_line("ap-2")])
    assert [line.app_id for line in audit.read(path)] == ["ap-1", "ap-2"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        audit.append(path, [a_line()])
