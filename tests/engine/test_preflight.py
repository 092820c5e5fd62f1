"""What is wrong with data and a model is seen before a launch, by the engine's own rules."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import composer_engine
from composer_engine.config import RunConfig, load
from composer_engine.contract import CACHE_MOUNT
from composer_engine.data import glance, load_data
from composer_engine.failures import DataError, SetupError, failure_of
from composer_engine.given import GIVEN_VARIABLE, given_paths_text
from composer_engine.inputs import container_config, given_paths
from composer_engine.preflight import input_problems

BUILTIN = Path(composer_engine.__file__).parent / "builtin"
GOOD = '{"prompt":"1+1=","answer":"2"}\n'


def said(config: RunConfig, *, in_container: bool = True) -> list[str]:
    return list(map(str, input_problems(config, in_container=in_container)))


def said_of_data(tmp_path: Path, content: str, *settings: str) -> list[str]:
    file = tmp_path / "rows.jsonl"
    file.write_text(content, "utf-8")
    return said(load("smoke", settings=(f"data.path={file}", *settings)))


@pytest.mark.parametrize("in_container", [True, False])
def test_what_ships_with_the_engine_is_right(*, in_container: bool) -> None:
    assert said(load("smoke"), in_container=in_container) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no rows: nothing to roll out"),
        ("\n\n", "holds no rows: nothing to roll out"),
        ('{"prompt":"a","chosen":"b","rejected":"c"}\n' * 9, "only preference pairs"),
        (GOOD + "\n{'prompt': 'x'}\n", "data.path: rows.jsonl line 3: not JSON"),
        (GOOD + '{"answer":"2"}\n' * 4, "line 2: prompt: missing (and 3 more of the first 5 rows)"),
        ('{"prompt":"x"}\n', "data.path: rows.jsonl line 1: answer: missing"),
        (GOOD, "rollout.prompts_per_step: 4 prompts a step, but the data has 1 to roll out"),
    ],
)
def test_data_that_cannot_be_trained_on_is_one_line(
    content: str, words: str, tmp_path: Path
) -> None:
    (line,) = said_of_data(tmp_path, content, "rollout.prompts_per_step=4")
    assert words in line
    assert line.startswith(("data.path: ", "rollout."))


@given(
    st.lists(st.sampled_from([GOOD, "\n", '{"prompt":"x"}\n', "?\n"]), max_size=12),
    st.integers(0, 8),
)
def test_a_glance_at_a_small_file_judges_as_the_loader_does(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], max_rows: int
) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(lines))
    seen = glance(str(file), max_rows)
    assert seen.is_whole
    try:
        data = load_data(str(file), max_rows)
    except DataError as error:
        named = [f"rows.jsonl:{number}: {message}" for number, message in seen.problems]
        assert tuple(named) == error.problems or (not named and not seen.tasks)
    else:
        assert (seen.tasks, seen.problems) == (len(data.tasks), ())


def test_of_a_huge_file_little_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("w") as opened:
        opened.write(GOOD * 3)
        opened.truncate(1 << 40)  # one line of a terabyte, which a whole read would not survive
    assert said(load("smoke", settings=(f"data.path={file}",))) == []
    assert not glance(str(file)).is_whole
    assert glance(str(file), 3).is_whole


def test_more_rows_than_are_looked_at_are_left_to_the_loader(tmp_path: Path) -> None:
    many = GOOD * 1000
    assert said_of_data(tmp_path, many + "?\n") == []
    assert said_of_data(tmp_path, many[: -len(GOOD)] + "?\n") != []
    assert said_of_data(tmp_path, many, "rollout.prompts_per_step=1001") != []
    assert said_of_data(tmp_path, many + GOOD, "rollout.prompts_per_step=1001") == []


def test_paths_that_are_no_file_and_no_folder_are_refused_together(tmp_path: Path) -> None:
    config = load("smoke", settings=(f"data.path={tmp_path}", f"model.path={tmp_path / 'm'}"))
    data, model = said(config)
    assert data.startswith(f"data.path: {tmp_path} is a folder without a data set; ")
    assert model.startswith(f"model.path: {tmp_path / 'm'} is not a folder; ")


def test_a_model_without_a_name_and_a_split_of_a_file_are_one_line_each() -> None:
    config = load("smoke", settings=("data.split=test", "model.path="))
    assert said(config) == [
        "data.split: builtin is a file, and has no 'test': leave it train",
        "model.path: is empty: name a model's folder, or a hub id",
    ]


def test_what_lies_on_a_volume_is_looked_for_only_on_this_machine() -> None:
    config = load(
        "smoke", settings=(f"data.path={CACHE_MOUNT}/a.jsonl", f"model.path={CACHE_MOUNT}/m")
    )
    assert said(config) == []
    assert len(said(config, in_container=False)) == 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that is a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in BUILTIN.glob("*.json"):
        shutil.copy(file, folder)
    shutil.copy(BUILTIN / "model.safetensors", folder)
    return folder


def said_of_model(folder: Path) -> list[str]:
    return said(load("smoke", settings=(f"model.path={folder}",)))


def test_a_model_folder_that_is_whole_is_right(model: Path) -> None:
    assert said_of_model(model) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "holds no config.json"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"[]", "config.json cannot be read"),
        ("model.safetensors", None, "holds no .safetensors weights; pickled"),
        ("model.safetensors", b"", "model.safetensors is cut short"),
        ("model.safetensors", b"\xff\0\0\0\0\0\0\0{}", "model.safetensors is cut short"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (
            "model.safetensors.index.json",
            json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode(),
            "lacks 1 of its 1 files of weights, such as model-1.safetensors",
        ),
    ],
)
def test_a_model_folder_that_is_none_is_one_line(
    model: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_bytes(content)
    (line,) = said_of_model(model)
    assert line.startswith(f"model.path: {model}")
    assert words in line


def test_a_model_without_a_tokenizer_is_refused(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    (line,) = said_of_model(model)
    assert "holds no tokenizer" in line


def test_a_failure_in_a_container_names_what_the_person_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load("smoke", settings=("data.path=~/rows.jsonl", "model.path=../m"))
    there = container_config(config)
    error = SetupError(f"data.path: {there.data.path}: bad", f"and {there.model.path}/config.json")
    monkeypatch.setenv(GIVEN_VARIABLE, given_paths_text(given_paths(config)))
    failure = failure_of(error)
    assert failure.message == "data.path: ~/rows.jsonl: bad"
    assert failure.hint == "and ../m/config.json"
    monkeypatch.delenv(GIVEN_VARIABLE)
    assert there.data.path in failure_of(error).message
