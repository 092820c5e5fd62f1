"""The engine's light modules stay light: a viewer and a refused run never wait for torch."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "numpy", "pandas")


@pytest.mark.parametrize(
    "module",
    [
        "composer_engine.protocol",
        "composer_engine.config",
        "composer_engine.emitter",
        "composer_engine.data",
        "composer_engine.memory",
        "composer_engine.prediction",
        "composer_engine.probe",
        "composer_engine.rewards",
        "composer_engine.preflight",
        "composer_engine.safety",
        "composer_engine.resume",
        "composer_engine.__main__",
        "composer_engine.modal_app",
    ],
)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*(set({HEAVY!r}) & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
