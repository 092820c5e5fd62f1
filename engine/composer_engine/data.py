"""Training rows: what a run learns from.

| ``data.path`` | |
|---|---|
| a JSONL file | one JSON object a line, UTF-8 |
| a ``.parquet`` file | read in pieces, and of it the columns below |
| a folder | a data set that ``datasets`` saved, or ``.jsonl``, ``.parquet`` or ``.csv`` files |
| a ``.csv`` file | through ``datasets`` |
| ``owner/name`` | a data set of the Hub, through the cache of ``datasets`` |
| ``builtin`` | toy arithmetic |

| field | |
|---|---|
| ``prompt`` | text the model continues; required, not empty |
| ``answer`` | the right completion: what rewards compare with, and a teacher may be shown |
| ``reward`` | a reward spec, see `composer_engine.rewards`; without it ``data.reward`` holds |
| ``hint`` | feedback that helps after a failed attempt: the SDPO teacher reads it |
| ``chosen``, ``rejected`` | a stored preference pair for trace replay; both or neither |

A row that can be judged is a task to roll out: it has an ``answer`` or a ``reward``, or
``data.reward`` needs neither. One with a pair is replayed; a row may be both, and must be one.
``data.rename`` gives columns these names: ``question:prompt``; one renamed to ``_`` and more is put
aside. ``data.split`` is a data set's; one with configurations has ``configuration/split``, and a
file has none. Every cell of a CSV file is text, but for an empty one.

In JSONL blank lines, a byte-order mark and CRLF are no mistake, and a field that is not in the
table is one: the file is your own. The columns of all others are somebody else's: see
`composer_engine.tables` for what is passed over. Every row that is none is named by its file, its
line or row (the first is 1) and the field.
"""

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import msgspec
from msgspec import Meta

from composer_engine.config import BUILTIN, looks_like_hub_id
from composer_engine.config_file import expanded
from composer_engine.failures import DataError, SetupError
from composer_engine.rewards import (
    Exact,
    Reward,
    RewardSpec,
    check_from_row,
    check_ready,
    judges_without_answer,
    make_reward,
    read_spec,
)
from composer_engine.tables import Columns, Report, check_folder, dataset_rows, parquet

_NonEmpty = Annotated[str, Meta(min_length=1)]
_BOM = b"\xef\xbb\xbf"
_SPLIT = "train"  # without another
_PARQUET, _CSV = ".parquet", ".csv"
_KEPT_PROBLEMS = 10_000  # of a file that is no JSONL at all
_GLANCED_ROWS, _GLANCED_BYTES = 1_000, 1 << 20


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row, as it is written."""

    prompt: _NonEmpty
    answer: str | None = None
    reward: RewardSpec | None = None
    hint: _NonEmpty | None = None
    chosen: _NonEmpty | None = None
    rejected: _NonEmpty | None = None


class Task(NamedTuple):
    """A prompt to roll out. ``reward`` is of the completion's text; ``where`` is file:line.

    ``answer`` is the row's, whatever the reward makes of it.
    """

    prompt: str
    reward: Reward
    hint: str | None
    where: str
    answer: str | None = None


class Pair(NamedTuple):
    """A stored preference: after ``prompt``, ``chosen`` is better than ``rejected``."""

    prompt: str
    chosen: str
    rejected: str
    where: str


class Data(NamedTuple):
    """What there is to learn from; ``tasks`` is never empty, ``pairs`` may be."""

    tasks: tuple[Task, ...]
    pairs: tuple[Pair, ...]


class Glance(NamedTuple):
    """What the first rows are. ``problems`` are rows by number, and what is wrong with each.

    ``is_whole``: no row that a run would read comes after those that were looked at.
    """

    rows: int
    tasks: int
    problems: tuple[tuple[int, str], ...]
    is_whole: bool
    unit: Literal["line", "row"] = "line"


_FIELDS = Row.__struct_fields__
_decoder = msgspec.json.Decoder(Row)
# What a row asks for, or a `ValueError` that names the field.
_Reading = Callable[[], Row]


def load_data(
    path: str,
    max_rows: int = 0,
    *,
    split: str = _SPLIT,
    rename: Sequence[str] = (),
    reward: str = "",
    report: Report | None = None,
) -> Data:
    """Every row, or the first ``max_rows``; the other values are those of the ``data`` section.

    With a ``report`` a data set of the Hub may be fetched. Raises `DataError` with every bad row.
    """
    columns, default = Columns.of(_FIELDS, rename), _default(reward, is_glance=False)
    _check_place(path, split)
    tasks: list[Task] = []
    pairs: list[Pair] = []
    problems: list[str] = []
    for where, reading in _rows(path, max_rows, split, columns, report):
        try:
            task, pair = _read(reading, where, default)
        except ValueError as error:
            if len(problems) < _KEPT_PROBLEMS:
                problems.append(f"{where}: {error}")
            continue
        tasks += [task] if task else []
        pairs += [pair] if pair else []
    if problems and not tasks and not pairs:
        _check_renamed(path, columns)
    if problems:
        raise DataError(problems)
    if not tasks:
        raise DataError([f"data.path: {path} {nothing_to_roll_out(len(pairs))}"])
    return Data(tuple(tasks), tuple(pairs))


def glance(
    path: str,
    max_rows: int = 0,
    *,
    split: str = _SPLIT,
    rename: Sequence[str] = (),
    reward: str = "",
) -> Glance:
    """The first rows by the rules of `load_data`: at most 1000, and at most 1 MiB of JSONL.

    Nothing heavy is imported, nothing of a reward is run and nothing is fetched: what only
    ``datasets`` reads is not looked into. Raises `DataError` for what cannot be read.
    """
    columns, default = Columns.of(_FIELDS, rename), _default(reward, is_glance=True)
    _check_place(path, split)
    source = data_file(path)
    if _is_for_datasets(path, source):
        if source.is_dir():
            check_folder(source, path)
        return Glance(0, 0, (), is_whole=False, unit="row")
    most = min(max_rows or _GLANCED_ROWS, _GLANCED_ROWS)
    if source.suffix == _PARQUET:
        with parquet(source, path, columns) as (count, values):
            readings = ((n, _of_table(columns, value)) for n, value in enumerate(values, 1))
            return _glanced(readings, default, most, max_rows, is_whole=count <= most, unit="row")
    try:
        with source.open("rb") as file:
            head = file.read(_GLANCED_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    is_whole = len(head) <= _GLANCED_BYTES
    if not is_whole:
        head = head[: head.rfind(b"\n") + 1]
    lines = _lines(io.BytesIO(head), 0)
    readings = ((number, _of_line(columns, line)) for number, line in lines)
    seen = _glanced(readings, default, most, max_rows, is_whole=is_whole, unit="line")
    if seen.problems and len(seen.problems) == seen.rows:
        _check_renamed(path, columns)
    return seen


def data_file(path: str) -> Path:
    """The file or folder that ``data.path`` names, whether or not there is one."""
    file = resources.files("composer_engine") / "builtin" / "tasks.jsonl"
    return Path(str(file)) if path == BUILTIN else expanded(path)


def nothing_to_roll_out(rows: int) -> str:
    """What is said of a file without a task. ``rows``: how many others it has."""
    return f"holds {'only preference pairs' if rows else 'no rows'}: nothing to roll out"


def check_rows(tasks: int, prompts_per_step: int) -> None:
    """A step draws different prompts, so there must be enough of them. Raises `SetupError`."""
    if tasks < prompts_per_step:
        raise SetupError(
            f"rollout.prompts_per_step: {prompts_per_step} prompts a step, "
            f"but the data has {tasks} to roll out",
            "lower rollout.prompts_per_step, or bring more rows (data.max_rows limits them)",
        )


def _lines(file: BinaryIO, max_rows: int) -> Iterator[tuple[int, bytes]]:
    """The lines that should be rows, each with its number."""
    rows = 0
    for number, raw in enumerate(file, 1):
        line = raw.removeprefix(_BOM).strip() if number == 1 else raw.strip()
        if line:
            yield number, line
            rows += 1
        if max_rows and rows >= max_rows:
            return


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError([f"data.path: cannot read {path}: {error.strerror}"])


def _default(reward: str, *, is_glance: bool) -> RewardSpec:
    try:
        spec = read_spec(reward)
    except ValueError as error:
        of_field = isinstance(error.__cause__, msgspec.ValidationError)
        said = _plain(str(error)) if of_field else str(error)
        raise DataError([f"data.reward: {said}"]) from None
    try:
        check_ready(spec, is_glance=is_glance)
    except ValueError as error:
        raise DataError([f"data.reward: {error}"]) from None
    return spec


def _check_place(path: str, split: str) -> None:
    """Raises `DataError` for what is neither a file nor a folder, or has no such split."""
    if not path.strip():
        raise DataError(["data.path: is empty: name a file, a folder or a data set of the Hub"])
    source = data_file(path)
    if source.exists() and not (source.is_file() or source.is_dir()):
        raise DataError([f"data.path: {path} is neither a file nor a folder"])
    if source.is_file() and split != _SPLIT:
        raise DataError([f"data.split: {path} is a file, and has no {split!r}: leave it {_SPLIT}"])


def _check_renamed(path: str, columns: Columns) -> None:
    """Raises `DataError` if a column of ``data.rename`` is in none of a JSONL file's first rows."""
    source = data_file(path)
    if not columns.renamed or source.suffix == _PARQUET or _is_for_datasets(path, source):
        return  # a table's columns are known before its rows
    with source.open("rb") as file:
        head = file.read(_GLANCED_BYTES)
    present: dict[str, None] = {}
    for _, line in itertools.islice(_lines(io.BytesIO(head), 0), _GLANCED_ROWS):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            values = msgspec.json.decode(line)
            present |= dict.fromkeys(values) if isinstance(values, dict) else {}
    if present:
        columns.wanted([*present])


def _is_for_datasets(path: str, source: Path) -> bool:
    if source.is_dir() or source.suffix == _CSV:
        return True
    return looks_like_hub_id(path) and not source.exists()


def _rows(
    path: str, max_rows: int, split: str, columns: Columns, report: Report | None
) -> Iterator[tuple[str, _Reading]]:
    """Each row, still to be read, and its place."""
    source = data_file(path)
    if _is_for_datasets(path, source):
        tables = dataset_rows(path, source, split, columns, max_rows, report)
        for number, values in enumerate(tables, 1):
            yield f"{path}:row {number}", _of_table(columns, values)
    elif source.suffix == _PARQUET:
        with parquet(source, path, columns) as (_, rows):
            for number, values in enumerate(itertools.islice(rows, max_rows or None), 1):
                yield f"{source.name}:row {number}", _of_table(columns, values)
    else:
        try:
            with source.open("rb") as file:
                for number, line in _lines(file, max_rows):
                    yield f"{source.name}:{number}", _of_line(columns, line)
        except OSError as error:
            raise _unreadable(path, error) from None


def _glanced(
    readings: Iterator[tuple[int, _Reading]],
    default: RewardSpec,
    most: int,
    max_rows: int,
    *,
    is_whole: bool,
    unit: Literal["line", "row"],
) -> Glance:
    rows = tasks = 0
    problems: list[tuple[int, str]] = []
    for number, reading in readings:
        if rows == most:
            is_whole = rows == max_rows
            break
        rows += 1
        try:
            task, _ = _read(reading, "", default, is_glance=True)
        except ValueError as error:
            problems.append((number, str(error)))
        else:
            tasks += task is not None
    return Glance(rows, tasks, tuple(problems), is_whole or rows == max_rows, unit)


def _of_line(columns: Columns, line: bytes) -> _Reading:
    def reading() -> Row:
        try:
            if not columns.renamed:
                return _decoder.decode(line)
            values = msgspec.json.decode(line)
            named = columns.named(values) if isinstance(values, dict) else values
            return msgspec.convert(named, Row)
        except msgspec.ValidationError as error:
            raise ValueError(_plain(str(error))) from None
        except msgspec.DecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: byte {error.start}") from None
        except RecursionError:
            raise ValueError("nested too deep") from None

    return reading


def _of_table(columns: Columns, values: dict[str, Any]) -> _Reading:
    def reading() -> Row:
        row = columns.row(values)
        try:
            return msgspec.convert(row, Row)
        except msgspec.ValidationError as error:
            raise ValueError(_plain(str(error))) from None

    return reading


def _read(
    reading: _Reading, where: str, default: RewardSpec, *, is_glance: bool = False
) -> tuple[Task | None, Pair | None]:
    """What one row asks for. Raises `ValueError` that names the field."""
    row = reading()
    if (row.chosen is None) != (row.rejected is None):
        alone, missing = ("chosen", "rejected") if row.rejected is None else ("rejected", "chosen")
        raise ValueError(f"{alone}: stands without {missing!r}")
    pair = None
    if row.chosen is not None and row.rejected is not None:
        if row.chosen == row.rejected:
            raise ValueError("chosen: equals 'rejected'")
        pair = Pair(row.prompt, row.chosen, row.rejected, where)
    if row.answer is None and row.reward is None and not judges_without_answer(default):
        if pair is None:
            raise ValueError("answer: missing; a row needs 'answer', 'reward' or a pair")
        return None, pair
    try:
        if row.reward is not None:
            check_from_row(row.reward)
        spec = row.reward or default
        reward = make_reward(spec, row.answer, row.prompt, is_glance=is_glance)
    except ValueError as error:
        raise ValueError(f"{_judged_by(row, default)}: {error}") from None
    return Task(row.prompt, reward, row.hint, where, row.answer), pair


def _judged_by(row: Row, default: RewardSpec) -> str:
    """The field that says how a row is judged."""
    if row.reward is not None:
        return "reward"
    return "answer" if isinstance(default, Exact) else "data.reward"


def _plain(message: str) -> str:
    """msgspec's words with the field first: ``reward.tolerance: expected ...``."""
    said, _, place = message.partition(" - at `$")
    field = place.strip("`.") or "row"
    if said.startswith("Object missing required field"):
        return f"{said.split('`')[1]}: missing"
    if said.startswith("Object contains unknown field"):
        return f"{said.split('`')[1]}: there is no such field"
    return f"{field}: {said[:1].lower()}{said[1:]}"
