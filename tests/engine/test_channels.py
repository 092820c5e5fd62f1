"""The channels on models whose heads do more than multiply, and at the edges of their formulas."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as f
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from composer_engine.channels import Head, dpo, head_of, kept_hidden, sdpo, sequence_logps
from composer_engine.throughput import Throughput, peak_flops

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5)
    ),
    "logit_scale": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "logits_scaling": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "plain": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_a_heads_scale_and_cap_are_part_of_the_probability(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(3, 50, (2, 7))
    with kept_hidden(model.base_model) as kept:
        logits = model(input_ids=ids).logits.float()
    expected = f.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None]).sum((1, 2))
    sequence = torch.tensor([0] * 6 + [1] * 6)
    hidden = kept[0][:, :-1].flatten(0, 1)
    logps = sequence_logps(hidden, ids[:, 1:].flatten(), sequence, 2, head_of(model))
    assert torch.allclose(logps, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_teacher_that_agrees_teaches_nothing(beta: float, temperature: float) -> None:
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    loss = sdpo(hidden, hidden.detach().clone(), Head(weight, None, 1.0, None), beta, temperature)
    assert loss.tolist() == pytest.approx([0.0] * 5, abs=1e-5)
    loss.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-5


def test_the_jsd_of_opposite_certainties_is_ln_2() -> None:
    weight = torch.eye(2) * 100
    loss = sdpo(torch.eye(2), torch.eye(2).flip(0), Head(weight, None, 1.0, None), 0.5, 1.0)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-4)


def test_sdpo_sees_the_rollouts_temperature() -> None:
    torch.manual_seed(0)
    student, teacher, weight = torch.randn(4, 8), torch.randn(4, 8), torch.randn(9, 8)
    cool = sdpo(student, teacher, Head(weight, None, 1.0, None), 1.0, 0.5)
    ps, pt = (f.log_softmax(h @ weight.T / 0.5, -1) for h in (student, teacher))
    assert torch.allclose(cool, (ps.exp() * (ps - pt)).sum(-1), rtol=1e-4, atol=1e-5)


def test_dpo_starts_at_ln_2_and_falls_with_the_margin() -> None:
    reference = torch.tensor([-3.0, -4.0, -5.0, -6.0])
    at_start = dpo(reference, reference, 0.1)
    assert at_start.losses.tolist() == pytest.approx([math.log(2)] * 2)
    better = dpo(reference + torch.tensor([1.0, 0.0, 0.0, -1.0]), reference, 0.1)
    assert better.margins.tolist() == pytest.approx([0.1, 0.1])
    assert (better.losses < at_start.losses).all()


def test_utilisation_is_a_share_of_a_known_peak() -> None:
    config = MODELS["logit_scale"]().config
    # 6 FLOPs a parameter and token, and some for attention: 1000 tokens a second of a 1 GFLOP/s.
    share = Throughput(config, 1e9).mfu(tokens=1000, sequences=100, seconds=1.0)
    assert share is not None
    assert 0.01 < share < 0.05
    assert Throughput(config, None).mfu(1000, 100, 1.0) is None
    assert Throughput(MODELS["plain"]().config, 1e9).mfu(1000, 100, 1.0) is None
    assert peak_flops(torch.device("cpu"), torch.float32) is None
