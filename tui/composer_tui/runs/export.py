"""A run's steps as a table for other programs: CSV, JSON lines or Parquet.

One row a step, in order, each step once: after a resume the newest attempt's. The numbers are read
from the events, so they are what the engine wrote and not what a chart rounds them to. Columns are
``step``, ``time`` (unix seconds) and then those of `composer_tui.runs.feed.RunFeed.table`; what was
not measured is empty (CSV), null (JSON lines) or null (Parquet).
"""

import csv
import io
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import msgspec

from composer_engine.protocol import StepCompleted
from composer_tui.runs.feed import STEP_COLUMNS, step_columns
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.journal import read_line
from composer_tui.runs.sanitise import clean_event
from composer_tui.runs.state import RunState, advance

ExportFormat = Literal["csv", "jsonl", "parquet"]
_MAX_LINE = 1 << 20
_ROWS_AT_ONCE = 4096

Cell = int | float | None


class ExportError(RuntimeError):
    """An export that cannot be made; the message is one line and says what to do."""


class _Index(NamedTuple):
    """Where in the events file each step's line begins, by rising step; and all the columns."""

    steps: "array[int]"
    offsets: "array[int]"
    columns: list[str]


def export(folder: RunFolder, format: ExportFormat, out: BinaryIO) -> int:  # noqa: A002  # its name
    """Writes the run's steps to ``out`` and answers how many rows there were.

    A run without steps gives a table without rows. Memory does not grow with the run, but for 16
    bytes a step. Raises `ExportError`; OSError when ``out`` cannot be written.
    """
    write = {"csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet}[format]
    path = folder.events_path
    try:
        index = _index(path)
        write(index.columns, _rows(path, index), out)
    except FileNotFoundError:
        raise ExportError(f"{folder.run_id} has no events yet") from None
    return len(index.steps)


def _index(path: Path) -> _Index:
    steps, offsets = array("q"), array("q")
    columns = dict.fromkeys(STEP_COLUMNS)
    state, offset = RunState(), 0
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE):
            here, offset = offset, offset + len(line)
            if not line.endswith(b"\n"):
                continue  # a line that is too long, a piece of it, or one still being written
            event = read_line(line)
            before, state = state, advance(state, event)
            if not isinstance(event, StepCompleted) or state.duplicates != before.duplicates:
                continue
            row = bisect_left(steps, event.step)
            if event.seq < before.next_seq:  # late: it never replaces what came in time
                if row < len(steps) and steps[row] == event.step:
                    continue
                steps.insert(row, event.step)
                offsets.insert(row, here)
            else:
                del steps[row:], offsets[row:]
                steps.append(event.step)
                offsets.append(here)
            columns |= dict.fromkeys(step_columns([clean_event(event)]))
    return _Index(steps, offsets, ["step", "time", *columns])


def _rows(path: Path, index: _Index) -> Iterator[dict[str, Cell]]:
    with path.open("rb") as file:
        position = 0
        for offset in index.offsets:
            if offset != position:
                file.seek(offset)
            line = file.readline()
            position = offset + len(line)
            event = read_line(line)
            if isinstance(event, StepCompleted):
                cells = step_columns([clean_event(event)])
                row: dict[str, Cell] = {"step": event.step, "time": event.time}
                yield row | {name: column[0] for name, column in cells.items()}


def _write_csv(columns: list[str], rows: Iterator[dict[str, Cell]], out: BinaryIO) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    finally:
        text.detach()  # ``out`` is the caller's to close


def _write_jsonl(columns: list[str], rows: Iterator[dict[str, Cell]], out: BinaryIO) -> None:
    encoder = msgspec.json.Encoder()
    blank = dict.fromkeys(columns)
    out.writelines(encoder.encode(blank | row) + b"\n" for row in rows)


def _write_parquet(columns: list[str], rows: Iterator[dict[str, Cell]], out: BinaryIO) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ExportError(
            'Parquet needs pyarrow, which is not installed: pip install "composer-tui[parquet]"'
        ) from None
    types = {"step": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in columns])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=schema))
