"""Where sinks write, and what they keep to themselves.

Said through the environment, before anything imports their packages: they read it as they load.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path

PROJECT = "composer-tui"
SINKS_FOLDER = "sinks"
_WANDB_ID_CELLS = 64


def prepare_sinks(
    names: Iterable[str], folder: Path, run_id: str, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Have the sinks write under ``folder``; what the environment says already stays.

    W&B goes further than this machine unless ``WANDB_MODE`` is offline, trackio does not.
    """
    for name in names:
        place = folder / SINKS_FOLDER / name
        with contextlib.suppress(OSError):  # the sink will say so
            place.mkdir(parents=True, exist_ok=True)
        for variable, value in _settings(name, place, run_id).items():
            environ.setdefault(variable, value)


def _settings(name: str, place: Path, run_id: str) -> Mapping[str, str]:
    if name == "tensorboard":
        return {"TENSORBOARD_LOGGING_DIR": str(place)}
    if name == "trackio":
        return {"TRACKIO_DIR": str(place), "GRADIO_ANALYTICS_ENABLED": "False"}
    return {
        "WANDB_DIR": str(place.parent),  # it adds a folder of its own name
        "WANDB_PROJECT": PROJECT,
        "WANDB_RUN_ID": run_id[-_WANDB_ID_CELLS:],
        "WANDB_RESUME": "allow",  # an attempt that goes on goes on there, too
        "WANDB_CONSOLE": "off",  # stdout is the run's events
        "WANDB_SILENT": "true",
        "WANDB_DISABLE_CODE": "true",
        "WANDB_DISABLE_GIT": "true",
    }
