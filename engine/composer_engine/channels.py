"""The channels' losses as functions of tensors. GRPO's own is TRL's.

    total = GRPO + sdpo_weight * SDPO + replay_weight * DPO

Hidden rows come in flat, scored rows only; logits are never made whole: TRL's kernels project
them through the LM head tile by tile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

_VOCABULARY_TILE = 32_768


class Head(NamedTuple):
    """The LM head, and what its model does to the logits before the softmax."""

    weight: torch.Tensor  # [V, H]
    bias: torch.Tensor | None  # [V]
    logit_scale: float
    softcap: float | None


class DpoTerms(NamedTuple):
    """DPO's loss and its implicit reward margin, a pair."""

    losses: torch.Tensor  # [N]
    margins: torch.Tensor  # [N] dpo_beta * (chosen - rejected log-ratio)


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


@contextmanager
def kept_hidden(backbone: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the last hidden state, graph and all, of every forward of the backbone inside."""
    kept: list[torch.Tensor] = []
    handle = backbone.register_forward_hook(
        lambda _module, _args, output: kept.append(output.last_hidden_state)
    )
    try:
        yield kept
    finally:
        handle.remove()


def sdpo(
    student: torch.Tensor,  # [M, H] rows that predict the tokens of failed rollouts
    teacher: torch.Tensor,  # [M, H] the same tokens after a hint
    head: Head,
    jsd_beta: float,
    temperature: float,
) -> torch.Tensor:  # [M], nats
    """Self-distillation: the divergence a token between the student and its hinted self.

    With ps = softmax(student logits / temperature) and pt the teacher's, and b = ``jsd_beta``:

        b = 0: KL(pt || ps)        b = 1: KL(ps || pt)
        else:  b KL(pt || m) + (1 - b) KL(ps || m),   m = (1 - b) ps + b pt

    The teacher gets no gradient. The idea: Huebotter et al., "Reinforcement Learning via
    Self-Distillation", arXiv:2601.20802; the divergence: Agarwal et al., "On-Policy
    Distillation" (GKD), arXiv:2306.13649, eq. 1, with OPSD's and TRL's sign of beta.
    """
    divergence: torch.Tensor = ChunkedDivergenceFunction.apply(
        student,
        head.weight,
        head.bias,
        teacher,
        head.weight.detach(),
        None if head.bias is None else head.bias.detach(),
        jsd_beta,
        temperature,
        head.logit_scale,
        head.softcap,
        head.logit_scale,
        head.softcap,
    )[0]
    return divergence


def sequence_logps(
    hidden: torch.Tensor,  # [M, H] rows that predict a scored token
    targets: torch.Tensor,  # [M] those tokens
    sequence: torch.Tensor,  # [M] the sequence of each, 0..R-1
    count: int,
    head: Head,
) -> torch.Tensor:  # [R]
    """Summed log-probability of each sequence's scored tokens, at temperature 1."""
    logps, *_ = ChunkedLogProbFunction.apply(
        hidden,
        head.weight,
        head.bias,
        targets,
        1.0,
        _VOCABULARY_TILE,
        head.softcap,
        head.logit_scale,
        (),
    )
    return torch.zeros(count, device=hidden.device, dtype=logps.dtype).index_add(0, sequence, logps)


def dpo(
    logps: torch.Tensor,  # [2N] chosen first, then rejected
    reference: torch.Tensor,  # [2N] at the initial weights
    dpo_beta: float,
) -> DpoTerms:
    """Trace-replay DPO: Rafailov et al., arXiv:2305.18290, eq. 7, on stored pairs.

    -log sigmoid(dpo_beta * [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)])
    """
    chosen, rejected = (logps - reference).chunk(2)  # [N] each
    margins = dpo_beta * (chosen - rejected)  # [N]
    return DpoTerms(-functional.logsigmoid(margins), margins)
