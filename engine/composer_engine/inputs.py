"""What a run was given on the launching machine, and where its container finds it."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from composer_engine.config import BUILTIN, RunConfig
from composer_engine.config_file import expanded
from composer_engine.contract import CACHE_MOUNT, INPUTS_MOUNT, RUNS_MOUNT
from composer_engine.failures import SetupError


class Input(NamedTuple):
    """A file or a folder of this machine, and its path in the container."""

    local: Path
    remote: str


def container_config(config: RunConfig) -> RunConfig:
    """The run as its container sees it. The paths of the container's own volumes stay."""
    return msgspec.structs.replace(
        config,
        data=msgspec.structs.replace(config.data, path=_data_path(config.data.path)),
        model=msgspec.structs.replace(config.model, path=_model_path(config.model.path)),
    )


def local_inputs(config: RunConfig) -> tuple[Input, ...]:
    """What has to be brought along. Raises `SetupError` for what is not there."""
    found = []
    if not is_there_already(config.data.path):
        file = expanded(config.data.path)
        if not file.is_file():
            raise SetupError(f"data.path: {config.data.path} is not a file")
        found.append(Input(file.resolve(), _data_path(config.data.path)))
    if not is_there_already(config.model.path):
        folder = expanded(config.model.path)
        if not folder.is_dir():
            raise SetupError(
                f"model.path: {config.model.path} is not a folder",
                f"name a folder of this machine, or one of the cache volume: {CACHE_MOUNT}/...",
            )
        found.append(Input(folder.resolve(), _model_path(config.model.path)))
    return tuple(found)


def given_paths(config: RunConfig) -> dict[str, str]:
    """From each path in the container to the one that was given for it."""
    there = container_config(config)
    return {there.data.path: config.data.path, there.model.path: config.model.path}


def is_there_already(path: str) -> bool:
    """It comes with the engine, or lies on one of the container's own volumes."""
    return path == BUILTIN or path.startswith((RUNS_MOUNT + "/", CACHE_MOUNT + "/"))


def _data_path(path: str) -> str:
    # The name stays: it is what every mistake in the data is reported with.
    return path if is_there_already(path) else f"{INPUTS_MOUNT}/data/{Path(path).name}"


def _model_path(path: str) -> str:
    return path if is_there_already(path) else f"{INPUTS_MOUNT}/model"
