"""Which packages an engine in a container needs, and which build of torch suits its GPU."""

import importlib.util
import os
import re
from collections.abc import Iterable
from importlib import metadata

from composer_engine.config import RunConfig
from composer_engine.contract import VERSION_VARIABLE
from composer_engine.failures import SetupError

DISTRIBUTION = "composer-tui"
PYTHON_VERSION = "3.11"  # of the container
# Of the distribution's own requirements, those that the engine imports; the rest is the interface.
_SHARED = ("msgspec", "nvidia-ml-py", "psutil", "pyyaml", "tomli-w")
_WHEELS = "https://download.pytorch.org/whl/"


def engine_version() -> str:
    """The version of the package: as installed, or as it was when it was brought along."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return os.environ.get(VERSION_VARIABLE, "unknown")


def check_optional(config: RunConfig) -> None:
    """Raises `SetupError` for a package that this run asks for and that is not installed."""
    for sink in config.report.sinks:
        if importlib.util.find_spec(sink) is None:
            raise SetupError(
                f"report.sinks: {sink} is not installed", f'pip install "{DISTRIBUTION}[{sink}]"'
            )
    if config.rollout.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise SetupError(
            "rollout.backend: vllm is not installed",
            "pip install vllm beside this torch, or set rollout.backend to hf",
        )


def engine_requirements(extras: Iterable[str] = ()) -> tuple[str, ...]:
    """The engine's packages with this distribution's own pins, sorted by name.

    ``extras`` are those of the distribution whose packages are wanted, too. Raises `SetupError`
    where the distribution is not installed, and so has no pins to read.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        stated = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise SetupError(
            f"{DISTRIBUTION} is not installed, so nobody knows what its engine needs",
            f"install it: pip install {DISTRIBUTION}",
        ) from None
    wanted = []
    names = ("engine", *extras)
    for requirement in map(Requirement, stated):
        marker = requirement.marker
        if marker is None:
            is_wanted = canonicalize_name(requirement.name) in _SHARED
        else:
            brought = any(marker.evaluate({"extra": name}) for name in names)
            is_wanted = brought and not marker.evaluate({"extra": ""})
        if is_wanted:
            wanted.append(f"{requirement.name}{requirement.specifier}")
    return tuple(sorted(set(wanted)))


def is_torch(requirement: str) -> bool:
    """Whether this is the one that comes from `torch_index`, and not from PyPI."""
    return re.match(r"torch\b(?!-)", requirement) is not None


def torch_index(compute_capability: float) -> str:
    """Where the torch wheels are that carry code for this GPU; 0 means no GPU.

    torch 2.11 to 2.13 (all that is allowed here) have a CUDA 13.0 build for 7.5, 8.x, 9.0, 10.0
    and 12.0 and newer; 2.12 and 2.13 also one for CUDA 13.2. A B300 (10.3) runs 10.0's code, but
    Modal asks for CUDA 13.1 or newer in its image. Sources: the matrix in pytorch's RELEASE.md, as
    changed by pytorch/pytorch#175253 (2.11), #182849 (2.12) and #197555 (2.13, 2.14); Modal's GPU
    guide. Raises `ValueError` for a GPU that is older than all of them.
    """
    if compute_capability <= 0:
        return _WHEELS + "cpu"
    if compute_capability < 7.5:  # noqa: PLR2004  # Turing, the oldest that the builds know
        raise ValueError(f"no torch wheel has code for compute capability {compute_capability}")
    needs_newer = 10.0 < compute_capability < 12.0  # noqa: PLR2004  # B300
    return _WHEELS + ("cu132" if needs_newer else "cu130")
