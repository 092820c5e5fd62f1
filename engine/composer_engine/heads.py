"""The LM head and the channels' losses in one pass, a tile of rows at a time.

A row's loss depends on that row's logits alone, so its gradient is known as soon as its logits
are. Each tile's logits are made once, turned into losses and into the gradient of the hidden
rows and of the head's weight, and dropped: [M, V] never exists. GRPO and SDPO share the logits.

Replayed DPO's slope needs the log-probability of whole sequences first. So its logits are made
twice, but once where the head is frozen: then a sequence's slope can be multiplied in afterwards.

Gradients are accumulated in float32, whatever the type of the weights.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from composer_engine.channels import Divergence, clipped_surrogate, divergence, preference
from composer_engine.tiles import Head, Tiles, as_hidden, of_targets


class Taught(NamedTuple):
    """What the teacher makes of the tokens that SDPO compares, and the head to read it with."""

    hidden: torch.Tensor  # [S, H]
    head: Head


class StudentRows(NamedTuple):
    """The rows of a micro batch that GRPO and SDPO learn from, in tiles of ``tile_rows``."""

    targets: torch.Tensor  # [M] the token that each row predicts
    advantages: torch.Tensor  # [M]
    weights: torch.Tensor  # [M] GRPO's: share, corrected; 0 for a row of SDPO alone
    old_logps: torch.Tensor | None  # [M] at rollout time; None when on-policy
    sdpo_rows: torch.Tensor  # [S] positions in 0..M-1, ascending
    sdpo_bounds: tuple[int, ...]  # of each tile's part of sdpo_rows; one more than tiles
    share: float  # 1 / the step's tokens
    sdpo_share: float  # 1 / the step's tokens under SDPO
    tile_rows: int


class Knobs(NamedTuple):
    """What the student's head is asked to compute."""

    temperature: float
    clip_epsilon: float
    sdpo_weight: float
    rule: Divergence


class StudentSums(NamedTuple):
    """What the student's head found, on the device. All are sums, with no gradient but ``total``.

    ``grpo_square`` and ``sdpo_square`` are the squared norms of each channel's own gradient at
    the hidden rows, with its weight.
    """

    total: torch.Tensor  # () grpo + sdpo_weight * sdpo
    grpo: torch.Tensor  # ()
    sdpo: torch.Tensor  # ()
    entropy: torch.Tensor  # () nats, of GRPO's rows
    clipped_low: torch.Tensor  # () rows
    clipped_high: torch.Tensor  # () rows
    grpo_square: torch.Tensor  # ()
    sdpo_square: torch.Tensor  # ()
    logps: torch.Tensor  # [M]


class ReplayRows(NamedTuple):
    """The rows of 2N sequences, chosen first, that DPO learns from."""

    targets: torch.Tensor  # [M]
    sequence: torch.Tensor  # [M] 0..2N-1
    reference: torch.Tensor  # [2N] the sequences' log-probabilities at the initial weights
    share: float  # 1 / the step's pairs
    tile_rows: int


class ReplaySums(NamedTuple):
    """What the replay's head found, on the device; no gradient but ``loss``'s."""

    loss: torch.Tensor  # ()
    margins: torch.Tensor  # [N]
    logps: torch.Tensor  # [2N]
    square: torch.Tensor  # () squared norm of the gradient at the hidden rows


def student_head(
    hidden: torch.Tensor,  # [M, H]
    head: Head,
    rows: StudentRows,
    knobs: Knobs,
    taught: Taught | None,  # None: no SDPO in this micro batch
) -> StudentSums:
    """GRPO and SDPO of the rows. Only ``hidden``, the weight and the bias get gradients."""
    with torch.autocast(hidden.device.type, enabled=False):
        weight, bias = as_hidden(head, hidden)
        wants_grad = torch.is_grad_enabled()
        apply: Any = _StudentHead.apply
        return StudentSums(*apply(hidden, weight, bias, head, rows, knobs, taught, wants_grad))


def replay_head(
    hidden: torch.Tensor,  # [M, H]
    head: Head,
    rows: ReplayRows,
    dpo_beta: float,
) -> ReplaySums:
    """DPO of the pairs, at temperature 1. Its gradient reaches what `student_head`'s does."""
    with torch.autocast(hidden.device.type, enabled=False):
        weight, bias = as_hidden(head, hidden)
        wants_grad = torch.is_grad_enabled()
        apply: Any = _ReplayHead.apply
        return ReplaySums(*apply(hidden, weight, bias, head, rows, dpo_beta, wants_grad))


@torch.no_grad()
def token_logps(
    hidden: torch.Tensor,  # [M, H]
    targets: torch.Tensor,  # [M]
    head: Head,
    temperature: float,
    tile_rows: int,
) -> torch.Tensor:  # [M] float32, no gradient
    """Log-probability of each row's target."""
    tiles = Tiles(hidden, *as_hidden(head, hidden), head, temperature, tile_rows)
    logps = torch.empty(len(hidden), device=hidden.device)
    for _, at in tiles.places():
        logps[at] = of_targets(tiles.logps(at)[0], targets[at])
    return logps


class _Kept(torch.autograd.Function):
    """A head whose gradients are known when its forward is done."""

    @staticmethod
    def keep(ctx: Any, tiles: Tiles, d_hidden: torch.Tensor | None, inputs: int) -> None:
        """``inputs`` is how many arguments follow the hidden rows, the weight and the bias."""
        # Not save_for_backward: the weight's gradient is as large as the weight, and is handed
        # over, not copied.
        ctx.d_hidden, ctx.d_weight, ctx.d_bias = d_hidden, None, None
        ctx.hidden_dtype, ctx.inputs = tiles.hidden.dtype, inputs
        if tiles.d_weight is not None:
            # float16 cannot hold a gradient that the loss's scale has not yet lifted.
            half = tiles.weight.dtype == torch.float16
            ctx.d_weight = tiles.d_weight if half else tiles.d_weight.to(tiles.weight.dtype)
        ctx.weight_dtype = tiles.weight.dtype
        if tiles.d_bias is not None and tiles.bias is not None:
            ctx.d_bias, ctx.bias_dtype = tiles.d_bias, tiles.bias.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        incoming = grads[0]  # ()
        if ctx.d_hidden is None:
            raise RuntimeError("the LM head's gradient was asked for twice: it is kept for once")
        d_hidden = (ctx.d_hidden * incoming).to(ctx.hidden_dtype)
        d_weight = d_bias = None
        if ctx.d_weight is not None:
            d_weight = ctx.d_weight.mul_(incoming).to(ctx.weight_dtype)
        if ctx.d_bias is not None:
            d_bias = (ctx.d_bias * incoming).to(ctx.bias_dtype)
        ctx.d_hidden = ctx.d_weight = ctx.d_bias = None
        return (d_hidden, d_weight, d_bias, *(None,) * ctx.inputs)


class _StudentHead(_Kept):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        rows: StudentRows,
        knobs: Knobs,
        taught: Taught | None,
        wants_grad: bool,
    ) -> tuple[torch.Tensor, ...]:
        device, count = hidden.device, len(hidden)
        tiles = Tiles(hidden, weight, bias, head, knobs.temperature, rows.tile_rows)
        if wants_grad:
            tiles.wants(weight=ctx.needs_input_grad[1], bias=ctx.needs_input_grad[2])
        teacher = None
        if taught is not None:
            its = as_hidden(taught.head, taught.hidden)
            teacher = Tiles(taught.hidden, *its, taught.head, knobs.temperature, rows.tile_rows)
        d_hidden = torch.empty_like(hidden, dtype=torch.float32) if wants_grad else None
        logps, entropy, losses, low, high = (torch.empty(count, device=device) for _ in range(5))
        sdpo, grpo_square, sdpo_square = (torch.zeros((), device=device) for _ in range(3))

        def add(tile: int, at: slice) -> None:  # what is [n, V] in it goes when it is done
            every, bend = tiles.logps(at)  # [n, V]
            logps[at] = of_targets(every, rows.targets[at])
            old = None if rows.old_logps is None else rows.old_logps[at]
            terms = clipped_surrogate(logps[at], old, rows.advantages[at], knobs.clip_epsilon)
            losses[at], low[at], high[at] = terms.losses, terms.is_low, terms.is_high

            first, last = rows.sdpo_bounds[tile], rows.sdpo_bounds[tile + 1]
            d_sdpo = None
            if teacher is not None and last > first:
                mine = rows.sdpo_rows[first:last] - at.start  # [s]
                other, _ = teacher.logps(slice(first, last))  # [s, V]
                own = every if last - first == len(every) else every.index_select(0, mine)
                nats, d_sdpo = divergence(own, other, knobs.rule)
                sdpo.add_(nats.sum() * rows.sdpo_share)
                del own, other
            p = every.exp()  # [n, V]
            entropy[at] = -every.mul_(p).sum(-1)
            if d_hidden is None:
                return
            slopes = (terms.slopes * rows.weights[at])[:, None]  # [n, 1]
            d_grpo = p.mul_(-slopes).scatter_add_(-1, rows.targets[at, None], slopes)
            d_rows, d_bare = tiles.to_hidden(d_grpo, bend)  # [n, H], [n, V]
            grpo_square.add_(d_rows.square().sum())
            if d_sdpo is not None:
                d_sdpo *= knobs.sdpo_weight * rows.sdpo_share
                moved, d_moved = tiles.to_hidden(d_sdpo, None if bend is None else bend[mine])
                sdpo_square.add_(moved.square().sum())
                d_rows.index_add_(0, mine, moved)
                d_bare.index_add_(0, mine, d_moved)
            d_hidden[at] = d_rows
            tiles.gather(d_bare, at)

        for tile, at in tiles.places():
            add(tile, at)

        is_grpo = rows.weights > 0
        grpo = (losses * rows.weights).sum()
        found = (entropy, low, high)
        sums = [(value * is_grpo).sum() for value in found]
        _Kept.keep(ctx, tiles, d_hidden, 5)
        total = grpo + knobs.sdpo_weight * sdpo
        rest = (grpo, sdpo, *sums, grpo_square, sdpo_square, logps)
        ctx.mark_non_differentiable(*rest)
        return (total, *rest)


class _ReplayHead(_Kept):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        rows: ReplayRows,
        dpo_beta: float,
        wants_grad: bool,
    ) -> tuple[torch.Tensor, ...]:
        tiles = Tiles(hidden, weight, bias, head, 1.0, rows.tile_rows)
        if wants_grad:
            tiles.wants(weight=ctx.needs_input_grad[1], bias=ctx.needs_input_grad[2])
        twice = tiles.d_weight is not None or tiles.d_bias is not None
        d_hidden = torch.empty_like(hidden, dtype=torch.float32) if wants_grad else None
        logps = torch.empty(len(hidden), device=hidden.device)  # [M]

        def score(at: slice) -> None:  # what is [n, V] in it goes when it is done
            every, bend = tiles.logps(at)
            logps[at] = of_targets(every, rows.targets[at])
            if d_hidden is not None and not twice:
                ones = torch.ones_like(every[:, :1])
                d_logits = _minus_p(every, rows.targets[at], ones)
                d_hidden[at] = tiles.to_hidden(d_logits, bend)[0]

        def add(at: slice, d_hidden: torch.Tensor) -> None:
            every, bend = tiles.logps(at)
            d_logits = _minus_p(every, rows.targets[at], slopes[at])
            d_hidden[at], d_bare = tiles.to_hidden(d_logits, bend)
            tiles.gather(d_bare, at)

        for _, at in tiles.places():
            score(at)
        sums = torch.zeros_like(rows.reference).index_add_(0, rows.sequence, logps)  # [2N]
        terms = preference(sums, rows.reference, dpo_beta)
        slopes = (terms.slopes * rows.share)[rows.sequence][:, None]  # [M, 1]
        if d_hidden is not None and not twice:
            d_hidden *= slopes
        elif d_hidden is not None:
            for _, at in tiles.places():
                add(at, d_hidden)

        _Kept.keep(ctx, tiles, d_hidden, 4)
        loss = terms.losses.sum() * rows.share
        square = torch.zeros_like(loss) if d_hidden is None else d_hidden.square().sum()
        ctx.mark_non_differentiable(terms.margins, sums, square)
        return loss, terms.margins, sums, square


def _minus_p(
    logps: torch.Tensor,  # [n, V]; used up
    targets: torch.Tensor,  # [n]
    slopes: torch.Tensor,  # [n, 1]
) -> torch.Tensor:  # [n, V]
    """``slopes`` times the derivative of the targets' log-probability by the logits."""
    return logps.exp_().mul_(-slopes).scatter_add_(-1, targets[:, None], slopes)
