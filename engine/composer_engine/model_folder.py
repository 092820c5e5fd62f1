"""Where a model's files are, and whether they can be a model: known before anything heavy loads."""

from importlib import resources
from pathlib import Path
from typing import TypeVar

import msgspec

from composer_engine.config import BUILTIN, ModelConfig, looks_like_hub_id
from composer_engine.config_file import expanded
from composer_engine.failures import SetupError
from composer_engine.hub import Report, hub_model

_INDEX = "model.safetensors.index.json"
_LONGEST_JSON_BYTES = 1 << 26
_LFS_POINTER = b"version https://git-lfs"
# A tokenizer has many shapes; a folder with no file of any of these names has none.
_TOKENIZERS = ("*token*", "*vocab*", "tekken*", "*.model", "*.tiktoken")


_T = TypeVar("_T")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def model_folder(config: ModelConfig, report: Report | None = None) -> Path:
    """The folder that ``model.path`` names. Raises `SetupError` when it holds no model.

    A hub id that is not in the cache is downloaded when there is a ``report`` to tell it to.
    Of a folder little is read: names, the index of the weights, and the first bytes of each file.
    """
    path = config.path
    if path == BUILTIN:
        return Path(str(resources.files("composer_engine") / "builtin"))
    if not path.strip():
        raise SetupError("model.path: is empty: name a model's folder, or a hub id")
    folder = expanded(path)
    if not folder.is_dir() and looks_like_hub_id(path):
        return hub_model(path, config.revision, report)
    if not folder.is_dir():
        raise SetupError(
            f"model.path: {path} is not a folder",
            "name the folder that holds the model's config.json, or a hub id such as owner/name",
        )
    if config.revision:
        raise SetupError(f"model.revision: {path} is a folder here, and has no revisions")
    try:
        _check_files(path, folder)
    except OSError as error:
        name = Path(error.filename or path).name
        raise SetupError(f"model.path: {path}: cannot read {name}: {error.strerror}") from None
    return folder


def _check_files(path: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise SetupError(f"model.path: {path} holds no config.json")
    _read_json(path, folder / "config.json", dict[str, object])
    weights = sorted(folder.glob("*.safetensors"))
    index = folder / _INDEX
    if index.is_file():
        wanted = set(_read_json(path, index, _Index).weight_map.values())
        missing = sorted(wanted - {file.name for file in weights})
        if missing:
            raise SetupError(
                f"model.path: {path} lacks {len(missing)} of its {len(wanted)} files of weights, "
                f"such as {missing[0]}",
                "download the model again",
            )
    if not weights:
        raise SetupError(
            f"model.path: {path} holds no .safetensors weights",
            "pickled weights can run code and are not read; save them as safetensors",
        )
    for file in weights:
        _check_weights(path, file)
    if not any(file.is_file() for pattern in _TOKENIZERS for file in folder.glob(pattern)):
        raise SetupError(
            f"model.path: {path} holds no tokenizer",
            "copy tokenizer.json and tokenizer_config.json beside the weights",
        )


def _read_json(path: str, file: Path, kind: type[_T]) -> _T:
    with file.open("rb") as opened:
        text = opened.read(_LONGEST_JSON_BYTES)
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"model.path: {path}: {file.name} cannot be read: {error}") from None


def _check_weights(path: str, file: Path) -> None:
    """A file of weights begins with the length of its header, and the header with a brace."""
    with file.open("rb") as opened:
        head = opened.read(len(_LFS_POINTER))
    if head == _LFS_POINTER:
        raise SetupError(
            f"model.path: {path}: {file.name} is a pointer of Git LFS, not the weights",
            "git lfs pull in that folder fetches them",
        )
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or file.stat().st_size < 8 + header_bytes:
        raise SetupError(
            f"model.path: {path}: {file.name} is cut short, or no safetensors file",
            "download the model again",
        )
