"""Rows and rewards: what is read, what is refused, and by which name."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.data import Data, load_data
from composer_engine.failures import DataError
from composer_engine.rewards import (
    REGEX_CHARACTERS,
    Contains,
    Exact,
    Number,
    Regex,
    RewardSpec,
    last_number,
    make_reward,
)


def load(tmp_path: Path, content: bytes | str, max_rows: int = 0) -> Data:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_data(str(file), max_rows)


def complaint(tmp_path: Path, content: bytes | str) -> str:
    with pytest.raises(DataError) as caught:
        load(tmp_path, content)
    return str(caught.value)


def reward(spec: RewardSpec, completion: str, answer: str | None = None) -> float:
    return make_reward(spec, answer)(completion)


# ---------------------------------------------------------------- rows


def test_the_builtin_rows_are_rows_like_any_other() -> None:
    data = load_data("builtin")
    assert len(data.tasks) == 100
    assert 40 < len(data.pairs) < 80
    assert all(task.hint is not None for task in data.tasks)
    assert data.tasks[37].prompt == "3+7="
    assert data.tasks[37].reward("10") == 1.0
    assert data.tasks[37].reward("11") == 0.0


def test_a_row_may_be_a_task_a_pair_or_both(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        '{"prompt":"a","answer":"1"}\n'
        '{"prompt":"b","chosen":"x","rejected":"y"}\n'
        '{"prompt":"c","reward":{"kind":"regex","pattern":"."},"chosen":"x","rejected":"y"}\n',
    )
    assert [task.prompt for task in data.tasks] == ["a", "c"]
    assert [pair.prompt for pair in data.pairs] == ["b", "c"]
    assert data.tasks[1].where == "rows.jsonl:3"


def test_byte_order_marks_blank_lines_and_carriage_returns_are_no_mistake(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        b'\xef\xbb\xbf{"prompt":"\xc3\xa9","answer":"1"}\r\n\r\n  \n{"prompt":"b","answer":"2"}',
    )
    assert [(task.prompt, task.where) for task in data.tasks] == [
        ("é", "rows.jsonl:1"),
        ("b", "rows.jsonl:4"),
    ]


def test_max_rows_stops_reading_there(tmp_path: Path) -> None:
    data = load(tmp_path, '{"prompt":"a","answer":"1"}\n' * 3 + "not read\n", max_rows=3)
    assert len(data.tasks) == 3


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("{", "rows.jsonl:1: not JSON"),
        ("[1]", "rows.jsonl:1: row: expected `object`, got `array`"),
        ('{"answer":"x"}', "rows.jsonl:1: prompt: missing"),
        ('{"prompt":"","answer":"x"}', "rows.jsonl:1: prompt: expected"),
        ('{"prompt":"a"}', "rows.jsonl:1: answer: missing"),
        ('{"prompt":"a","answer":7}', "rows.jsonl:1: answer: expected `str | null`, got `int`"),
        ('{"prompt":"a","answer":" "}', "rows.jsonl:1: answer: reward 'exact' needs"),
        ('{"prompt":"a","anwser":"x"}', "rows.jsonl:1: anwser: there is no such field"),
        ('{"prompt":"a","answer":"x","chosen":"y"}', "rows.jsonl:1: chosen: stands without"),
        ('{"prompt":"a","answer":"x","rejected":"y"}', "rows.jsonl:1: rejected: stands without"),
        ('{"prompt":"a","chosen":"y","rejected":"y"}', "rows.jsonl:1: chosen: equals"),
        ('{"prompt":"a","reward":{"kind":"luck"}}', "rows.jsonl:1: reward.kind: invalid value"),
        ('{"prompt":"a","reward":{"kind":"number"}}', "rows.jsonl:1: reward: reward 'number'"),
        (
            '{"prompt":"a","reward":{"kind":"number","tolerance":-1},"answer":"1"}',
            "rows.jsonl:1: reward.tolerance: expected",
        ),
        (
            '{"prompt":"a","reward":{"kind":"regex","pattern":"("}}',
            "rows.jsonl:1: reward: reward 'regex' does not compile",
        ),
        ('{"prompt":"a","answer":"\\ud800"}', "rows.jsonl:1: not JSON"),
        (b'{"prompt":"\xff","answer":"x"}', "rows.jsonl:1: not"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(tmp_path: Path, row: str | bytes, named: str) -> None:
    assert complaint(tmp_path, row).startswith(named)


def test_every_bad_row_is_found_and_the_first_twenty_are_listed(tmp_path: Path) -> None:
    said = complaint(tmp_path, '{"prompt":"a"}\n{"prompt":"a","answer":"x"}\n' * 30)
    lines = said.splitlines()
    assert lines[0] == "30 problems in the data:"
    assert lines[1].startswith("rows.jsonl:1: answer")
    assert lines[20].startswith("rows.jsonl:39: answer")
    assert lines[21] == "... and 10 more"


@pytest.mark.parametrize(
    ("content", "word"),
    [("", "no rows"), ("\n\n", "no rows"), ('{"prompt":"a","chosen":"b","rejected":"c"}', "only")],
)
def test_a_file_with_nothing_to_roll_out_is_an_error(
    tmp_path: Path, content: str, word: str
) -> None:
    assert f"holds {word}" in complaint(tmp_path, content)


def test_a_line_of_ten_megabytes_is_a_row(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "x" * 10_000_000, "answer": "y"})
    assert len(load(tmp_path, row).tasks[0].prompt) == 10_000_000


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_a_data_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(content)
        try:
            load_data(str(file))
        except DataError as error:
            assert error.problems


# ---------------------------------------------------------------- rewards


@pytest.mark.parametrize(
    ("spec", "answer", "completion", "value"),
    [
        (Exact(), "7", " 7\n", 1.0),
        (Exact(), " 7 ", "7", 1.0),
        (Exact(), "7", "77", 0.0),
        (Exact(), "Yes", "yes", 0.0),
        (Exact(ignore_case=True), "Yes", "yes", 1.0),
        (Contains(text="ab"), None, "xaby", 1.0),
        (Contains(), "ab", "xaby", 1.0),
        (Contains(text="ab"), "zz", "zz", 0.0),
        (Contains(text="AB", ignore_case=True), None, "ab", 1.0),
        (Number(), "1,234", "it is 1234.", 1.0),
        (Number(), "1234", "first 1, then 1,234", 1.0),
        (Number(), "2", "2, no: 3", 0.0),
        (Number(tolerance=0.1), "3.14", "-> 3.2", 1.0),
        (Number(), "-1e3", "-1000", 1.0),
        (Number(), "5", "no number", 0.0),
        (Number(), "0.5", ".5", 1.0),
        (Number(), "1", "1e999", 0.0),
        (Regex(pattern=r"^\d+$"), None, " 42 ", 1.0),
        (Regex(pattern=r"^\d+$"), None, "x42", 0.0),
    ],
)
def test_a_reward_is_what_its_spec_says(
    spec: RewardSpec, answer: str | None, completion: str, value: float
) -> None:
    assert reward(spec, completion, answer) == value


@pytest.mark.parametrize("pattern", ["(a+)+b", r"(\d*)*$", "(.+){2,}x", "(?:a|b*)*c"])
def test_a_repeat_inside_a_repeat_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="repeat inside a repeat"):
        make_reward(Regex(pattern=pattern), None)


def test_a_regex_sees_the_end_of_a_long_completion_only() -> None:
    # So even a pattern whose time is a power of what it searches is bounded.
    all_of_it = Regex(pattern=rf"\A.{{{REGEX_CHARACTERS}}}\Z")
    assert reward(all_of_it, "y" * 1_000_000) == 1.0
    assert reward(Regex(pattern="end$"), "x" * 2 * REGEX_CHARACTERS + "end") == 1.0


@given(st.text(max_size=100))
def test_any_completion_has_a_reward_of_zero_or_one(completion: str) -> None:
    specs: list[RewardSpec] = [Exact(), Contains(), Number(tolerance=1), Regex(pattern="[a-z]+$")]
    assert all(reward(spec, completion, "5") in {0.0, 1.0} for spec in specs)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_the_last_number_is_read_as_it_was_written(value: float) -> None:
    assert last_number(f"1 2 {value!r}") == pytest.approx(value)
