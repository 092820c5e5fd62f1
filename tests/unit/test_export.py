"""A run's steps as tables for others, with the numbers that the engine wrote."""

import csv
import io
import json
import sys
from pathlib import Path

import msgspec
import pytest

from composer_engine.protocol import Event, RunFailed, encode
from composer_tui.runs.export import ExportError, ExportFormat, export
from composer_tui.runs.feed import STEP_COLUMNS
from composer_tui.runs.folder import RunFolder
from tests.runs import EPOCH, folder_with, lines, numbered, started, step, whole_run

COLUMNS = ["step", "time", *STEP_COLUMNS, "kl"]


def exported(folder: RunFolder, kind: ExportFormat) -> list[dict[str, object]]:
    """The rows of an export, read back; what is missing is None."""
    out = io.BytesIO()
    rows = export(folder, kind, out)
    if kind == "csv":
        reader = csv.DictReader(io.StringIO(out.getvalue().decode(), newline=""))
        assert reader.fieldnames == COLUMNS
        table = [{k: json.loads(v) if v else None for k, v in row.items()} for row in reader]
    elif kind == "jsonl":
        table = [json.loads(line) for line in out.getvalue().splitlines()]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(out).to_pylist()
    assert len(table) == rows
    assert all(list(row) == COLUMNS for row in table)
    return table


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_export_holds_every_number_as_it_was_written(tmp_path: Path, kind: ExportFormat) -> None:
    rows = exported(folder_with(tmp_path, lines(whole_run(30))), kind)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[2]["loss"] == 1 / 3  # more digits than a chart keeps
    assert rows[2]["time"] == EPOCH + 6
    assert rows[2]["kl"] == 3 / 32
    assert rows[2]["channel/sdpo"] is None


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_resumed_step_is_exported_once_as_the_newest_attempt_had_it(
    tmp_path: Path, kind: ExportFormat
) -> None:
    again = msgspec.structs.replace(step(2), loss=7.0)
    died = RunFailed(kind="killed", message="!")
    stream: list[Event] = [started(), step(1), step(2), step(3), died, started(2), again]
    rows = exported(folder_with(tmp_path, lines(numbered(stream))), kind)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 7.0)]


def test_damage_duplicates_and_late_events_are_exported_in_order(tmp_path: Path) -> None:
    data = [*map(encode, whole_run(8))]
    mixed = [*data[:6], b"garbage\n", b"x" * (2 << 20) + b"\n", *data[8:], *data[6:8], *data]
    rows = exported(folder_with(tmp_path, b"".join(mixed) + b'{"event":"step_comp'), "csv")
    assert [row["step"] for row in rows] == list(range(1, 9))


def test_a_run_without_steps_has_a_heading_and_no_rows(tmp_path: Path) -> None:
    out = io.BytesIO()
    assert export(folder_with(tmp_path, lines(whole_run()[:4])), "csv", out) == 0
    assert out.getvalue().decode().split("\r\n") == [",".join(COLUMNS[:-1]), ""]


def test_a_run_without_events_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no events yet"):
        export(RunFolder(tmp_path), "csv", io.BytesIO())


def test_parquet_without_its_package_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match=r'pip install "composer-tui\[parquet\]"'):
        export(folder_with(tmp_path, lines(whole_run())), "parquet", io.BytesIO())
