"""Bytes that are held at one moment, by category, and whether so many go onto a GPU."""

import math
from typing import Literal

import msgspec

_GIB = 2**30
_SLACK = 1.08
_CONTEXT_BYTES = int(0.6 * _GIB)
_FITS_BELOW = 0.85


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes at one moment. ``overhead`` is what is no tensor: see `overhead_bytes`."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits_head: int = 0
    teacher: int = 0
    kv_cache: int = 0
    overhead: int = 0

    @property
    def tensor_bytes(self) -> int:
        """All but the overhead."""
        everything: int = sum(msgspec.structs.astuple(self))
        return everything - self.overhead


def together(*parts: Memory) -> Memory:
    columns = zip(*map(msgspec.structs.astuple, parts), strict=True)
    return Memory(**dict(zip(Memory.__struct_fields__, map(sum, columns), strict=True)))


def overhead_bytes(tensor_bytes: int, *, on_cuda: bool) -> int:
    """CUDA's context, and what its allocator holds beyond what is asked of it: priors.

    On the CPU none is counted: the process's own few hundred MiB are there without a run, too.
    """
    if not on_cuda:
        return 0
    return math.ceil(tensor_bytes * (_SLACK - 1)) + _CONTEXT_BYTES


Verdict = Literal["fits", "tight", "no"]


def fit(peak_bytes: float, usable_bytes: float) -> Verdict:
    """Whether a run whose tensors peak so high goes onto a GPU with so much usable memory."""
    need = peak_bytes * _SLACK + _CONTEXT_BYTES
    if need <= _FITS_BELOW * usable_bytes:
        return "fits"
    return "tight" if need <= usable_bytes else "no"
