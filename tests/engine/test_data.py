"""Rows and rewards: what is read, what is refused, and by which name."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.data import Data, glance, load_data
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
from tests.engine.hub_server import serving


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


# ---------------------------------------------------------------- other shapes, other names

ROWS: list[dict[str, Any]] = [
    {"question": "1+1=", "solution": "2", "source": {"page": 3}, "hint": None},
    {"question": "2+2=", "solution": "4", "source": None, "hint": "count"},
    {"question": "3+3=", "solution": "6", "source": {"page": 4}, "hint": None},
]
RENAME = ("question:prompt", "solution:answer")


@pytest.fixture(autouse=True)
def _cache_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def as_parquet(path: Path) -> str:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(ROWS)
    parquet.write_table(table, path, row_group_size=2)
    return str(path)


def as_jsonl_folder(path: Path) -> str:
    path.mkdir()
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def as_saved(path: Path) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return str(path)


def as_saved_splits(path: Path) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(path))
    return str(path)


def as_csv(path: Path) -> str:
    lines = [f"{row['question']},{row['solution']},{row['hint'] or ''}" for row in ROWS]
    path = path.with_suffix(".csv")
    path.write_text("\n".join(["question,solution,hint", *lines]))
    return str(path)


@pytest.mark.parametrize(
    "made",
    [
        lambda path: as_parquet(path.with_suffix(".parquet")),
        as_jsonl_folder,
        as_saved,
        as_saved_splits,
        as_csv,
    ],
    ids=["parquet", "folder", "saved", "splits", "csv"],
)
def test_a_table_s_rows_are_rows_and_its_other_columns_nobody_s(
    tmp_path: Path, made: Callable[[Path], str]
) -> None:
    path = made(tmp_path / "rows")
    data = load_data(path, rename=RENAME)
    assert [(task.prompt, task.answer, task.hint) for task in data.tasks] == [
        ("1+1=", "2", None),
        ("2+2=", "4", "count"),
        ("3+3=", "6", None),
    ]
    assert data.tasks[1].reward("4") == 1.0
    assert data.tasks[1].where.endswith(":row 2")
    assert len(load_data(path, 2, rename=RENAME).tasks) == 2
    with pytest.raises(DataError, match="there is no column 'text'; there are question, solution"):
        load_data(path, rename=("text:prompt",))
    seen = glance(path, rename=RENAME)
    assert not seen.problems
    assert seen.tasks in (3, 0)  # what only datasets reads is not looked into


def test_a_bad_row_of_a_table_is_named_by_number_and_field(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError) as caught:
        load_data(path, rename=("question:prompt", "source:answer"))
    assert caught.value.problems == (
        "rows.parquet:row 1: answer: expected `str | null`, got `object`",
        "rows.parquet:row 2: answer: missing; a row needs 'answer', 'reward' or a pair",
        "rows.parquet:row 3: answer: expected `str | null`, got `object`",
    )
    seen = glance(path, 2, rename=("question:prompt", "source:answer"))
    assert (seen.rows, seen.is_whole, seen.unit) == (2, True, "row")
    assert seen.problems[0][0] == 1


def test_a_table_s_reward_may_be_json_and_its_answer_a_number(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {"prompt": "a", "answer": 7, "reward": '{"kind": "number"}'},
        {"prompt": "b", "answer": 8, "reward": None},
        {"prompt": "c", "answer": 9, "reward": "{"},
    ]
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet"
    )
    with pytest.raises(DataError, match=r"rows.parquet:row 3: reward: not JSON"):
        load_data(str(tmp_path / "rows.parquet"))
    data = load_data(str(tmp_path / "rows.parquet"), 2)
    assert [task.reward("it is 7.0") for task in data.tasks] == [1.0, 0.0]


CSV = (
    "prompt,answer,hint\n1+1=,2,1\n2+2=,4,2.50\n3+3=,6,\nbond,007,NA\nprice,1.50,null\n"
    "nothing,None,-0\nna,NA,nan\nnull,null,\nyes,True,False\n12,1e3,x\n"
)
CSV_ROWS = [
    ("1+1=", "2", "1"),
    ("2+2=", "4", "2.50"),
    ("3+3=", "6", None),
    ("bond", "007", "NA"),
    ("price", "1.50", "null"),
    ("nothing", "None", "-0"),
    ("na", "NA", "nan"),
    ("null", "null", None),
    ("yes", "True", "False"),
    ("12", "1e3", "x"),
]


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_cell_of_csv_is_the_text_that_it_is(tmp_path: Path, *, in_folder: bool) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "train.csv"
    path = str(file.parent if in_folder else file)
    file.write_text(CSV)
    assert [(task.prompt, task.answer, task.hint) for task in load_data(path).tasks] == CSV_ROWS
    file.write_text("prompt,answer\n1+1=,2\n2+2=,4\nnone,\nshort\n3+3=,6\n")
    with pytest.raises(DataError) as caught:
        load_data(path)
    missing = "answer: missing; a row needs 'answer', 'reward' or a pair"
    assert caught.value.problems == (f"{path}:row 3: {missing}", f"{path}:row 4: {missing}")
    assert [task.answer for task in load_data(path, 2).tasks] == ["2", "4"]
    file.write_text("prompt,answer\n1+1=,2,x\n2+2=,4,y\n")
    with pytest.raises(DataError, match=r"^data.path: the rows of .* have more cells than its h"):
        load_data(path)
    file.write_text("prompt,chosen,rejected,answer\n1,2,3,4\n1,True,None,4\n")
    pairs = load_data(path).pairs
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        ("1", "2", "3"),
        ("1", "True", "None"),
    ]


def test_numbers_where_text_belongs_are_their_text(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table
    row: dict[str, Any] = {"prompt": 12, "answer": 7, "hint": 0.5, "chosen": 3, "rejected": 1.25}
    file = tmp_path / "rows.parquet"
    parquet.write_table(table.from_pylist([row]), file)
    data = load_data(str(file))
    assert data.tasks[0][::2] == ("12", "0.5", "7")
    assert data.pairs[0][:3] == ("12", "3", "1.25")
    parquet.write_table(table.from_pylist([row | {"hint": True}]), file)
    with pytest.raises(DataError, match=r"row 1: hint: expected .*got `bool`"):
        load_data(str(file))


def test_of_a_parquet_file_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    as_parquet(path)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)  # the first row group's first column
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"data.path: cannot read .*rows.parquet: "):
        load_data(str(path), rename=RENAME)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"data.path: cannot read .*rows.parquet: "):
        glance(str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"rows.parquet: No such file or directory"):
        glance(str(path))


def test_what_is_no_data_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder without a data set"):
        load_data(str(tmp_path))
    saved = as_saved_splits(tmp_path / "saved")
    with pytest.raises(DataError, match=r"data.split: .* has no 'dev'; it has train, test"):
        load_data(saved, split="dev", rename=RENAME)
    folder = as_jsonl_folder(tmp_path / "folder")
    configurations = [{"config_name": name, "data_files": "*.jsonl"} for name in ("main", "other")]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "README.md").write_text(
        f"---\nconfigs: {json.dumps(configurations)}\n---\n"
    )
    (tmp_path / "two" / "rows.jsonl").write_text('{"prompt":"1","answer":"1"}')
    with pytest.raises(DataError, match=r"data.split: .*main.*other") as caught:
        load_data(str(tmp_path / "two"))
    assert "configuration/split" in caught.value.hint
    assert len(load_data(str(tmp_path / "two"), split="main/train").tasks) == 1
    with pytest.raises(DataError, match=r"data.split: .* has no 'dev'"):
        load_data(folder, split="dev", rename=RENAME)
    with pytest.raises(DataError, match=r"nobody/nothing is neither .* cache of datasets"):
        load_data("nobody/nothing")


# In a process of its own: the Hub's client reads its environment as it is imported.
ASK = """
import json, os, sys
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
from composer_engine.data import load_data
from composer_engine.failures import DataError
told = []
asks = ("owner/rows", 1), ("owner/rows", 0), ("owner/none", 1), ("owner/cells", 1)
for path, is_heard in (*asks, ("owner/cells", 0)):
    try:
        data = load_data(path, report=told.append if is_heard else None)
        told.append([task.where + " " + task.answer for task in data.tasks])
    except DataError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def test_a_hub_s_data_set_is_fetched_once(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt":"1+1=","answer":"2","page":3}\n' * 2)
    cells = tmp_path / "cells"
    cells.mkdir()
    (cells / "train.csv").write_text("prompt,answer\na,007\nb,None\n")
    with serving({"owner/rows": folder, "owner/cells": cells}) as hub:
        environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        environ |= {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_TOKEN": "hf_only_for_it"}
        done = subprocess.run(
            [sys.executable, "-c", ASK], capture_output=True, text=True, env=environ, check=True
        )
        fetched = [line for line in hub.asked if line.endswith("/train.jsonl")]
    where = ["owner/rows:row 1 2", "owner/rows:row 2 2"]
    text = ["owner/cells:row 1 007", "owner/cells:row 2 None"]
    assert json.loads(done.stdout) == [
        "data owner/rows: asking the Hub",
        "data owner/rows: 2 rows of train",
        where,
        where,
        "data owner/none: asking the Hub",
        "data.path: the Hub shows no data set owner/none",
        "data owner/cells: asking the Hub",
        "data owner/cells: 2 rows of train",
        text,
        text,
    ]
    assert [line.split()[0] for line in fetched] == ["HEAD", "GET"]
    assert "Bearer hf_only_for_it" in hub.tokens
    assert done.stderr == ""


def test_a_line_s_fields_may_have_other_names_but_no_unknown_ones(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question":"a","prompt":"b","answer":"1","page":3}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: page: there is no such field"):
        load_data(str(rows), rename=("question:prompt",))
    data = load_data(str(rows), rename=("question:prompt", "page:_page"))
    assert data.tasks[0].prompt == "a"
    with pytest.raises(DataError, match=r"data.rename: a row has no 'promt'; it has prompt, "):
        load_data(str(rows), rename=("question:promt",))


def test_the_default_reward_judges_rows_that_name_none(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt":"a","answer":"7"}\n'
        '{"prompt":"b","answer":"7","reward":{"kind":"exact"}}\n'
        '{"prompt":"c","chosen":"x","rejected":"y"}\n'
    )
    data = load_data(str(rows), reward="number")
    assert [task.reward("it is 7") for task in data.tasks] == [1.0, 0.0]
    assert len(load_data(str(rows), reward='{"kind":"regex","pattern":"7"}').tasks) == 3
    rows.write_text('{"prompt":"a","answer":"seven"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: data.reward: reward 'number' needs"):
        load_data(str(rows), reward="number")
    with pytest.raises(DataError, match=r"data.reward: there is no kind 'luck'; the kinds"):
        glance(str(rows), reward="luck")


def test_a_default_reward_that_cannot_judge_is_one_line_and_not_one_a_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt":"a","answer":"7"}\n' * 3)
    missing = f'{{"kind":"python","function":"{tmp_path}/none.py:judge"}}'
    for look in (load_data, glance):
        with pytest.raises(
            DataError, match=r"^data.reward: reward 'python': cannot read "
        ) as caught:
            look(str(rows), reward=missing)
        assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("exct", "there is no kind 'exct'; the kinds are exact, .*; did you mean exact"),
        ("{bad", "not JSON: "),
        ('{"kind":"luck"}', "kind: invalid value 'luck'"),
        ('{"kind":"number","tolerance":-1}', "tolerance: expected "),
        ('{"kind":"regex","pattern":"("}', "reward 'regex' does not compile"),
        ('{"kind":"code","tests":"assert ("}', "reward 'code': its tests are not Python"),
    ],
)
def test_a_default_reward_that_is_none_is_told_once(tmp_path: Path, reward: str, said: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt":"a","answer":"7"}\n' * 3)
    for look in (load_data, glance):
        with pytest.raises(DataError, match=f"^data.reward: {said}") as caught:
            look(str(rows), reward=reward)
        assert len(caught.value.problems) == 1


def test_a_renamed_field_that_no_line_has_is_told_once(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query":"a","answer":"7"}\n' * 30)
    for look in (load_data, glance):
        with pytest.raises(DataError) as caught:
            look(str(rows), rename=("question:prompt",))
        assert caught.value.problems == (
            "data.rename: there is no column 'question'; there are query, answer",
        )
    # One that some rows do without is no mistake, and hides none.
    rows.write_text('{"prompt":"a","answer":"7"}\n{"prompt":"b"}\n')
    with pytest.raises(DataError, match=r"^rows.jsonl:2: answer: missing"):
        load_data(str(rows), rename=("clue:hint",))
    assert len(load_data(str(rows), 1, rename=("clue:hint",)).tasks) == 1


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    csv = as_csv(tmp_path / "rows")
    for path in ("builtin", csv, as_parquet(tmp_path / "rows.parquet")):
        for look in (load_data, glance):
            with pytest.raises(DataError, match=r"^data.split: .* is a file, and has no 'test'"):
                look(path, split="test")


def test_what_is_neither_a_file_nor_a_folder_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        for look in (load_data, glance):
            with pytest.raises(DataError, match=f"^data.path: {path} is neither a file nor a fol"):
                look(path)
    with pytest.raises(DataError, match=r"^data.path: is empty"):
        load_data("")


@pytest.mark.parametrize(
    "spec", ['{"kind":"python","function":"os:system"}', '{"kind":"code","sandbox":false}']
)
def test_rows_do_not_choose_what_runs_here(tmp_path: Path, spec: str) -> None:
    rows = f'{{"prompt":"a","answer":"assert True","reward":{spec}}}'
    assert complaint(tmp_path, rows).endswith("rows do not choose what runs here")


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
