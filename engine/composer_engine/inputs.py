"""What a run was given on the launching machine, and where its container finds it."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from composer_engine.config import BUILTIN, RunConfig, looks_like_hub_id
from composer_engine.config_file import expanded
from composer_engine.contract import CACHE_MOUNT, INPUTS_MOUNT, RUNS_MOUNT
from composer_engine.failures import SetupError
from composer_engine.python_reward import file_of
from composer_engine.rewards import Python, read_spec


class Input(NamedTuple):
    """A file or a folder of this machine, and its path in the container."""

    local: Path
    remote: str


def container_config(config: RunConfig) -> RunConfig:
    """The run as its container sees it. The paths of the container's own volumes stay."""
    data = config.data
    return msgspec.structs.replace(
        config,
        data=msgspec.structs.replace(
            data, path=_data_path(data.path), reward=_reward_text(data.reward)
        ),
        model=msgspec.structs.replace(config.model, path=_model_path(config.model.path)),
    )


def local_inputs(config: RunConfig) -> tuple[Input, ...]:
    """What has to be brought along. Raises `SetupError` for what is not there."""
    found = []
    data, model = config.data.path, config.model.path
    if _data_path(data) != data:
        place = expanded(data)
        if not place.exists():
            raise SetupError(
                f"data.path: {data} is neither a file nor a folder",
                "or name a hub id such as owner/name, which the container downloads",
            )
        found.append(Input(place.resolve(), _data_path(data)))
    if _model_path(model) != model:
        folder = expanded(model)
        if not folder.is_dir():
            raise SetupError(
                f"model.path: {model} is not a folder",
                f"name a folder of this machine, one of the cache volume ({CACHE_MOUNT}/...), "
                "or a hub id such as owner/name, which the container downloads",
            )
        found.append(Input(folder.resolve(), _model_path(model)))
    return (*found, *_reward_input(config.data.reward))


def given_paths(config: RunConfig) -> dict[str, str]:
    """From each path in the container to the one that was given for it."""
    there = container_config(config)
    given = {there.data.path: config.data.path, there.model.path: config.model.path}
    reward, theirs = _python_reward(config.data.reward), _python_reward(there.data.reward)
    return given | ({theirs.function: reward.function} if reward and theirs else {})


def is_there_already(path: str) -> bool:
    """It comes with the engine, or lies on one of the container's own volumes."""
    return path == BUILTIN or path.startswith((RUNS_MOUNT + "/", CACHE_MOUNT + "/"))


def _reward_input(text: str) -> tuple[Input, ...]:
    """The file of a person's reward function. A module cannot be brought: it is not one file."""
    reward = _python_reward(text)
    if reward is None:
        return ()
    place = file_of(reward.function)
    if place is None:
        raise SetupError(
            f"data.reward: {reward.function} names a module, and a container has none of yours",
            "name a file instead: path/to/file.py:function",
        )
    if is_there_already(place[0]):
        return ()
    file = expanded(place[0])
    if not file.is_file():
        raise SetupError(f"data.reward: {place[0]} is not a file")
    return (Input(file.resolve(), _reward_path(place[0])),)


def _reward_text(text: str) -> str:
    """``data.reward`` with its file where the container finds it."""
    reward = _python_reward(text)
    place = file_of(reward.function) if reward else None
    if place is None or is_there_already(place[0]):
        return text
    return msgspec.json.encode(Python(function=f"{_reward_path(place[0])}:{place[1]}")).decode()


def _reward_path(path: str) -> str:
    return f"{INPUTS_MOUNT}/reward/{Path(path).name}"


def _python_reward(text: str) -> Python | None:
    try:
        spec = read_spec(text)
    except ValueError:
        return None  # said where the data is read
    return spec if isinstance(spec, Python) else None


def _data_path(path: str) -> str:
    # The name stays: it is what every mistake in the data is reported with.
    return _path(path, f"{INPUTS_MOUNT}/data/{Path(path).name}")


def _model_path(path: str) -> str:
    return _path(path, f"{INPUTS_MOUNT}/model")


def _path(path: str, brought: str) -> str:
    """The path in the container: as it is for what is there, or on the Hub; else the copy's.

    What reads as a hub id may be a local file or folder, which goes first: at the launch it is
    here, in the container its copy is.
    """
    if is_there_already(path):
        return path
    is_on_hub = not expanded(path).exists() and not Path(brought).exists()
    return path if is_on_hub and looks_like_hub_id(path) else brought
