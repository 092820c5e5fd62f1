"""One training run as an app on Modal, whole in this folder: modal run modal_app.py

Needs modal on this machine, and nothing else: the engine travels with it. The run saves and ends
itself at its cap, at the end of its lease, when it stalls, and on Ctrl-C.
"""

# ruff: noqa: T201  # what it has to say goes to whoever ran it
import json
import time
from pathlib import Path
from typing import Any

import modal

# --- settings
NAME = "run"
GPU: str | list[str] | None = None
CPU_CORES = 4.0
MEMORY_MIB = 16384
TIMEOUT_SECONDS = 3600
STARTUP_TIMEOUT_SECONDS = 1200
RETRIES = 0
REGION: str | None = None
ENVIRONMENT: str | None = None
SECRETS: list[str] = []
PYTHON_VERSION = "3.11"
TORCH = ["torch"]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PACKAGES: list[str] = []
LEASE_MINUTES = 120.0
RUNS_VOLUME, RUNS_MOUNT = "composer-runs", "/composer/runs"
CACHE_VOLUME, CACHE_MOUNT = "composer-cache", "/composer/cache"
ENVIRON: dict[str, str] = {}
INPUTS: list[tuple[str, str]] = []
# --- end of settings

HERE = Path(__file__).resolve().parent


def _image() -> modal.Image:
    """Python, the packages, the engine, and the files that the run reads."""
    image = (
        modal.Image.debian_slim(python_version=PYTHON_VERSION)
        .uv_pip_install(*TORCH, index_url=TORCH_INDEX)
        .uv_pip_install(*PACKAGES)
        .add_local_dir(HERE / "composer_engine", "/root/composer_engine", ignore=["**/__pycache__"])
    )
    for local, remote in INPUTS:
        path = HERE / local
        add = image.add_local_dir if path.is_dir() else image.add_local_file
        image = add(path, remote)
    return image


def _volume(name: str) -> modal.Volume:
    return modal.Volume.from_name(name, create_if_missing=True, environment_name=ENVIRONMENT)


app = modal.App(NAME)


@app.function(
    image=_image(),
    env={**ENVIRON},
    secrets=[modal.Secret.from_name(name, environment_name=ENVIRONMENT) for name in SECRETS],
    gpu=GPU,
    volumes={RUNS_MOUNT: _volume(RUNS_VOLUME), CACHE_MOUNT: _volume(CACHE_VOLUME)},
    cpu=CPU_CORES,
    memory=MEMORY_MIB,
    timeout=TIMEOUT_SECONDS,
    startup_timeout=STARTUP_TIMEOUT_SECONDS,
    retries=RETRIES,
    region=REGION,
    max_containers=1,
    single_use_containers=True,
    scaledown_window=2,
)
def train(spec: str) -> dict[str, str]:
    """One attempt, in the container; the value says how it ended."""
    from composer_engine import modal_app  # the folder beside this file

    return modal_app.train(spec)


@app.local_entrypoint()
def main(run_id: str = "") -> None:
    """Start the run and wait for it. The same run_id again goes on in the same folder."""
    spec: dict[str, Any] = json.loads((HERE / "spec.json").read_text("utf-8"))
    spec["run_id"] = run_id or f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}"
    spec["lease_until"] = time.time() + LEASE_MINUTES * 60
    print(f"run {spec['run_id']}; afterwards: modal volume get {RUNS_VOLUME} {spec['run_id']}")
    answer = train.remote(json.dumps(spec))
    print(
        f"{answer['outcome']} at step {answer['step']}, ${answer['spent_usd']} {answer['reason']}"
    )
