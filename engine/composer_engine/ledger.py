"""Who holds how many bytes when, and who computes how much: counted on fake tensors.

Nothing is allocated. Every tensor's storage is followed from the call that made it to its end;
what it was for may become known later, so the sums are made at the end.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ROUNDED_TO = 512  # bytes: CUDA's caching allocator hands out multiples
_DEVICE_OF = torch.ops.prim.device.default
_ATEN = torch.ops.aten


class _Block:
    """A storage; its category may change as long as the sums are not made."""

    __slots__ = ("category", "size")

    def __init__(self, size: int, category: str) -> None:
        self.size, self.category = size, category


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered. ``category`` and ``channel`` are what the next tensor, and the
    next FLOP, are booked under; `own` says afterwards what a tensor was for.
    """

    def __init__(self, category: str, channel: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.category, self.channel = category, channel
        self.flops: Counter[str] = Counter()
        self._blocks: dict[int, _Block] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._events: list[tuple[_Block, int]] = []  # a block, and 1 or -1
        self._begun = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF:
            return args[0].fake_device  # asked for more often than all else together
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor)
        flops = _FLOPS.get(func._overloadpacket)  # noqa: SLF001  # as torch's own counter asks
        if flops is not None:
            self.flops[self.channel] += int(flops(*args, **(kwargs or {}), out_val=out))
        return out

    @contextlib.contextmanager
    def booking(self, *, category: str = "", channel: str = "") -> Iterator[None]:
        """Books what follows elsewhere, where named."""
        before = self.category, self.channel
        self.category, self.channel = category or before[0], channel or before[1]
        try:
            yield
        finally:
            self.category, self.channel = before

    def own(self, tensors: Iterable[torch.Tensor | None], category: str) -> None:
        """These are for that, and were since they were made."""
        for tensor in tensors:
            if tensor is not None:
                self._follow(tensor).category = category

    def begin(self) -> None:
        """What was before is still held, but no peak of it counts."""
        self._begun = len(self._events)
        self.flops.clear()

    def peak(self) -> Counter[str]:
        """The bytes of each category at the moment when most were held."""
        held: Counter[str] = Counter()
        total, highest, at_highest = 0, -1, Counter[str]()
        for index, (block, sign) in enumerate(self._events):
            held[block.category] += sign * block.size
            total += sign * block.size
            if index + 1 >= self._begun and total > highest:
                highest, at_highest = total, Counter(held)
        return at_highest

    def held(self) -> Counter[str]:
        """The bytes of each category now."""
        held: Counter[str] = Counter()
        for block in self._blocks.values():
            held[block.category] += block.size
        return held

    def _follow(self, tensor: torch.Tensor) -> _Block:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001  # its identity: Python's objects for it come and go
        block = self._blocks.get(key)
        if block is None:
            size = -(-storage.nbytes() // _ROUNDED_TO) * _ROUNDED_TO
            block = self._blocks[key] = _Block(size, self.category)
            self._events.append((block, 1))
            self._watched[key] = weakref.ref(storage, lambda _: self._end(key))
        return block

    def _end(self, key: int) -> None:
        del self._watched[key]
        self._events.append((self._blocks.pop(key), -1))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = query.shape, key.shape, value.shape
    return int(sdpa_flop_count(*shapes))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = grad.shape, query.shape, key.shape, value.shape
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


def _added_product(_: Any, one: Any, other: Any, *__: Any, **___: Any) -> int:
    return 2 * int(one.shape[0] * one.shape[1] * other.shape[1])


# torch counts neither what is added in place, nor the attention of fake tensors' device.
_FLOPS = {
    **flop_registry,
    _ATEN.addmm: _added_product,
    _ATEN.addmm_: _added_product,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,  # noqa: SLF001
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,  # noqa: SLF001
}
