"""Rows of data sets that are tables: Parquet, and whatever the ``datasets`` library reads.

Their columns are somebody else's: those that a row has no field for are passed over unread, an
empty cell is a field that is not there, a number where text belongs is its text, and a ``reward``
may be JSON in a string. A CSV file's cells are the text that they are: nothing is guessed. Both
libraries are imported when they are needed, not before.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from composer_engine.failures import DataError

Report = Callable[[str], object]

ASIDE = "_"
"""A column that is renamed to something with this first is put aside."""

_BATCH_ROWS = 1_000
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
_READABLE = (".jsonl", ".json", ".parquet", ".csv", ".arrow")
_DEPTH, _GLANCED_FILES = 3, 10_000
_MOST_COLUMNS = 10_000
# Of the csv reader of datasets: every column's cells through ``str``, and no text means "missing".
_AS_TEXT: dict[str, Any] = {
    "converters": dict.fromkeys(range(_MOST_COLUMNS), str),
    "na_filter": False,
}
_SHIFTED = "__index_level_0__"  # what it calls the first column of rows that have one too many
_NOT_FOUND_HINT = "check the name; a private one needs HF_TOKEN in the environment"


class Columns(NamedTuple):
    """Which columns are read: the fields of a row, and what some of them are called instead."""

    fields: tuple[str, ...]
    renamed: Mapping[str, str]

    @classmethod
    def of(cls, fields: Sequence[str], rename: Sequence[str]) -> "Columns":
        """``rename`` as ``data.rename`` has it. Raises `DataError` for a field that is none."""
        renamed = {old: new for old, _, new in (text.partition(":") for text in rename)}
        for new in renamed.values():
            if new not in fields and not new.startswith(ASIDE):
                raise DataError(
                    [f"data.rename: a row has no {new!r}; it has {', '.join(fields)}"],
                    f"a name that begins with {ASIDE!r} puts a column aside",
                )
        return cls(tuple(fields), renamed)

    def named(self, values: dict[str, Any]) -> dict[str, Any]:
        """By the fields' names; a renamed one takes the place of one that had its name."""
        taken = {self.renamed[name]: values[name] for name in values if name in self.renamed}
        kept = {name: value for name, value in values.items() if name not in self.renamed}
        return kept | {name: value for name, value in taken.items() if not name.startswith(ASIDE)}

    def wanted(self, present: Sequence[str]) -> list[str]:
        """Of a table's columns those to read. Raises `DataError` when a renamed one is missing."""
        for old in self.renamed:
            if old not in present:
                raise DataError(
                    [f"data.rename: there is no column {old!r}; there are {', '.join(present)}"]
                )
        taken = set(self.renamed.values())
        plain = [name for name in present if name in self.fields and name not in self.renamed]
        under_others = [name for name, new in self.renamed.items() if new in self.fields]
        return [*(name for name in plain if name not in taken), *under_others]

    def row(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A table's row as fields of ours. Raises `ValueError` that names the field."""
        row = {n: v for n, v in self.named(dict(values)).items() if v is not None}
        reward = row.get("reward")
        for name, value in row.items():
            if name in self.fields and name != "reward" and _is_number(value):
                row[name] = str(value)
        if isinstance(reward, str):
            try:
                row["reward"] = msgspec.json.decode(reward)
            except msgspec.DecodeError as error:
                raise ValueError(f"reward: not JSON: {error}") from None
        elif isinstance(reward, dict):  # a struct's column has every field in every row
            row["reward"] = {name: value for name, value in reward.items() if value is not None}
        return row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


@contextlib.contextmanager
def parquet(path: Path, shown: str, columns: Columns) -> Iterator[tuple[int, Iterator[Any]]]:
    """How many rows a file has, and they, read in pieces. Raises `DataError`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            [f"data.path: {shown} is Parquet, and pyarrow is not installed"],
            'pip install "composer-tui[parquet]"',
        ) from None

    def rows(file: Any) -> Iterator[Any]:
        wanted = columns.wanted(file.schema_arrow.names)
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
            yield from batch.to_pylist()

    try:
        with path.open("rb") as opened, ParquetFile(opened) as file:
            yield file.metadata.num_rows, rows(file)
    except OSError as error:
        said = error.strerror or _first_line(error)
        raise DataError([f"data.path: cannot read {shown}: {said}"]) from None
    except (ArrowException, UnicodeDecodeError) as error:
        raise DataError([f"data.path: cannot read {shown}: {_first_line(error)}"]) from None


def check_folder(folder: Path, shown: str) -> None:
    """Raises `DataError` for a folder in which there is nothing to read, as far as names tell."""
    try:
        seen = [*itertools.islice(_files(folder, _DEPTH), _GLANCED_FILES)]
    except OSError as error:
        raise DataError([f"data.path: cannot read {shown}: {error.strerror}"]) from None
    is_whole = len(seen) < _GLANCED_FILES
    if is_whole and not any(name in _SAVED or name.endswith(_READABLE) for name in seen):
        raise DataError(
            [f"data.path: {shown} is a folder without a data set"],
            "name a file of rows, a folder that datasets saved, or one of .jsonl, .parquet "
            "or .csv files",
        )


def _files(folder: Path, depth: int) -> Iterator[str]:
    """The names in a folder and so many levels of folders in it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name
            if depth and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(PermissionError):
                    yield from _files(Path(entry.path), depth - 1)


def dataset_rows(
    path: str, place: Path, split: str, columns: Columns, max_rows: int, report: Report | None
) -> Iterator[dict[str, Any]]:
    """The rows of what the ``datasets`` library loads, first to last. Raises `DataError`.

    ``place`` is the local folder or file, if there is one; else ``path`` is a hub id, which the
    cache of ``datasets`` is asked for, and the Hub itself if there is a ``report`` to tell.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    with _told(path, split):
        if place.is_dir() and any((place / name).is_file() for name in _SAVED):
            dataset = _of_dict(datasets.load_from_disk(str(place)), path, split)
        elif place.is_dir():
            check_folder(place, path)
            dataset = _loaded(str(place), split, **_how(place, split))
        elif place.exists():
            dataset = datasets.load_dataset("csv", data_files=str(place), split="train", **_AS_TEXT)
        else:
            dataset = _of_hub(path, split, report)
        if _is_csv(dataset) and _SHIFTED in dataset.column_names:
            raise DataError([f"data.path: the rows of {path} have more cells than its header"])
        dataset = dataset.select_columns(columns.wanted(dataset.column_names))
        if max_rows:
            dataset = dataset.select(range(min(max_rows, len(dataset))))
    return map(_without_empty, dataset) if _is_csv(dataset) else iter(dataset)


def _is_csv(dataset: Any) -> bool:
    return bool(dataset.info.builder_name == "csv")


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """An empty cell is no field: of a CSV file it is empty text, as nothing in it is guessed."""
    return {name: None if value == "" else value for name, value in values.items()}


def _how(folder: Path, split: str) -> dict[str, Any]:
    """What a folder's files are read with."""
    import datasets
    from datasets.packaged_modules.csv.csv import CsvConfig

    configuration = split.rpartition("/")[0]
    builder = datasets.load_dataset_builder(str(folder), configuration or None)
    return _AS_TEXT if isinstance(builder.config, CsvConfig) else {}


def _of_dict(dataset: Any, path: str, split: str) -> Any:
    if not isinstance(dataset, dict):
        return dataset  # one that was saved alone is all that there is
    if split not in dataset:
        raise DataError([f"data.split: {path} has no {split!r}; it has {', '.join(dataset)}"])
    return dataset[split]


def _loaded(path: str, split: str, **how: Any) -> Any:
    import datasets

    configuration, _, name = split.rpartition("/")
    return datasets.load_dataset(path, configuration or None, split=name, **how)


def _hub_s(path: str, split: str, token: str | Literal[False]) -> Any:
    """What its files are is only known once they are there: a CSV file is then read once more."""
    dataset = _loaded(path, split, token=token)
    return _loaded(path, split, token=token, **_AS_TEXT) if _is_csv(dataset) else dataset


def _of_hub(path: str, split: str, report: Report | None) -> Any:
    """From the cache as it is; else from the Hub, if there is somebody to tell."""
    from datasets.exceptions import DatasetNotFoundError

    token: str | Literal[False] = os.environ.get("HF_TOKEN") or False
    try:
        with _network(open_to_it=False):
            dataset = _hub_s(path, split, token)
    except (ConnectionError, FileNotFoundError, DatasetNotFoundError, ValueError) as error:
        if report is None:
            raise DataError(
                [f"data.path: {path} is neither a file nor a folder nor in the cache of datasets"],
                "and this is offline: load it once where there is a network",
            ) from error
        report(f"data {path}: asking the Hub")
        with _network(open_to_it=True):
            dataset = _hub_s(path, split, token)
    if report is not None:
        report(f"data {path}: {len(dataset):,} rows of {split}")
    return dataset


@contextlib.contextmanager
def _network(*, open_to_it: bool) -> Iterator[None]:
    """Let the libraries out, or keep them in, for as long as this takes."""
    from datasets import config
    from huggingface_hub import constants

    switches: tuple[tuple[Any, str], ...] = (
        (constants, "HF_HUB_OFFLINE"),
        (config, "HF_HUB_OFFLINE"),
        (config, "HF_DATASETS_OFFLINE"),
    )
    before = [getattr(place, name) for place, name in switches]
    for place, name in switches:
        setattr(place, name, not open_to_it)
    try:
        yield
    finally:
        for (place, name), value in zip(switches, before, strict=True):
            setattr(place, name, value)


@contextlib.contextmanager
def _told(path: str, split: str) -> Iterator[None]:
    """What goes wrong between here and the rows, as one line."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # it is httpx's
    from pyarrow import ArrowException

    try:
        yield
    except errors.GatedRepoError:
        raise DataError(
            [f"data.path: {path} is gated, and HF_TOKEN does not open it"],
            "accept its terms on its page at the Hub, and set HF_TOKEN to a token of that account",
        ) from None
    except (DatasetNotFoundError, errors.RepositoryNotFoundError):
        raise DataError([f"data.path: the Hub shows no data set {path}"], _NOT_FOUND_HINT) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise DataError([f"data.path: the Hub answers {status} for {path}"]) from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise DataError([f"data.path: cannot fetch {path}: {_first_line(error)}"]) from None
    except (DatasetsError, ArrowException, OSError, ValueError, KeyError, ImportError) as error:
        what = str(error.__cause__ or error).strip()
        if "split" in what.lower():
            raise DataError([f"data.split: {path} has no {split!r}: {_first_line(what)}"]) from None
        if "config name" in what.lower():
            hint = "say which as data.split = 'configuration/split'"
            raise DataError([f"data.split: {path}: {' '.join(what.split())}"], hint) from None
        raise DataError([f"data.path: cannot read {path}: {_first_line(what)}"]) from None


def _first_line(error: BaseException | str) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
