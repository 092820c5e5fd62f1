"""The closed form of memory and work: beside what the probe counted, and by its own rules."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_engine.config import RunConfig, load
from composer_engine.memory import Memory, generation, overhead_bytes, peak, works_of
from composer_tui.planning.memory import (
    Lengths,
    ModelShape,
    UnknownArchitecture,
    default_lengths,
    estimate,
    fit,
    mitigations,
    shape_of,
)
from tests.engine.make_probe_table import MODELS, ROWS, Row, table

GIB = 2**30
HALF = shape_of(MODELS["Qwen2.5-0.5B"])
TABLE = table()


def of(*changes: str) -> RunConfig:
    return load(settings=["model.path=somewhere", *changes])


# ---------------------------------------------------------------- beside the probe


def test_the_table_has_every_row_and_no_other() -> None:
    assert list(TABLE) == [row.name for row in ROWS]
    assert len(ROWS) >= 12


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_closed_form_is_near_what_the_probe_counted(row: Row) -> None:
    counted = TABLE[row.name]
    found = estimate(shape_of(MODELS[row.model]), row.config(), row.lengths)
    memory = msgspec.convert(counted["memory"], Memory)
    assert found.peak_bytes == pytest.approx(memory.tensor_bytes, rel=0.05)
    assert found.memory.weights == pytest.approx(memory.weights, rel=0.01)
    assert found.memory.optimizer == pytest.approx(memory.optimizer, rel=0.01)
    assert found.memory.teacher == pytest.approx(memory.teacher, rel=0.05, abs=0.02 * GIB)
    assert found.phase == counted["phase"]
    for channel, flops in counted["flops"].items():
        assert getattr(found.flops, channel) == pytest.approx(flops, rel=0.05)


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_counted_to_the_last_one(model: str) -> None:
    shape = shape_of(MODELS[model])
    for row in ROWS:
        if row.model == model:
            model_config = row.config().model
            rank, dora = model_config.lora_rank, model_config.lora_dora
            trained = shape.adapter_parameters(rank, dora=dora) if rank else shape.parameters
            assert TABLE[row.name]["trained_parameters"] == trained
            all_of_them = shape.parameters + (trained if rank else 0)
            assert TABLE[row.name]["parameters"] == all_of_them


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "gpt2"}, "the model is gpt2"),
        ({"model_type": "qwen3_moe"}, "the model is qwen3_moe"),
        ({}, "of no type"),
        ({"model_type": ["qwen2"]}, "the model is"),
        ({"model_type": "llama"}, "not whole"),
        (MODELS["small"] | {"hidden_size": "wide"}, "not whole"),
        (MODELS["small"] | {"num_attention_heads": 0}, "not whole"),
        (MODELS["small"] | {"num_hidden_layers": -3}, "below 1"),
        (MODELS["small"] | {"rope_scaling": "much"}, "not whole"),
    ],
)
def test_a_model_of_which_too_little_is_known_is_refused(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnknownArchitecture, match=said):
        shape_of(settings)


def test_a_prompt_is_shared_only_where_the_engine_would() -> None:
    def shares(**changed: Any) -> bool:
        return shape_of(MODELS["small"] | changed).can_share_prompts

    assert shares()
    assert shares(sliding_window=32, use_sliding_window=False)
    assert not shares(sliding_window=32)
    assert not shares(rope_parameters={"rope_type": "dynamic"})
    assert not shares(rope_scaling={"type": "longrope"})
    assert not shares(layer_types=["full_attention", "sliding_attention"])


# ---------------------------------------------------------------- rules


def test_keys_and_values_take_12288_bytes_a_token_in_bfloat16() -> None:
    lengths = default_lengths(of())
    config = of("model.dtype=bfloat16", "model.lora_rank=8")
    sampling = generation(HALF, config, lengths)
    a_token = sampling.kv_cache / (32 * (lengths.prompt + lengths.completion))
    assert a_token == 12_288 * 25 / 24  # one of 24 layers is there twice
    many = ("rollout.prompts_per_step=400", "optimizer.micro_batches=3200", "loss.replay_weight=0")
    found = estimate(HALF, of("model.lora_rank=8", *many), lengths)
    assert found.phase == "generation"
    assert found.memory.kv_cache > found.memory.weights


def test_micro_batches_split_completions_and_pairs_and_data_may_have_fewer() -> None:
    config = of("optimizer.micro_batches=4", "loss.replay_pairs=6")
    lengths = default_lengths(config)
    assert works_of(config, lengths, 0.5) == ((8, 4, 2, 1.5),)
    few = msgspec.structs.replace(lengths, pairs=3)
    assert works_of(config, few)[0].mean_pairs == 0.75
    none = msgspec.structs.replace(lengths, pairs=0)
    assert works_of(config, none)[0].pairs == 0
    assert estimate(HALF, config, none).flops.replay == 0
    kinds = works_of(of("loss.alternate_channels=true"), lengths)
    assert [(kind.taught > 0, kind.pairs > 0) for kind in kinds] == [(True, False), (False, True)]


def test_processes_share_a_steps_sequences_and_each_holds_the_buckets_that_join_them() -> None:
    config = of("rollout.completions_per_prompt=16", "loss.replay_pairs=16")
    lengths = default_lengths(config)
    alone, shared = (estimate(HALF, config, lengths, processes=n) for n in (1, 4))
    assert shared.memory.activations * 4 == pytest.approx(alone.memory.activations, rel=0.05)
    assert shared.memory.gradients >= 4 * HALF.parameters
    assert shared.flops.training * 4 == pytest.approx(alone.flops.training, rel=0.01)
    assert shared.flops.rollout * 4 == pytest.approx(alone.flops.rollout, rel=0.01)


def test_a_run_fits_with_room_or_tightly_or_not() -> None:
    assert fit(10 * GIB, (10.8 + 0.6) / 0.85 * GIB + 1) == "fits"
    assert fit(10 * GIB, (10.8 + 0.6) / 0.85 * GIB - 1e6) == "tight"
    assert fit(10 * GIB, 11.4 * GIB + 1) == "tight"
    assert fit(10 * GIB, 11.4 * GIB - 1e6) == "no"
    assert overhead_bytes(10 * GIB, on_cuda=True) == pytest.approx(1.4 * GIB)
    assert overhead_bytes(10 * GIB, on_cuda=False) == 0


def test_each_way_out_lowers_the_peak_and_none_is_named_that_does_not() -> None:
    config = of("loss.channel_backward=summed", "loss.top_k=0")
    before = peak(HALF, config)
    ways = mitigations(HALF, config)
    assert [way.change.field for way in ways] == [
        "model.gradient_checkpointing",
        "loss.channel_backward",
        "optimizer.micro_batches",
        "rollout.max_completion_tokens",
        "model.lora_rank",
        "model.dtype",
        "loss.alternate_channels",
    ]
    for way in ways:
        assert way.peak_bytes == peak(HALF, way.change.config) < before
    factor = {way.change.field: way.time_factor for way in ways}
    assert 1.1 < factor["model.gradient_checkpointing"] < 1.34
    assert factor["loss.channel_backward"] == factor["optimizer.micro_batches"] == 1
    assert factor["model.lora_rank"] < 1
    everything = ways[0].change.config
    while ways := mitigations(HALF, everything):
        everything = ways[0].change.config
    assert everything.loss.top_k == 0
    assert peak(HALF, everything) < before / 5


_LENGTHS = st.builds(
    Lengths,
    prompt=st.integers(1, 2000),
    completion=st.integers(1, 2000),
    teacher_prompt=st.integers(1, 4000),
    pair_prompt=st.integers(1, 2000),
    chosen=st.integers(1, 2000),
    rejected=st.integers(1, 2000),
    pairs=st.none() | st.integers(0, 20),
)
_SHAPES = st.builds(
    ModelShape,
    hidden=st.integers(1, 4096),
    layers=st.integers(1, 80),
    vocabulary=st.integers(2, 200_000),
    heads=st.integers(1, 64),
    kv_heads=st.integers(1, 8),
    head_dim=st.integers(1, 128),
    ffn=st.integers(1, 20_000),
    tied=st.booleans(),
    qkv_bias=st.booleans(),
    qk_norm=st.booleans(),
    max_tokens=st.sampled_from([0, 1, 2048]),
)
_CHOICES = st.lists(
    st.sampled_from(
        [
            "model.dtype=bfloat16",
            "model.lora_rank=16",
            "model.gradient_checkpointing=true",
            "model.device=cpu",
            "loss.channel_backward=summed",
            "loss.sdpo_weight=0",
            "loss.replay_weight=0",
            "loss.teacher=ema",
            "loss.teacher=frozen",
            "optimizer.micro_batches=8",
        ]
    ),
    unique=True,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(_SHAPES, _LENGTHS, _CHOICES, st.floats(0, 1))
def test_no_part_is_negative_and_more_tokens_never_take_less(
    shape: ModelShape, lengths: Lengths, chosen: list[str], failed_share: float
) -> None:
    config = of(*chosen)
    found = estimate(shape, config, lengths, failed_share)
    parts = msgspec.structs.astuple(found.memory)
    assert min(parts) >= 0
    assert min(msgspec.structs.astuple(found.flops)) >= 0
    assert found.peak_bytes >= found.memory.weights + found.memory.optimizer > 0
    assert found.need_bytes == sum(parts)
    longer = msgspec.structs.replace(lengths, prompt=lengths.prompt + 100)
    assert estimate(shape, config, longer, failed_share).peak_bytes >= found.peak_bytes
