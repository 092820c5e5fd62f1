"""The LM head applied to a tile of hidden rows at a time, and its gradient gathered.

Gradients are gathered in float32, whatever the type of the weights: on CUDA by the matrix product
itself, which takes half-precision factors and keeps its sums.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional

_HALF = (torch.bfloat16, torch.float16)
_TILES_AT_ONCE = 4
_TINY = torch.finfo(torch.float32).tiny


class Head(NamedTuple):
    """The LM head, and what its model does to the logits before the softmax."""

    weight: torch.Tensor  # [V, H]
    bias: torch.Tensor | None = None  # [V]
    logit_scale: float = 1.0
    softcap: float | None = None


def head_of(causal_lm: Any) -> Head:
    """The head as the model applies it. Looked up at each step, since adapters may replace it.

    The scale's many names are those of transformers' architectures (Cohere, Falcon-H1, Granite,
    HyperCLOVA X); they are read as `trl.trainer.utils.add_fused_lm_head` reads them.
    """
    head, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    scales = [scale for name in names if (scale := getattr(config, name, None)) is not None]
    divisor = getattr(config, "logits_scaling", None)
    if not scales and divisor is not None:
        scales = [divisor if config.model_type == "hyperclovax" else 1 / divisor]
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(head.weight, head.bias, scales[0] if scales else 1.0, softcap)


def as_hidden(head: Head, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight in the hidden rows' type, which it has but for a caller under autocast."""
    return head.weight.to(hidden.dtype), head.bias


def of_targets(
    logps: torch.Tensor,  # [n, V]
    targets: torch.Tensor,  # [n]
) -> torch.Tensor:  # [n]
    """The log-probability of each row's own target."""
    return logps.gather(-1, targets[:, None]).squeeze(-1)


def sums_float32(tensor: torch.Tensor) -> bool:
    """Whether its device multiplies half precision into float32."""
    return tensor.is_cuda


class Tiles:
    """One head on one set of hidden rows."""

    def __init__(
        self,
        hidden: torch.Tensor,  # [M, H]
        weight: torch.Tensor,  # [V, H]
        bias: torch.Tensor | None,  # [V]
        head: Head,
        temperature: float,
        rows: int,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.scale, self.softcap, self.temperature = head.logit_scale, head.softcap, temperature
        self._rows = rows
        self.d_weight: torch.Tensor | None = None  # [V, H] float32
        self.d_bias: torch.Tensor | None = None  # [V] float32
        self._waiting: torch.Tensor | None = None  # [m, V] half precision
        self._first = 0  # the row that waits first

    def places(self) -> Iterator[tuple[int, slice]]:
        count = len(self.hidden)
        for tile, start in enumerate(range(0, count, self._rows)):
            yield tile, slice(start, min(start + self._rows, count))

    def wants(self, *, weight: bool, bias: bool) -> None:
        """Gather these gradients too."""
        if weight:
            self.d_weight = torch.zeros_like(self.weight, dtype=torch.float32)
        if bias and self.bias is not None:
            self.d_bias = torch.zeros_like(self.bias, dtype=torch.float32)

    def logps(self, at: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[n, V] log-probabilities, and the derivative of the soft cap, if there is one."""
        hidden = self.hidden[at]  # [n, H]
        if hidden.dtype in _HALF and sums_float32(hidden):
            logits = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
        else:
            logits = (hidden @ self.weight.t()).float()
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1:
            logits *= self.scale
        bend = None
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_()
            bend = 1 - logits.square()
            logits *= self.softcap
        if self.temperature != 1:
            logits /= self.temperature
        return functional.log_softmax(logits, -1), bend

    def to_hidden(
        self, d_logits: torch.Tensor, bend: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient [n, H] of n hidden rows, and that of their bare logits [n, V].

        ``d_logits`` is used up.
        """
        if bend is not None:
            d_logits *= bend
        if self.scale != self.temperature:
            d_logits *= self.scale / self.temperature
        dtype, largest = self.hidden.dtype, None
        if dtype == torch.float16:
            # Divided by the step's tokens, most of a row is less than float16 can hold.
            largest = torch.linalg.vector_norm(d_logits, math.inf, -1, keepdim=True)  # [n, 1]
            largest.clamp_min_(_TINY)
            low = torch.empty_like(d_logits, dtype=dtype)
            torch.div(d_logits, largest, out=low)
        else:
            low = d_logits.to(dtype)
        if dtype in _HALF and sums_float32(self.hidden):
            d_hidden = torch.mm(low, self.weight, out_dtype=torch.float32)
        else:
            d_hidden = (low @ self.weight).float()
        return (d_hidden if largest is None else d_hidden.mul_(largest)), d_logits

    def gather(self, d_bare: torch.Tensor, at: slice) -> None:
        """Adds a tile's share of the weight's and the bias's gradient; tiles come in order."""
        if self.d_bias is not None:
            self.d_bias += d_bare.sum(0)
        if self.d_weight is None:
            return
        if self.hidden.dtype not in _HALF:
            self.d_weight.addmm_(d_bare.t(), self.hidden[at])
            return
        # The float32 sums are larger than a tile: they are read and written once for several.
        if self._waiting is None:
            rows = min(_TILES_AT_ONCE * self._rows, len(self.hidden) - at.start)
            self._waiting = d_bare.new_empty((rows, d_bare.size(-1)), dtype=self.hidden.dtype)
            self._first = at.start
        self._waiting[at.start - self._first : at.stop - self._first] = d_bare
        if at.stop - self._first == len(self._waiting):
            self._add_to_weight(self._waiting, self.hidden[self._first : at.stop])
            self._first = at.stop
            if len(self.hidden) - at.stop < len(self._waiting):
                self._waiting = None

    def _add_to_weight(self, d_bare: torch.Tensor, hidden: torch.Tensor) -> None:
        """Products of half-precision rows [m, V] and [m, H], summed in float32."""
        if self.d_weight is None:
            return
        if sums_float32(hidden):
            rows = d_bare.t()
            torch.addmm(self.d_weight, rows, hidden, out_dtype=torch.float32, out=self.d_weight)
        else:
            self.d_weight.addmm_(d_bare.t().float(), hidden.float())
