"""A run as a folder that needs this program no more: a script for Modal, one for this machine.

The scripts are those of `composer_tui.cloud.exported`, with the run's own settings at their top.
"""

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from composer_engine.cloud_spec import CloudSpec, app_name
from composer_engine.config import RunConfig, to_toml
from composer_engine.contract import (
    CACHE_MOUNT,
    CONFIG_FILE,
    RUNS_MOUNT,
    SPEC_FILE,
    VERSION_VARIABLE,
)
from composer_engine.failures import SetupError
from composer_engine.inputs import Input, container_config, local_inputs
from composer_engine.requirements import (
    PYTHON_VERSION,
    engine_requirements,
    engine_version,
    is_torch,
    torch_index,
)
from composer_engine.watchdog import timeout_seconds
from composer_engine.world import check_gpus

_BEGIN, _END = "# --- settings\n", "# --- end of settings\n"
_ENGINE = "composer_engine"
_INPUTS = "inputs"


class ExportRefused(ValueError):  # noqa: N818  # says what happened
    """The run, or the place, is not fit for it; the message is one line."""


def export_app(spec: CloudSpec, folder: Path) -> list[Path]:
    """Writes the folder, which must not hold anything yet. Its files and folders at the top.

    The data travels along, a local model does not: its path stays. Raises `ExportRefused`, OSError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportRefused(f"{folder} is there already, and is not an empty folder")
    try:
        check_gpus(spec.config)
        inputs = local_inputs(spec.config)
        settings = _settings(spec, inputs)
    except SetupError as error:
        raise ExportRefused(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    _copy_engine(folder / _ENGINE)
    config = _copy_data(spec.config, inputs, folder)
    (folder / CONFIG_FILE).write_text(to_toml(config), "utf-8")
    remote = msgspec.structs.replace(spec, config=container_config(spec.config))
    (folder / SPEC_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(remote)))
    packages = engine_requirements(spec.config.report.sinks)
    (folder / "requirements.txt").write_text("\n".join(packages) + "\n", "utf-8")
    (folder / "modal_app.py").write_text(_with_settings(settings), "utf-8")
    local = _template("train_local.py").replace('NAME = "run"', f"NAME = {_literal(_name(spec))}")
    (folder / "train_local.py").write_text(local, "utf-8")
    return sorted(folder.iterdir())


def _settings(spec: CloudSpec, inputs: tuple[Input, ...]) -> dict[str, Any]:
    modal = spec.config.modal
    packages = engine_requirements(spec.config.report.sinks)
    return {
        "NAME": _name(spec),
        "GPU": [*modal.gpu] if len(modal.gpu) > 1 else modal.gpu[0] if modal.gpu else None,
        "CPU_CORES": modal.cpu_cores,
        "MEMORY_MIB": modal.memory_mib,
        "TIMEOUT_SECONDS": timeout_seconds(spec),
        "STARTUP_TIMEOUT_SECONDS": modal.startup_timeout_seconds,
        "RETRIES": modal.retries,
        "REGION": modal.region or None,
        "ENVIRONMENT": modal.environment or None,
        "SECRETS": [*spec.secrets],
        "PYTHON_VERSION": PYTHON_VERSION,
        "TORCH": [name for name in packages if is_torch(name)],
        "TORCH_INDEX": torch_index(spec.compute_capability),
        "PACKAGES": [name for name in packages if not is_torch(name)],
        "LEASE_MINUTES": modal.lease_minutes,
        "RUNS_VOLUME": modal.runs_volume,
        "RUNS_MOUNT": RUNS_MOUNT,
        "CACHE_VOLUME": modal.cache_volume,
        "CACHE_MOUNT": CACHE_MOUNT,
        "ENVIRON": {
            "HF_HOME": f"{CACHE_MOUNT}/huggingface",
            "COMPOSER_CACHE": f"{CACHE_MOUNT}/composer",
            VERSION_VARIABLE: engine_version(),
        },
        "INPUTS": [(_place(item, spec.config), item.remote) for item in inputs],
    }


def _with_settings(settings: dict[str, Any]) -> str:
    """The script for Modal with these settings in the place of its own."""
    before, _, rest = _template("modal_app.py").partition(_BEGIN)
    after = rest.partition(_END)[2]
    lines = [f"{name} = {_literal(value)}\n" for name, value in settings.items()]
    return before + _BEGIN + "".join(lines) + _END + after


def _literal(value: object) -> str:
    """A Python literal in this program's own style."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_literal, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _template(name: str) -> str:
    return (resources.files("composer_tui.cloud.exported") / name).read_text("utf-8")


def _name(spec: CloudSpec) -> str:
    return app_name(spec.config.name)


def _place(item: Input, config: RunConfig) -> str:
    """Where the exported script finds an input: the data beside it, a model where it is."""
    return f"{_INPUTS}/{item.local.name}" if _is_data(item, config) else str(item.local)


def _is_data(item: Input, config: RunConfig) -> bool:
    return item.remote == container_config(config).data.path


def _copy_data(config: RunConfig, inputs: tuple[Input, ...], folder: Path) -> RunConfig:
    """The run as its local script finds it, seen from the folder."""
    for item in inputs:
        if _is_data(item, config):
            place = folder / _place(item, config)
            place.parent.mkdir()
            copy = shutil.copytree if item.local.is_dir() else shutil.copyfile
            copy(item.local, place)
            data = msgspec.structs.replace(config.data, path=_place(item, config))
            config = msgspec.structs.replace(config, data=data)
        else:
            model = msgspec.structs.replace(config.model, path=str(item.local))
            config = msgspec.structs.replace(config, model=model)
    return config


def _copy_engine(place: Path) -> None:
    """The installed engine, without what Python made of it."""
    with resources.as_file(resources.files(_ENGINE)) as source:
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
