"""The channels' formulas, a row or a pair at a time, and their derivatives against autograd."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as f
from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel

from composer_engine import channels
from composer_engine.channels import Divergence, clipped_surrogate, preference
from composer_engine.throughput import Throughput, peak_flops
from tests.engine import naive

RULES = [
    Divergence(beta, top_k, top_k_of, tail)
    for beta in (0.0, 0.3, 0.5, 1.0)
    for top_k, top_k_of, tail in (
        (0, "teacher", False),
        (3, "teacher", False),
        (3, "student", True),
        (1, "teacher", True),
    )
]


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, rule: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits."""
    return channels.divergence(f.log_softmax(student, -1), f.log_softmax(teacher, -1), rule)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RULES), st.integers(0, 10**6), st.floats(0.01, 30))
def test_a_divergence_and_its_derivative_are_the_naive_ones(
    rule: Divergence, seed: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = spread * torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    expected = naive.divergence(student, teacher, **rule._asdict())
    (slope,) = torch.autograd.grad(expected.sum(), student)
    losses, gradient = divergence(student.detach(), teacher, rule)
    assert torch.allclose(losses, expected.detach(), rtol=1e-7, atol=1e-12)
    assert torch.allclose(gradient, slope, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_teacher_that_agrees_teaches_nothing(rule: Divergence) -> None:
    logits = torch.randn(5, 11)
    losses, gradient = divergence(logits, logits.clone(), rule)
    assert losses.tolist() == pytest.approx([0.0] * 5, abs=1e-6)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_certainty_makes_no_nan(rule: Divergence) -> None:
    student, teacher = torch.zeros(2, 6), torch.zeros(2, 6)
    student[:, 0], teacher[:, 5] = 300.0, 300.0
    losses, gradient = divergence(student, teacher, rule)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()


def test_the_jsd_of_opposite_certainties_is_ln_2() -> None:
    losses, _ = divergence(100 * torch.eye(2), 100 * torch.eye(2).flip(0), Divergence(0.5))
    assert losses.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-4)


def test_more_tokens_than_there_are_is_the_whole_vocabulary() -> None:
    student, teacher = torch.randn(2, 3, 8)
    whole, _ = divergence(student, teacher, Divergence(0.5))
    for top_k in (8, 9):
        for tail in (False, True):
            losses, _ = divergence(student, teacher, Divergence(0.5, top_k, "student", tail))
            assert torch.equal(losses, whole)


def test_a_tail_makes_the_divergence_smaller_than_the_whole_and_not_blind() -> None:
    """Putting tokens into one bucket can only lose what told the two apart."""
    torch.manual_seed(1)
    student, teacher = 2 * torch.randn(2, 20, 30)
    whole, _ = divergence(student, teacher, Divergence(1.0))
    tail, _ = divergence(student, teacher, Divergence(1.0, 5, "student", top_k_tail=True))
    assert (tail <= whole + 1e-6).all()
    assert (tail > 0).all()


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_students_pick_is_that_of_trl(
    tail: bool, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    torch.manual_seed(2)
    student, teacher = torch.randn(2, 6, 40)
    theirs = compute_topk_self_distillation_loss(
        student,
        teacher,
        distillation_topk=7,
        distillation_alpha=beta,
        distillation_add_tail=tail,
    )
    ours, _ = divergence(student, teacher, Divergence(beta, 7, "student", tail))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.1, 0.2, 0.5]))
def test_the_surrogate_and_its_slope_are_autograds(
    seed: int, on_policy: bool, epsilon: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(20, generator=generator, dtype=torch.float64).requires_grad_()
    old = None if on_policy else logps.detach() + torch.randn(20, generator=generator) / 2
    advantages = torch.randn(20, generator=generator, dtype=torch.float64).round()
    ratio = torch.exp(logps - (logps.detach() if old is None else old))
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    expected = -torch.min(ratio * advantages, clipped * advantages)
    (slope,) = torch.autograd.grad(expected.sum(), logps)
    ours = clipped_surrogate(logps.detach(), old, advantages, epsilon)
    assert torch.allclose(ours.losses, expected.detach())
    assert torch.allclose(ours.slopes, slope)
    held = (slope == 0) & (advantages != 0)
    assert torch.equal(ours.is_low | ours.is_high, held)


def test_dpo_starts_at_ln_2_and_falls_with_the_margin() -> None:
    reference = torch.tensor([-3.0, -4.0, -5.0, -6.0])
    at_start = preference(reference, reference, 0.1)
    assert at_start.losses.tolist() == pytest.approx([math.log(2)] * 2)
    better = preference(reference + torch.tensor([1.0, 0.0, 0.0, -1.0]), reference, 0.1)
    assert better.margins.tolist() == pytest.approx([0.1, 0.1])
    assert (better.losses < at_start.losses).all()


def test_dpos_slope_is_autograds() -> None:
    torch.manual_seed(3)
    logps, reference = (-10 * torch.rand(2, 6, dtype=torch.float64)).unbind()
    logps.requires_grad_()
    chosen, rejected = (logps - reference).chunk(2)
    expected = -f.logsigmoid(0.3 * (chosen - rejected))
    (slope,) = torch.autograd.grad(expected.sum(), logps)
    terms = preference(logps.detach(), reference, 0.3)
    assert torch.allclose(terms.losses, expected.detach())
    assert torch.allclose(terms.slopes, slope)


def test_utilisation_is_a_share_of_a_known_peak() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = CohereForCausalLM(CohereConfig(**sizes, pad_token_id=0)).config
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).config
    # 6 FLOPs a parameter and token, and some for attention: 1000 tokens a second of a 1 GFLOP/s.
    share = Throughput(config, 1e9).mfu(tokens=1000, sequences=100, seconds=1.0)
    assert share is not None
    assert 0.01 < share < 0.05
    assert Throughput(config, None).mfu(1000, 100, 1.0) is None
    assert Throughput(other, 1e9).mfu(1000, 100, 1.0) is None
    assert peak_flops(torch.device("cpu"), torch.float32) is None
