"""What is planned on the CPU: rows, targets and weights, and prompts that two answers share."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from composer_engine.plan import Planner, Rollout, Scored, can_share_prompts, sharing_pays
from composer_engine.rollouts import old_logps, to_rollouts
from composer_engine.schedule import ReplaySchedule, Turns
from composer_engine.step import hidden_rows, replay_loss, row_logps, student_loss
from tests.engine.test_equal import SMALL, WEIGHTS, make_work, planned

CPU = torch.device("cpu")
PLANNER = Planner(pad_id=0, device=CPU, tile_rows=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """So little work is slower on two, and much slower on two that others use."""
    torch.set_num_threads(1)


# ---------------------------------------------------------------- rows


def test_a_plan_scores_the_tokens_after_its_start() -> None:
    plan = PLANNER.rows([Scored((5, 6, 7, 8), 2), Scored((9, 4), 1)])
    assert plan.batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert plan.batch.rows.tolist() == [1, 2, 4]  # the row before each scored token
    assert plan.targets.tolist() == [7, 8, 4]
    assert plan.sequence.tolist() == [0, 0, 1]


def test_the_rows_of_failed_rollouts_line_up_with_their_teachers() -> None:
    rollouts = [
        Rollout(Scored((1, 7, 8), 1), 0.5),
        Rollout(Scored((2, 9, 6, 5), 1), -0.5, Scored((2, 3, 3, 9, 6, 5), 3)),
    ]
    plan = PLANNER.student(rollouts, tokens=5, active_tokens=3)
    assert plan.rows.targets.tolist() == [7, 8, 9, 6, 5]
    assert plan.rows.advantages.tolist() == [0.5, 0.5, -0.5, -0.5, -0.5]
    assert plan.rows.weights.tolist() == pytest.approx([0.2] * 5)
    assert plan.rows.sdpo_rows.tolist() == [2, 3, 4]
    assert plan.rows.sdpo_bounds == (0, 0, 2, 3)  # in tiles of two rows
    assert plan.rows.sdpo_share == pytest.approx(1 / 3)
    assert plan.teacher is not None
    assert plan.teacher.rows.tolist() == [2, 3, 4]
    assert plan.rows.old_logps is None


def test_corrections_weigh_a_token_and_old_logps_follow_it() -> None:
    rollouts = [
        Rollout(Scored((1, 7, 8), 1), 1.0, None, (-0.5, -0.25), (2.0, 0.0)),
        Rollout(Scored((1, 9), 1), 1.0, None, (-1.0,), (0.5,)),
    ]
    plan = PLANNER.student(rollouts, tokens=2)
    assert plan.rows.weights.tolist() == [1.0, 0.0, 0.25]
    assert plan.rows.old_logps is not None
    assert plan.rows.old_logps.tolist() == [-0.5, -0.25, -1.0]
    assert plan.teacher is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 9), st.booleans()), min_size=1, max_size=6
    ),
    st.integers(1, 12),
)
def test_every_tile_finds_its_own_rows_under_sdpo(
    shapes: list[tuple[int, int, bool]], tile_rows: int
) -> None:
    rollouts = []
    for prompt, answer, fails in shapes:
        sequence = Scored((1,) * prompt + (2,) * answer, prompt)
        rollouts.append(Rollout(sequence, 0.0, sequence if fails else None))
    rows = PLANNER._replace(tile_rows=tile_rows).student(rollouts, 1.0, 1.0).rows
    places, bounds = rows.sdpo_rows.tolist(), rows.sdpo_bounds
    tiles = -(-len(rows.targets) // tile_rows)
    assert len(bounds) == tiles + 1
    for tile in range(tiles):
        mine = places[bounds[tile] : bounds[tile + 1]]
        assert mine == [p for p in places if tile * tile_rows <= p < (tile + 1) * tile_rows]


# ---------------------------------------------------------------- shared prompts


def tiny(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


CONFIGS = {
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "gpt2": GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=2, initializer_range=0.15),
}
REFUSED = {
    "mistral that slides": MistralConfig(**SMALL, sliding_window=4),
    "qwen2 that slides": Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "llama of dynamic positions": LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
    "gemma2": Gemma2Config(**SMALL, head_dim=8),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_shared_prompt_changes_neither_rows_nor_loss_nor_gradient(
    config: Any, attention: str
) -> None:
    model = tiny(config)
    model.set_attn_implementation(attention)
    assert can_share_prompts(model)
    work = make_work(off_policy=False, model=model)
    found = []
    for share in (False, True):
        plan = planned(work, share=share)[1]
        with torch.no_grad():
            hidden = hidden_rows(model, plan.batch)
        losses = replay_loss(model, plan, WEIGHTS)
        losses.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
        found.append((plan.batch.input_ids.shape, hidden, losses.total.detach(), gradient))
    (two_rows, hidden, loss, gradient), (one_row, ours, our_loss, our_gradient) = found
    assert one_row[0] * 2 == two_rows[0]
    assert one_row.numel() < two_rows.numel()
    assert (ours - hidden).norm() / hidden.norm() < 1e-6
    assert float(our_loss) == pytest.approx(float(loss), rel=1e-5)
    assert (our_gradient - gradient).norm() / gradient.norm() < 1e-5


@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED.keys())
def test_prompts_are_not_shared_where_that_may_change_a_result(config: Any) -> None:
    assert not can_share_prompts(tiny(config))


def test_an_attention_that_reads_no_mask_of_ours_shares_nothing() -> None:
    model = tiny(CONFIGS["qwen2"])
    model.config._attn_implementation = "flash_attention_2"
    assert not can_share_prompts(model)


def test_pairs_without_one_prompt_get_a_row_for_each_side() -> None:
    chosen, rejected = [Scored((1, 2, 3), 2)], [Scored((1, 4, 3), 2)]
    plan = PLANNER.replay(chosen, rejected, [0.0, 0.0], 1, share_prompts=True)
    assert plan.batch.segments is None
    assert plan.batch.input_ids.tolist() == [[1, 2, 3], [1, 4, 3]]


def test_a_shared_row_restarts_its_positions() -> None:
    chosen, rejected = [Scored((1, 2, 7, 8), 2)], [Scored((1, 2, 9), 2)]
    plan = PLANNER.replay(chosen, rejected, [0.0, 0.0], 1, share_prompts=True)
    assert plan.batch.input_ids.tolist() == [[1, 2, 7, 8, 9]]
    assert plan.batch.positions is not None
    assert plan.batch.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert plan.batch.rows.tolist() == [1, 2, 1]
    assert plan.rows.targets.tolist() == [7, 8, 9]
    assert plan.rows.sequence.tolist() == [0, 0, 1]


def test_a_short_prompt_of_long_answers_is_not_worth_sharing() -> None:
    def pair(prompt: int, answer: int) -> list[Scored]:
        return [Scored((1,) * (prompt + answer), prompt)]

    assert sharing_pays(pair(512, 256), pair(512, 200), 896)
    assert sharing_pays(pair(8, 3), pair(8, 4), 64)
    assert not sharing_pays(pair(10, 2000), pair(10, 2000), 896)
    assert not sharing_pays(pair(512, 6000), pair(512, 6000), 896)


def test_rollouts_without_a_token_are_planned_and_teach_nothing() -> None:
    model = tiny(CONFIGS["qwen2"])
    plan = PLANNER.student([Rollout(Scored((5, 6), 2), 1.0)], 1.0)
    losses = student_loss(model, plan, WEIGHTS)
    losses.total.backward()
    assert float(losses.total.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("config", [*CONFIGS.values(), *REFUSED.values()])
def test_what_pads_a_batch_changes_no_row_of_it(config: Any) -> None:
    model = tiny(config)
    long = Scored(tuple(range(4, 24)), 3)
    short = Scored((9, 8, 7, 6, 5), 2)
    with torch.no_grad():
        together = hidden_rows(model, PLANNER.rows([long, short]).batch)
        alone = [hidden_rows(model, PLANNER.rows([text]).batch) for text in (long, short)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- rollouts


def test_a_rollout_is_read_without_its_padding() -> None:
    rollout = {
        "prompt_ids": torch.tensor([[0, 5], [6, 7]]),
        "prompt_mask": torch.tensor([[0, 1], [1, 1]]),
        "completion_ids": torch.tensor([[8, 9, 0], [4, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
        "advantages": torch.tensor([0.5, -0.5]),
        "old_per_token_logps": torch.tensor([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]]),
        "importance_sampling_ratio": torch.tensor([[2.0], [0.5]]),
    }
    first, second = to_rollouts(rollout, [None, [3, 3, 3]], limit=4)
    assert first == Rollout(Scored((5, 8, 9), 1), 0.5, None, (-1.0, -2.0), (2.0, 2.0))
    assert second.sequence == Scored((6, 7, 4), 2)
    assert second.teacher == Scored((3, 3, 3, 4), 3)
    assert to_rollouts(rollout, [None, [3, 3, 3]], limit=3)[1].teacher is None  # does not fit


def test_log_probabilities_at_rollout_time_are_those_of_the_loss() -> None:
    model = tiny(CONFIGS["gpt2"])  # whose positions would shift with padding on the left
    ids = torch.tensor([[0, 0, 5, 8, 9], [4, 6, 7, 4, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])

    def score(sequences: Any) -> torch.Tensor:
        return row_logps(model, PLANNER.rows(sequences), 0.7, 2)

    found = old_logps(ids, mask, 2, 1, score)
    for row, (text, count) in enumerate((((5, 8, 9), 2), ((4, 6, 7, 4), 1))):
        logits = model(input_ids=torch.tensor([text])).logits[0] / 0.7
        logps = torch.log_softmax(logits, -1)[range(len(text) - 1), text[1:]]
        assert found[row, :count].tolist() == pytest.approx(logps[-count:].tolist(), rel=1e-4)
    assert found[1, 1] == 0


# ---------------------------------------------------------------- turns


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 5))
def test_every_pair_is_replayed_once_an_epoch(pairs: int, per_step: int, seed: int) -> None:
    schedule = ReplaySchedule(pairs, per_step, seed)
    drawn = [i for replay in range(2 * pairs) for i in schedule.at(replay)]
    for epoch in range(len(drawn) // pairs):
        assert sorted(drawn[epoch * pairs : (epoch + 1) * pairs]) == [*range(pairs)]
    assert schedule.at(7) == ReplaySchedule(pairs, per_step, seed).at(7)


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_the_pairs_that_a_run_uses_are_known_before_it(
    steps: int, pairs: int, per_step: int, alternate: bool
) -> None:
    turns, schedule = Turns(alternate), ReplaySchedule(pairs, per_step, 1)
    replayed = [step for step in range(1, steps + 1) if turns.has_replay(step)]
    assert len(replayed) == turns.replays_before(steps + 1)
    drawn = {i for step in replayed for i in schedule.at(turns.replays_before(step))}
    assert drawn == {*schedule.used(len(replayed))}


def test_channels_take_turns_only_where_they_are_asked_to() -> None:
    assert [Turns(True).has_sdpo(step) for step in (1, 2, 3)] == [True, False, True]
    assert [Turns(True).has_replay(step) for step in (1, 2, 3)] == [False, True, False]
    assert [Turns(True).replays_before(step) for step in (2, 4, 6)] == [0, 1, 2]
    assert Turns().has_sdpo(2)
    assert Turns().has_replay(1)
