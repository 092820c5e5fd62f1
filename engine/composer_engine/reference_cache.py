"""Log-probabilities of replayed pairs at a model's initial weights, kept from run to run.

A file is of one *identity*: the weights' own bytes, the model's settings, and what decides how
floats are rounded, such as the device and the version of torch. In it are groups of sequences, by
the digest of their tokens: a group was scored in one batch, so that what is read is to the last
bit what would be computed. A file that is damaged, or of anything else, counts as not there.

The files are in ``COMPOSER_CACHE``, or else in ``composer-tui`` of ``XDG_CACHE_HOME`` or
``~/.cache``. They may be removed at any time; no disk that is full or read-only stops a run.
"""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from composer_engine.plan import Scored

CACHE_VARIABLE = "COMPOSER_CACHE"
_FOLDER, _SUFFIX = "reference", ".safetensors"
_KEPT_FILES = 64
_NOT_SETTINGS = ("_name_or_path", "transformers_version")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the files are; it need not be there."""
    if given := environ.get(CACHE_VARIABLE):
        return Path(given) / _FOLDER
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "composer-tui" / _FOLDER


class ReferenceCache:
    """The groups of one identity. Reads at once, writes when it is told to."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity
        self._file = folder / f"{identity}{_SUFFIX}"
        self._groups = self._read()
        self._is_new = False

    def find(self, group: Sequence[Scored]) -> list[float] | None:
        """One number a sequence, as it was computed."""
        values = self._groups.get(group_digest(group))
        is_whole = values is not None and len(values) == len(group)
        return values if is_whole else None

    def add(self, group: Sequence[Scored], values: Sequence[float]) -> None:
        """What is not finite is not kept."""
        if all(map(math.isfinite, values)):
            self._groups[group_digest(group)] = [*values]
            self._is_new = True

    def save(self) -> None:
        """Write the file anew, aside, and put it in its place. Nothing happens where it cannot."""
        if not self._is_new:
            return
        with contextlib.suppress(OSError, SafetensorError):
            self._folder.mkdir(parents=True, exist_ok=True)
            tensors = {
                key: torch.tensor(values, dtype=torch.float64)
                for key, values in self._groups.items()
            }
            about = {"identity": self._identity, "digest": _contents(self._groups)}
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".new-") as aside:
                file = Path(aside) / self._file.name
                save_file(tensors, file, about)
                file.replace(self._file)
            self._prune()

    def _read(self) -> dict[str, list[float]]:
        try:
            with safe_open(self._file, "pt") as file:
                about = file.metadata() or {}
                groups = {key: file.get_tensor(key).tolist() for key in file.keys()}  # noqa: SIM118
            if about == {"identity": self._identity, "digest": _contents(groups)}:
                with contextlib.suppress(OSError):
                    self._file.touch()  # it is in use
                return groups
        except (OSError, SafetensorError, ValueError, TypeError, RuntimeError):
            pass
        return {}

    def _prune(self) -> None:
        files = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda file: -file.stat().st_mtime)
        for file in files[_KEPT_FILES:]:
            file.unlink(missing_ok=True)


def group_digest(group: Sequence[Scored]) -> str:
    """Of the tokens, which of them are scored, and their order."""
    return _digest(json.dumps([sequence.start, *sequence.ids]) for sequence in group)


def model_identity(causal_lm: Any, *settings: object) -> str:
    """What else, beside tokens, a log-probability depends on; ``settings`` are the caller's own.

    An adapter that changes nothing yet does not count, for all that its seed chose for it.
    """
    parameters = sorted(causal_lm.named_parameters())
    passed_over = _idle(parameters)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        contents = pool.map(_of_weights, [p for n, p in parameters if n not in passed_over])
        weights = [*contents]
    shapes = [f"{name} {[*p.shape]} {p.dtype}" for name, p in parameters]
    device = parameters[0][1].device
    is_cuda = device.type == "cuda"
    where = (
        device.type,
        torch.cuda.get_device_name(device) if is_cuda else torch.backends.cpu.get_cpu_capability(),
        torch.version.cuda if is_cuda else torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.__version__,
        transformers.__version__,
        causal_lm.config._attn_implementation,  # noqa: SLF001  # has no other name
    )
    asked = {n: v for n, v in causal_lm.config.to_dict().items() if n not in _NOT_SETTINGS}
    return _digest(
        [*shapes, *weights, repr(where), json.dumps(asked, sort_keys=True, default=str)]
        + [repr(setting) for setting in settings]
    )


def _idle(parameters: Sequence[tuple[str, torch.Tensor]]) -> set[str]:
    """The halves of an adapter that are multiplied with zero; none, if it has anything else."""
    adapter = {name: p for name, p in parameters if "lora_" in name}
    if any("lora_magnitude" in name for name in adapter):
        return set()
    ends = [p for name, p in adapter.items() if "lora_B" in name or "lora_embedding_B" in name]
    return set() if any(bool(p.any()) for p in ends) else set(adapter)


def _of_weights(parameter: torch.Tensor) -> str:
    data = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def _contents(groups: Mapping[str, Sequence[float]]) -> str:
    return _digest(f"{key} {[*groups[key]]!r}" for key in sorted(groups))


def _digest(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)} {part}".encode())
    return total.hexdigest()[:32]
