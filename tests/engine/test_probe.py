"""What a step takes, counted on fake tensors: the ledger, and the probe from end to end."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from composer_engine.config import load
from composer_engine.ledger import Ledger
from composer_engine.memory import estimate, shape_of, works_of
from composer_engine.prediction import by_characters, measured_lengths, predicted_peak
from composer_engine.probe import main, probe
from tests.engine.make_probe_table import MODELS, ROWS, Row, counted, recorded, table

SMALL = [row for row in ROWS if row.model == "small"]
PARAMETERS = table()[SMALL[0].name]["parameters"]
KIB = 1024


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with the small model's settings, and nothing else."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODELS["small"]), "utf-8")
    return folder


# ---------------------------------------------------------------- the ledger


def test_the_peak_is_the_moment_when_most_is_held_by_what_it_was_for() -> None:
    ledger = Ledger("scratch", "forward")
    with FakeTensorMode(), ledger:
        kept = torch.empty(KIB, dtype=torch.float32)  # 4 KiB
        with ledger.booking(category="logits"):
            large = torch.empty(4 * KIB) + 1  # 16 KiB, and as much that ends at once
            view = large.view(2, -1)
        del large, view
        after = kept * 2
        assert ledger.held() == {"scratch": 8 * KIB}
    ledger.own([kept], "weights")
    assert after.shape == (KIB,)
    assert {k: v for k, v in ledger.peak().items() if v} == {
        "weights": 4 * KIB,
        "logits": 32 * KIB,
    }


def test_a_tensor_takes_whole_blocks_and_a_view_takes_nothing() -> None:
    ledger = Ledger("scratch", "forward")
    with FakeTensorMode(), ledger:
        one = torch.empty(129)  # 516 bytes
        assert one[3:].add_(1).shape == (126,)
        assert ledger.peak().total() == KIB


def test_work_is_booked_by_channel_with_attention_and_what_is_added_in_place() -> None:
    ledger = Ledger("scratch", "forward")
    with FakeTensorMode(), ledger:
        query = torch.empty(1, 2, 8, 4, requires_grad=True)
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        forward = 2 * 2 * (2 * 8 * 8 * 4)
        assert ledger.flops == {"forward": forward}
        with ledger.booking(channel="backward"):
            attended.sum().backward()
            torch.empty(2, 3).addmm_(torch.empty(2, 5), torch.empty(5, 3))
    assert ledger.flops == {"forward": forward, "backward": 5 * forward // 2 + 2 * 2 * 5 * 3}


# ---------------------------------------------------------------- the probe


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_the_table_of_the_closed_form_is_what_the_probe_counts_now(row: Row) -> None:
    assert len(SMALL) == 2
    now, then = recorded(counted(row)), table()[row.name]
    assert now["memory"] == pytest.approx(then["memory"], rel=0.02, abs=KIB * KIB / 4)
    for part in ("flops", "parameters", "trained_parameters", "phase"):
        assert now[part] == then[part]


def test_a_step_counted_on_fake_tensors_is_the_step_on_real_ones(small: Path) -> None:
    """The same ledger over a real model's step: not a byte and not an operation differs."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from composer_engine.probe_plans import plans
    from composer_engine.step import backward
    from composer_engine.step_plans import step_options

    row = SMALL[0]
    config = Row(row.model, (*row.settings, "model.device=cpu"), row.lengths).config(str(small))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small)).bfloat16().train()
    student, replay = plans(config, row.lengths, works_of(config, row.lengths)[0], model)
    ledger = Ledger("any", "any")
    ledger.own(model.parameters(), "weights")
    ledger.begin()
    with ledger:
        backward(model, student, replay, step_options(config))
    real, fake = ledger.peak(), probe(config, row.lengths)
    moments = 2 * fake.memory.weights  # which the probe's optimizer has
    assert real.total() == pytest.approx(fake.peak_bytes - moments, rel=0.01)
    assert real["weights"] == pytest.approx(fake.memory.weights, rel=0.01)
    assert ledger.flops.total() == fake.flops.training


def test_the_probe_of_a_large_model_takes_seconds_and_next_to_no_memory(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODELS["Qwen2.5-0.5B"]), "utf-8")
    config = tmp_path / "run.toml"
    config.write_text(f'[model]\npath = "{folder}"\ndtype = "bfloat16"\n', "utf-8")
    command = [sys.executable, "-m", "composer_engine.probe", "--config", str(config)]
    command += ["--set", "rollout.completions_per_prompt=2"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 20  # of a core, of which it takes 4
    found = json.loads(done.stdout)
    memory = found["memory"]
    assert found["parameters"] == found["trained_parameters"] == 494_032_768
    assert memory["weights"] == pytest.approx(2 * found["parameters"], rel=1e-3)
    assert memory["optimizer"] == pytest.approx(4 * found["parameters"], rel=1e-3)
    assert found["peak_bytes"] == sum(memory.values()) - memory["overhead"]
    assert found["need_bytes"] == sum(memory.values())
    assert memory["overhead"] > 0.6 * 2**30
    assert found["lengths"]["completion"] == 256
    assert set(found["flops"]) == {"grpo", "sdpo", "replay", "rollout"}
    assert after.ru_maxrss * 1024 < found["peak_bytes"] / 4
    assert done.stderr == b""


def test_a_step_that_alternates_holds_the_larger_kind_and_works_the_mean(small: Path) -> None:
    row = SMALL[0]
    both, without_replay, without_sdpo, alternating = (
        probe(
            Row(row.model, (*row.settings, *settings), row.lengths).config(str(small)), row.lengths
        )
        for settings in (
            (),
            ("loss.replay_weight=0",),
            ("loss.sdpo_weight=0",),
            ("loss.alternate_channels=true",),
        )
    )
    assert alternating.peak_bytes == max(without_replay.peak_bytes, without_sdpo.peak_bytes)
    assert alternating.peak_bytes < both.peak_bytes
    assert alternating.flops.grpo == both.flops.grpo
    assert alternating.flops.sdpo == both.flops.sdpo // 2
    assert alternating.flops.replay == both.flops.replay // 2


def test_only_an_adapter_has_gradients_and_a_vllm_rollout_is_not_guessed(small: Path) -> None:
    row = SMALL[0]
    adapter = Row(row.model, (*row.settings, "model.lora_rank=4"), row.lengths)
    found = probe(adapter.config(str(small)), row.lengths)
    assert found.trained_parameters == found.parameters - PARAMETERS
    assert found.optimizer_bytes == 7 * 4 * found.trained_parameters
    assert found.memory.optimizer < found.memory.weights
    vllm = Row(row.model, (*row.settings, "rollout.backend=vllm"), row.lengths)
    found = probe(vllm.config(str(small)), row.lengths)
    assert found.generation_bytes < found.training_bytes
    assert any("vLLM" in assumption for assumption in found.assumptions)


def test_processes_that_share_a_step_hold_buckets_and_a_part_of_the_rest(small: Path) -> None:
    row = SMALL[0]
    config = row.config(str(small))
    alone, shared = (probe(config, row.lengths, processes=n) for n in (1, 2))
    assert shared.flops.training == pytest.approx(alone.flops.training / 2, rel=0.01)
    assert shared.memory.activations == pytest.approx(alone.memory.activations / 2, rel=0.05)
    assert shared.memory.gradients == alone.memory.gradients + 2 * alone.parameters
    closed = estimate(shape_of(MODELS["small"]), config, row.lengths, processes=2)
    assert closed.peak_bytes == pytest.approx(shared.peak_bytes, rel=0.05)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.path=/nowhere", "/nowhere holds no config.json"),
        ("model.path=nobody/nothing", "the Hub's cache on this machine holds no config.json"),
        ("model.dtype=int8", "model.dtype"),
        ("model.lora_rank=many", "model.lora_rank"),
        ("data.path=/nope", "data.path: cannot read /nope"),
        ("rollout.prompts_per_step=1000000", "1000000 prompts a step, but the data has"),
        ("rollout.max_completion_tokens=1000000", "more than the 512 that the model can read"),
        ("loss.top_k=200", "loss.top_k: 200 is more than the model's 99 tokens"),
    ],
)
def test_what_cannot_be_counted_is_said_and_is_status_2(
    setting: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text("", "utf-8")
    assert main(["--config", str(config), "--set", setting]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "unheard-of"},
        {"model_type": "qwen2", "hidden_size": -4},
        ["no", "table"],
    ],
)
def test_settings_that_make_no_model_are_said(
    settings: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings), "utf-8")
    config = tmp_path / "run.toml"
    config.write_text(f'[model]\npath = "{tmp_path}"\n', "utf-8")
    assert main(["--config", str(config)]) == 2
    assert "model.path" in capfd.readouterr().err


# ---------------------------------------------------------------- lengths


def test_lengths_are_those_of_the_longest_rows_under_their_new_names(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"question": "a" * 30, "answer": "4"},
        {"question": "a" * 3, "hint": "b" * 60, "answer": "5"},
        {"question": "a" * 90, "chosen": "c" * 12, "rejected": "d" * 6},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(map(msgspec.json.encode, rows)))
    settings = [f"data.path={file}", "data.rename=question:prompt", "hints.sources=feedback"]
    settings.append("hints.feedback_template={prompt}{hint}")
    lengths = measured_lengths(load(settings=settings), by_characters)
    assert lengths is not None
    assert (lengths.prompt, lengths.completion, lengths.teacher_prompt) == (10, 256, 10 + 5 + 20)
    assert (lengths.pair_prompt, lengths.chosen, lengths.rejected) == (30, 5, 3)
    assert lengths.pairs == 1


@pytest.mark.parametrize("path", ["/nowhere.jsonl", "owner/name", "table.parquet"])
def test_data_that_is_not_looked_at_has_no_lengths(path: str) -> None:
    assert measured_lengths(load(settings=[f"data.path={path}"]), by_characters) is None


def test_a_peak_is_predicted_for_models_of_a_known_kind_only(tmp_path: Path, small: Path) -> None:
    peak = predicted_peak(load(settings=[f"model.path={small}"]))
    assert peak is not None
    assert peak > 16 * PARAMETERS
    assert predicted_peak(load(settings=["model.path=builtin"])) is not None
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', "utf-8")
    assert predicted_peak(load(settings=[f"model.path={tmp_path}"])) is None
    assert predicted_peak(load(settings=["model.path=/nowhere"])) is None
