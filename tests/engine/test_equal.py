"""The engine's step equals the naive one: every loss, and the gradient of every parameter.

The whole product of its options is gone through, on padded batches of ragged length and in tiles
that do not divide them. Gradients are compared, not only losses: a loss can be right to nine
digits while what is learnt from it is not.
"""

import copy
import itertools
from typing import Any, Literal, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from composer_engine.channels import Divergence
from composer_engine.heads import Knobs, StudentRows, student_head
from composer_engine.plan import Planner, ReplayPlan, Rollout, Scored, StudentPlan
from composer_engine.step import (
    Losses,
    StepOptions,
    backward,
    live_teacher,
    replay_loss,
    student_loss,
)
from composer_engine.tiles import Head
from tests.engine import naive

CPU = torch.device("cpu")
TOLERANCE = 1e-5
VOCABULARY = 512
WEIGHTS = StepOptions(sdpo_weight=0.7, replay_weight=1.2, temperature=0.8, dpo_beta=0.3)
PLANNER = Planner(pad_id=3, device=CPU, tile_rows=7)

BETAS = (0.0, 0.5, 1.0)
TOP_K: tuple[tuple[int, Literal["teacher", "student"], bool], ...] = (  # of whom; with a tail
    (0, "teacher", False),
    (64, "teacher", False),
    (64, "teacher", True),
    (64, "student", False),
    (64, "student", True),
)
CHANNELS = ((True, True), (False, True), (True, False), (False, False))  # sdpo, replay
WAYS: tuple[Literal["summed", "per_channel"], ...] = ("summed", "per_channel")
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """So little work is slower on two, and much slower on two that others use."""
    torch.set_num_threads(1)


class Result(NamedTuple):
    losses: dict[str, float]
    gradients: list[torch.Tensor]  # a parameter each


def make_model(kind: Any = Qwen2ForCausalLM, config: Any = None, *, tied: bool = True) -> Any:
    """Tiny and random, with weights large enough that tokens differ in likelihood."""
    torch.manual_seed(0)
    return kind(config or Qwen2Config(**SMALL, tie_word_embeddings=tied))


def tokens(count: int) -> tuple[int, ...]:
    drawn: list[int] = torch.randint(4, VOCABULARY, (count,)).tolist()
    return tuple(drawn)


def make_work(*, off_policy: bool, model: Any) -> naive.Work:
    """Three ragged rollouts, two of them taught, and two pairs of unequal sides."""
    torch.manual_seed(5)
    prompts = [tokens(count) for count in (4, 9, 6)]
    answers = [tokens(count) for count in (11, 5, 8)]
    rollouts = [((*p, *a), len(p)) for p, a in zip(prompts, answers, strict=True)]
    hints = [tokens(5), None, tokens(2)]
    teachers = [
        None if hint is None else ((*p, *hint, *a), len(p) + len(hint))
        for p, hint, a in zip(prompts, hints, answers, strict=True)
    ]
    chosen, rejected = [], []
    for start, first, second in ((5, 6, 3), (2, 4, 9)):
        prompt = tokens(start)
        chosen.append(((*prompt, *tokens(first)), start))
        rejected.append(((*prompt, *tokens(second)), start))
    with torch.no_grad():
        # Away from the model as it is, or no ratio would be clipped.
        reference = naive.sequence_logps(model, [*chosen, *rejected]) + torch.randn(4)
        logits, ids = naive.logits_of(model, rollouts)
        moved = naive.token_logps(logits / WEIGHTS.temperature, ids)
        moved += 0.4 * torch.randn_like(moved)
    old = [
        moved[row, start - 1 : len(text) - 1].tolist() for row, (text, start) in enumerate(rollouts)
    ]
    return naive.Work(
        rollouts=rollouts,
        advantages=[1.3, -0.7, -0.6],
        old_logps=old if off_policy else None,
        teachers=teachers,
        chosen=chosen,
        rejected=rejected,
        reference=reference.tolist(),
    )


def planned(
    work: naive.Work, *, share: bool = False, planner: Planner = PLANNER
) -> tuple[StudentPlan, ReplayPlan]:
    rollouts = [
        Rollout(
            Scored(*text),
            advantage,
            None if teacher is None else Scored(*teacher),
            None if work.old_logps is None else tuple(work.old_logps[row]),
        )
        for row, (text, advantage, teacher) in enumerate(
            zip(work.rollouts, work.advantages, work.teachers, strict=True)
        )
    ]
    lengths = [len(ids) - start for ids, start in work.rollouts]
    active = sum(n for n, text in zip(lengths, work.teachers, strict=True) if text)
    chosen, rejected = ([Scored(*text) for text in side] for side in (work.chosen, work.rejected))
    return (
        planner.student(rollouts, sum(lengths), active),
        planner.replay(chosen, rejected, work.reference, len(chosen), share_prompts=share),
    )


def gradients(model: Any) -> list[torch.Tensor]:
    found = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad(set_to_none=True)
    assert all(gradient is not None for gradient in found)
    return found


def naive_result(model: Any, work: naive.Work, options: StepOptions, teacher: Any = None) -> Result:
    numbers = naive.step(model, work, options, teacher)
    losses = {
        name: float(value.detach())
        for name, value in numbers._asdict().items()
        if value is not None
    }
    return Result(losses, gradients(model))


def our_result(
    model: Any, plans: tuple[StudentPlan, ReplayPlan], options: StepOptions, teacher: Any = None
) -> Result:
    student, replay = backward(model, *plans, options, teacher)
    parts: list[Losses] = [student, *([replay] if replay else [])]
    losses = {name: float(v) for part in parts for name, v in part.channels.items()}
    losses["total"] = float(sum(part.total.detach() for part in parts))
    return Result(losses, gradients(model))


def difference(ours: Result, expected: Result) -> float:
    """The largest relative error: of a loss, or of the gradient as a whole."""
    assert ours.losses.keys() == expected.losses.keys()
    of_losses = [abs(ours.losses[n] - v) / abs(v) for n, v in expected.losses.items()]
    off, size = (
        torch.stack([part.double().norm() for part in parts]).norm()
        for parts in (
            [
                a.double() - b.double()
                for a, b in zip(ours.gradients, expected.gradients, strict=True)
            ],
            expected.gradients,
        )
    )
    return max(*of_losses, float(off / size))


def test_the_whole_grid_of_options_equals_the_naive_step() -> None:
    model = make_model()
    checkpointed = copy.deepcopy(model).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    exact = copy.deepcopy(model).double()  # float32's own noise is near the tolerance
    worst, seen = 0.0, 0
    for off_policy, (sdpo, replay) in itertools.product((False, True), CHANNELS):
        work = make_work(off_policy=off_policy, model=model)
        plans = {share: planned(work, share=share) for share in (False, True)}
        # Without SDPO its own options mean nothing, and without replay the replay's.
        rules = itertools.product(BETAS, TOP_K) if sdpo else [(0.5, TOP_K[0])]
        ways = (False, True) if replay else (False,), WAYS if replay else WAYS[:1]
        for beta, (top_k, top_k_of, top_k_tail) in rules:
            options = WEIGHTS._replace(
                sdpo_weight=WEIGHTS.sdpo_weight * sdpo,
                replay_weight=WEIGHTS.replay_weight * replay,
                jsd_beta=beta,
                top_k=top_k,
                top_k_of=top_k_of,
                top_k_tail=top_k_tail,
            )
            expected = naive_result(exact, work, options)
            for share, way, subject in itertools.product(*ways, (model, checkpointed)):
                ours = our_result(subject, plans[share], options._replace(channel_backward=way))
                error = difference(ours, expected)
                assert error <= TOLERANCE, (off_policy, options, share, way, error)
                worst, seen = max(worst, error), seen + 1
    # On and off policy: three rules' betas and five picks, twice the ways with replay and without.
    assert seen == 2 * (15 * (8 + 2) + 8 + 2)
    assert worst > 0  # two computations, not one


def test_the_grid_has_what_it_is_meant_to_try() -> None:
    model = make_model()
    work = make_work(off_policy=True, model=model)
    student, replay = planned(work, share=True)
    assert student.rows.old_logps is not None
    assert replay.batch.segments is not None
    losses, _ = backward(model, student, replay, WEIGHTS)
    clipped = {name: float(losses.metrics[f"clip_ratio/{name}_mean"]) for name in ("low", "high")}
    assert 0 < clipped["low"] < 0.5
    assert 0 < clipped["high"] < 0.5
    assert len(student.rows.targets) % PLANNER.tile_rows
    assert 0 < len(student.rows.sdpo_rows) < len(student.rows.targets)


MODELS = {
    "untied": lambda: make_model(tied=False),
    "soft cap": lambda: make_model(
        Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.5)
    ),
    "logit scale": lambda: make_model(
        CohereForCausalLM, CohereConfig(**SMALL, logit_scale=3.0, tie_word_embeddings=True)
    ),
    "logits scaling": lambda: make_model(
        GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=4.0)
    ),
    "bias": lambda: make_model(PhiForCausalLM, PhiConfig(**SMALL, tie_word_embeddings=False)),
    "learned positions": lambda: make_model(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, initializer_range=0.15),
    ),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_every_kind_of_head_equals_the_naive_step(make: Any) -> None:
    model = make().eval()  # no dropout
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    work = make_work(off_policy=True, model=model)
    for top_k, top_k_of, top_k_tail in TOP_K:
        options = WEIGHTS._replace(top_k=top_k, top_k_of=top_k_of, top_k_tail=top_k_tail)
        expected = naive_result(model, work, options)
        assert difference(our_result(model, planned(work), options), expected) <= TOLERANCE


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapters_gradient_equals_the_naive_one(dora: bool) -> None:
    model = get_peft_model(
        make_model(),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    inner: Any = model.get_base_model()
    assert not inner.get_output_embeddings().weight.requires_grad
    work = make_work(off_policy=True, model=inner)
    expected = naive_result(inner, work, WEIGHTS)
    for share in (False, True):
        assert (
            difference(our_result(inner, planned(work, share=share), WEIGHTS), expected)
            <= TOLERANCE
        )


def test_another_model_may_teach() -> None:
    model, teacher = make_model(), make_model()
    torch.nn.init.normal_(teacher.get_output_embeddings().weight, std=0.2)
    work = make_work(off_policy=False, model=model)
    expected = naive_result(model, work, WEIGHTS, teacher)
    ours = our_result(model, planned(work), WEIGHTS, lambda _, batch: live_teacher(teacher, batch))
    assert difference(ours, expected) <= TOLERANCE
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("tile_rows", [1, 3, 6, 7, 100])
def test_bfloat16_stays_as_near_to_float32_as_the_naive_step_does(tile_rows: int) -> None:
    model = make_model(tied=False)
    work = make_work(off_policy=False, model=model)
    expected = naive_result(model, work, WEIGHTS)
    half = copy.deepcopy(model).bfloat16()
    plans = planned(work, share=True, planner=PLANNER._replace(tile_rows=tile_rows))
    ours, naives = our_result(half, plans, WEIGHTS), naive_result(half, work, WEIGHTS)
    assert all(gradient.dtype == torch.bfloat16 for gradient in ours.gradients)
    assert difference(ours, expected) < 1.5 * difference(naives, expected) < 0.1
    ours_head, head = ours.gradients[-1].float(), expected.gradients[-1]
    assert (ours_head - head).norm() / head.norm() < 0.05


def test_float16_loses_nothing_of_a_gradient_that_is_too_small_for_it() -> None:
    torch.manual_seed(3)
    hidden, weight = torch.randn(6, 16), 0.05 * torch.randn(4096, 16)
    ones, many = torch.ones(6), 100_000  # tokens of the step; most logits get less than 1e-8
    rows = StudentRows(
        targets=torch.arange(6),
        advantages=ones,
        weights=ones / many,
        old_logps=None,
        sdpo_rows=torch.zeros(0, dtype=torch.long),
        sdpo_bounds=(0, 0, 0),
        share=1 / many,
        sdpo_share=0.0,
        tile_rows=4,
    )
    lifted = []
    for dtype in (torch.float32, torch.float16):
        leaf = hidden.to(dtype, copy=True).requires_grad_()
        head = Head(weight.to(dtype))
        sums = student_head(leaf, head, rows, Knobs(1.0, 0.2, 0.0, Divergence()), None)
        (2.0**16 * sums.total).backward()
        assert leaf.grad is not None
        lifted.append(leaf.grad.float())
    exact, half = lifted
    assert (half - exact).norm() / exact.norm() < 0.01


class NoValueAsked(TorchDispatchMode):
    """Fails where a step would have to wait for its device to tell a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        assert func.overloadpacket not in waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared prompts"])
@pytest.mark.parametrize("top_k", [0, 64])
def test_a_step_never_waits_for_the_device(top_k: int, *, share: bool) -> None:
    model = make_model()
    model.gradient_checkpointing_enable()
    plans = planned(make_work(off_policy=True, model=model), share=share)
    with NoValueAsked():
        backward(model, *plans, WEIGHTS._replace(top_k=top_k, top_k_tail=True))
        with pytest.raises(AssertionError, match="waits for the device"):
            bool(torch.ones(1).any())


def test_the_size_of_a_tile_changes_nothing() -> None:
    model = make_model()
    work = make_work(off_policy=True, model=model)
    expected = naive_result(model, work, WEIGHTS)
    for rows in (1, 5, 24, 128):
        plans = planned(work, planner=PLANNER._replace(tile_rows=rows))
        assert difference(our_result(model, plans, WEIGHTS), expected) <= TOLERANCE


def test_gradients_accumulate_over_micro_batches_and_scale_with_the_loss() -> None:
    model = make_model()
    work = make_work(off_policy=False, model=model)
    student, replay = planned(work)
    options = WEIGHTS._replace(channel_backward="summed")
    once = our_result(model, (student, replay), options).gradients
    (3 * student_loss(model, student, options).total).backward()
    (3 * replay_loss(model, replay, options).total).backward()
    backward(model, student, replay, options)
    for gradient, expected in zip(gradients(model), once, strict=True):
        assert torch.allclose(gradient, 4 * expected, rtol=1e-4, atol=1e-6)


def test_a_heads_gradient_can_be_asked_for_once() -> None:
    model = make_model()
    student, _ = planned(make_work(off_policy=False, model=model))
    total = student_loss(model, student, WEIGHTS).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="asked for twice"):
        total.backward()


def test_the_channels_shares_of_the_gradient_at_the_hidden_states_are_true() -> None:
    model = make_model()
    work = make_work(off_policy=True, model=model)
    student, replay = planned(work)
    losses, replayed = backward(model, student, replay, WEIGHTS)
    assert replayed is not None
    squares = losses.squares | replayed.squares
    alone = {
        "grpo": student._replace(teacher=None),
        "sdpo": student._replace(rows=student.rows._replace(weights=torch.zeros(24))),
    }
    kept: list[torch.Tensor] = []
    model.base_model.register_forward_hook(
        lambda _module, _args, output: kept.append(output.last_hidden_state)
    )
    for channel, plan in alone.items():
        total = student_loss(model, plan, WEIGHTS).total
        (slope,) = torch.autograd.grad(total, kept[-1])
        assert float(squares[channel]) == pytest.approx(float(slope.square().sum()), rel=1e-4)
    (slope,) = torch.autograd.grad(replay_loss(model, replay, WEIGHTS).total, kept[-1])
    # The prompt's last row predicts two tokens where it is shared, and is one row then.
    assert float(squares["replay"]) == pytest.approx(float(slope.square().sum()), rel=1e-4)
