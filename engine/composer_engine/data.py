"""Training rows from a JSONL file: one JSON object a line, UTF-8.

| field | |
|---|---|
| ``prompt`` | text the model continues; required, not empty |
| ``answer`` | the right completion; alone it means the reward ``{"kind": "exact"}`` |
| ``reward`` | a reward spec, see `composer_engine.rewards` |
| ``hint`` | feedback that helps after a failed attempt: the SDPO teacher reads it |
| ``chosen``, ``rejected`` | a stored preference pair for trace replay; both or neither |

A row with an ``answer`` or a ``reward`` is a task to roll out; one with a pair is replayed; a row
may be both, and must be one. Blank lines, a byte-order mark and CRLF are no mistake; anything
else that is not such a row is, and every one of them is named by file, line and field.
"""

import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec
from msgspec import Meta

from composer_engine.config import BUILTIN
from composer_engine.config_file import expanded
from composer_engine.failures import DataError, SetupError
from composer_engine.rewards import Exact, Reward, RewardSpec, make_reward

_NonEmpty = Annotated[str, Meta(min_length=1)]
_BOM = b"\xef\xbb\xbf"
_KEPT_PROBLEMS = 10_000  # of a file that is no JSONL at all
_GLANCED_ROWS, _GLANCED_BYTES = 1_000, 1 << 20


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file, as it is written there."""

    prompt: _NonEmpty
    answer: str | None = None
    reward: RewardSpec | None = None
    hint: _NonEmpty | None = None
    chosen: _NonEmpty | None = None
    rejected: _NonEmpty | None = None


class Task(NamedTuple):
    """A prompt to roll out. ``reward`` is of the completion's text; ``where`` is file:line."""

    prompt: str
    reward: Reward
    hint: str | None
    where: str


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
    """What the first rows are. ``problems`` are lines by number, and what is wrong with each.

    ``is_whole``: no row that a run would read comes after those that were looked at.
    """

    rows: int
    tasks: int
    problems: tuple[tuple[int, str], ...]
    is_whole: bool


_decoder = msgspec.json.Decoder(Row)


def load_data(path: str, max_rows: int = 0) -> Data:
    """Every row of a file, or the first ``max_rows``; ``"builtin"`` is the toy arithmetic.

    Raises `DataError` with every bad row.
    """
    source = data_file(path)
    tasks: list[Task] = []
    pairs: list[Pair] = []
    problems: list[str] = []
    try:
        with source.open("rb") as file:
            for number, line in _lines(file, max_rows):
                where = f"{source.name}:{number}"
                try:
                    task, pair = _read(line, where)
                except ValueError as error:
                    if len(problems) < _KEPT_PROBLEMS:
                        problems.append(f"{where}: {error}")
                    continue
                tasks += [task] if task else []
                pairs += [pair] if pair else []
    except OSError as error:
        raise _unreadable(path, error) from None
    if problems:
        raise DataError(problems)
    if not tasks:
        raise DataError([f"data.path: {path} {nothing_to_roll_out(len(pairs))}"])
    return Data(tuple(tasks), tuple(pairs))


def glance(path: str, max_rows: int = 0) -> Glance:
    """The first rows by the rules of `load_data`: at most 1000, and at most 1 MiB of the file.

    Raises `DataError` for a file that cannot be read.
    """
    try:
        with data_file(path).open("rb") as file:
            head = file.read(_GLANCED_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    is_whole = len(head) <= _GLANCED_BYTES
    if not is_whole:
        head = head[: head.rfind(b"\n") + 1]
    most = min(max_rows or _GLANCED_ROWS, _GLANCED_ROWS)
    rows = tasks = 0
    problems: list[tuple[int, str]] = []
    for number, line in _lines(io.BytesIO(head), most + 1):
        if rows == most:
            is_whole = rows == max_rows
            break
        rows += 1
        try:
            task, _ = _read(line, "")
        except ValueError as error:
            problems.append((number, str(error)))
        else:
            tasks += task is not None
    return Glance(rows, tasks, tuple(problems), is_whole or rows == max_rows)


def data_file(path: str) -> Path:
    """The file that ``data.path`` names."""
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
            "lower rollout.prompts_per_step, or raise data.max_rows",
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


def _read(line: bytes, where: str) -> tuple[Task | None, Pair | None]:
    """What one row asks for. Raises `ValueError` that names the field."""
    try:
        row = _decoder.decode(line)
    except msgspec.ValidationError as error:
        raise ValueError(_plain(str(error))) from None
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if (row.chosen is None) != (row.rejected is None):
        alone, missing = ("chosen", "rejected") if row.rejected is None else ("rejected", "chosen")
        raise ValueError(f"{alone}: stands without {missing!r}")
    pair = None
    if row.chosen is not None and row.rejected is not None:
        if row.chosen == row.rejected:
            raise ValueError("chosen: equals 'rejected'")
        pair = Pair(row.prompt, row.chosen, row.rejected, where)
    if row.answer is None and row.reward is None:
        if pair is None:
            raise ValueError("answer: missing; a row needs 'answer', 'reward' or a pair")
        return None, pair
    try:
        reward = make_reward(row.reward or Exact(), row.answer)
    except ValueError as error:
        raise ValueError(f"{'reward' if row.reward else 'answer'}: {error}") from None
    return Task(row.prompt, reward, row.hint, where), pair


def _plain(message: str) -> str:
    """msgspec's words with the field first: ``reward.tolerance: expected ...``."""
    said, _, place = message.partition(" - at `$")
    field = place.strip("`.") or "row"
    if said.startswith("Object missing required field"):
        return f"{said.split('`')[1]}: missing"
    if said.startswith("Object contains unknown field"):
        return f"{said.split('`')[1]}: there is no such field"
    return f"{field}: {said[:1].lower()}{said[1:]}"
