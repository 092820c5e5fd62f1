"""The GPUs that Modal has, and what they are called where."""

import tomllib
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import NamedTuple

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One type of GPU: ``rate_key`` is its name in Modal's rates, ``max_count`` a container's."""

    rate_key: str
    compute_capability: float
    max_count: int
    bf16: bool = True
    aliases: tuple[str, ...] = ()


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """What shipped with the program. ``rates`` are $ per unit-hour (storage: per GiB-month)."""

    as_of: str
    rates: dict[str, Decimal]
    gpu: dict[str, Gpu]


class GpuRequest(NamedTuple):
    """What one ``gpu`` string asks for: a name of the catalogue, and how many of it."""

    name: str
    gpus: int
    gpu: Gpu


class UnknownGpu(ValueError):  # noqa: N818  # says what it is
    """The string names no GPU, or too many of it; the message says which there are."""


@cache
def catalog() -> Catalog:
    """The catalogue that ships with the program."""
    text = (resources.files("composer_tui.pricing") / "catalog.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Catalog, strict=False)


def parse_gpu(text: str) -> GpuRequest:
    """What a string such as ``H100:2`` asks for, in any case. Raises `UnknownGpu`."""
    wanted, colon, number = text.strip().partition(":")
    for name, gpu in catalog().gpu.items():
        if wanted.upper() not in (name, *gpu.aliases):
            continue
        count = int(number) if number.isdecimal() else 0 if colon else 1
        if not 1 <= count <= gpu.max_count:
            raise UnknownGpu(f"{text}: a container has 1 to {gpu.max_count} of {name}")
        return GpuRequest(name, count, gpu)
    raise UnknownGpu(f"{text}: there is no such GPU; there are {', '.join(catalog().gpu)}")
