"""A run as an app on Modal: what it needs there, and what its container does.

The only module of the engine that imports modal.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import modal
import msgspec

import composer_engine
from composer_engine.cloud_spec import CloudSpec, app_name
from composer_engine.container import train_attempt
from composer_engine.contract import CACHE_MOUNT, CONTROL_DICT, RUNS_MOUNT, VERSION_VARIABLE
from composer_engine.failures import SetupError
from composer_engine.inputs import Input, local_inputs
from composer_engine.requirements import (
    PYTHON_VERSION,
    engine_requirements,
    engine_version,
    is_torch,
    torch_index,
)
from composer_engine.watchdog import timeout_seconds
from composer_engine.world import check_gpus

_IDLE_SECONDS = 2  # the least that Modal takes
_RETRY_DELAY_SECONDS = 5.0
_CONTAINER_ID = "MODAL_TASK_ID"  # environment of a container
_NOT_SHIPPED = ["**/__pycache__", "**/*.pyc"]


class BuiltApp(NamedTuple):
    """An app that is not running yet, and its one function. ``train.spawn(spec_json)`` is a run.

    ``inputs`` are what of this machine is sent along.
    """

    app: modal.App
    train: modal.Function[[str], dict[str, str], dict[str, str]]
    inputs: tuple[Input, ...] = ()


def build(spec: CloudSpec) -> BuiltApp:
    """The app of a run. Talks to nobody: Modal is asked when it is run.

    Raises `SetupError` for what is not on this machine and for a step that the GPUs cannot share,
    `ValueError` for a GPU without wheels.
    """
    modal_config = spec.config.modal
    check_gpus(spec.config)
    if spec.config.rollout.backend == "vllm":
        raise SetupError(
            "rollout.backend: the container has no vllm, which brings a torch of its own",
            "set rollout.backend to hf",
        )
    inputs = local_inputs(spec.config)
    environment = modal_config.environment or None
    app = modal.App(app_name(spec.run_id), tags=dict(spec.tags), include_source=False)
    volumes: dict[str | PurePosixPath, Any] = {
        mount: modal.Volume.from_name(name, create_if_missing=True, environment_name=environment)
        for mount, name in (
            (RUNS_MOUNT, modal_config.runs_volume),
            (CACHE_MOUNT, modal_config.cache_volume),
        )
    }
    decorate = app.function(
        image=with_inputs(with_engine(base_image(spec)), inputs),
        env={
            "HF_HOME": f"{CACHE_MOUNT}/huggingface",
            "COMPOSER_CACHE": f"{CACHE_MOUNT}/composer",
            VERSION_VARIABLE: engine_version(),
        },
        secrets=[
            modal.Secret.from_name(name, environment_name=environment) for name in spec.secrets
        ],
        gpu=gpu_request(modal_config.gpu),
        volumes=volumes,
        cpu=modal_config.cpu_cores,
        memory=modal_config.memory_mib,
        timeout=timeout_seconds(spec),
        startup_timeout=modal_config.startup_timeout_seconds,
        retries=_retries(modal_config.retries),
        region=modal_config.region or None,
        max_containers=1,
        single_use_containers=True,
        scaledown_window=_IDLE_SECONDS,
    )
    return BuiltApp(app, decorate(train), inputs)


def train(spec_json: str) -> dict[str, str]:
    """What runs in the container: one attempt of the run that a `CloudSpec` in JSON asks for."""
    spec = msgspec.json.decode(spec_json, type=CloudSpec)
    environment = spec.config.modal.environment or None
    volume = modal.Volume.from_name(spec.config.modal.runs_volume, environment_name=environment)
    board = _DictBoard(
        modal.Dict.from_name(CONTROL_DICT, create_if_missing=True, environment_name=environment)
    )
    container_id = os.environ.get(_CONTAINER_ID, "")
    return train_attempt(spec, Path(RUNS_MOUNT), volume.commit, board, container_id=container_id)


def base_image(spec: CloudSpec) -> modal.Image:
    """Python and the engine's packages, with the torch that suits the GPU."""
    wanted = engine_requirements(spec.config.report.sinks)
    torch = [name for name in wanted if is_torch(name)]
    others = [name for name in wanted if not is_torch(name)]
    return (
        modal.Image.debian_slim(python_version=PYTHON_VERSION)
        .uv_pip_install(*torch, index_url=torch_index(spec.compute_capability))
        .uv_pip_install(*others)
    )


def with_engine(image: modal.Image) -> modal.Image:
    """This package, as it is installed here, presets and builtin model included."""
    return image.add_local_python_source(composer_engine.__name__, ignore=_NOT_SHIPPED)


def with_inputs(image: modal.Image, inputs: tuple[Input, ...]) -> modal.Image:
    """The local files and folders that the run reads."""
    for local, remote in inputs:
        if local.is_dir():
            image = image.add_local_dir(local, remote)
        else:
            image = image.add_local_file(local, remote)
    return image


def gpu_request(gpus: tuple[str, ...]) -> str | list[str] | None:
    """One GPU as it is, several as an ordered list of what will do, none as none."""
    if len(gpus) > 1:
        return list(gpus)
    return gpus[0] if gpus else None


def _retries(count: int) -> modal.Retries | None:
    if not count:
        return None
    return modal.Retries(
        max_retries=count, initial_delay=_RETRY_DELAY_SECONDS, backoff_coefficient=1.0
    )


class _DictBoard:
    """A `composer_engine.control.Board` on Modal."""

    def __init__(self, texts: modal.Dict) -> None:
        self._texts = texts

    def read(self, name: str) -> str | None:
        text: str | None = self._texts.get(name)
        return text

    def write(self, name: str, text: str) -> None:
        self._texts.put(name, text)
