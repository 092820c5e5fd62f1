"""Where a model's files are; known before anything heavy is imported."""

from importlib import resources
from pathlib import Path

from composer_engine.config import BUILTIN
from composer_engine.config_file import expanded
from composer_engine.failures import SetupError


def model_folder(path: str) -> Path:
    """The folder that ``model.path`` names. Raises `SetupError` when it holds no model."""
    if path == BUILTIN:
        return Path(str(resources.files("composer_engine") / "builtin"))
    folder = expanded(path)
    if not folder.is_dir():
        raise SetupError(
            f"model.path: {path} is not a folder",
            "the engine reads local folders only: download the model first, "
            "then give the folder that holds its config.json",
        )
    if not (folder / "config.json").is_file():
        raise SetupError(f"model.path: {path} holds no config.json")
    if not any(folder.glob("*.safetensors")):
        raise SetupError(
            f"model.path: {path} holds no .safetensors weights",
            "pickled weights can run code and are not read; save them as safetensors",
        )
    return folder
