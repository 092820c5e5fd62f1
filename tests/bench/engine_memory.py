"""The probe's peak against the resident memory of the same step on the CPU, for a small model.

Resident is what the process takes above what it took before the model was there: tensors, and
what BLAS and malloc hold beside them.
"""

import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from composer_engine.config import RunConfig, load
from composer_engine.memory import Lengths, works_of
from composer_engine.probe import probe
from composer_engine.probe_plans import plans
from composer_engine.step_plans import step_options
from tests.bench.harness import report

MODEL = {
    "model_type": "qwen2",
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1536,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
LENGTHS = Lengths(
    prompt=128, completion=256, teacher_prompt=192, pair_prompt=128, chosen=256, rejected=256
)
TINY = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 64}
SHORT = Lengths(prompt=2, completion=2, teacher_prompt=3, pair_prompt=2, chosen=2, rejected=2)
STEP = (
    "model.device=cpu",
    "rollout.prompts_per_step=1",
    "rollout.completions_per_prompt=4",
    "rollout.max_completion_tokens=256",
    "loss.replay_pairs=4",
)
KINDS = {
    "per_channel": (),
    "checkpointing": ("model.gradient_checkpointing=true",),
    "grpo alone": ("loss.sdpo_weight=0", "loss.replay_weight=0"),
}


def resident_mib(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))
    assert found
    return int(found[1]) / 1024


def measure(folder: str, settings: tuple[str, ...], answer: Any) -> None:
    """In a process of its own: two steps with AdamW, for real."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from composer_engine.step import backward

    torch.set_num_threads(1)
    config = settings_of(folder, settings)

    def steps(described: Any, lengths: Lengths) -> Iterator[None]:
        model = AutoModelForCausalLM.from_config(described)  # type: ignore[no-untyped-call]
        if config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        student, replay = plans(config, lengths, works_of(config, lengths)[0], model)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        while True:
            backward(model, student, replay, step_options(config))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield

    described = AutoConfig.from_pretrained(folder)
    tiny = AutoConfig.from_pretrained(folder, **TINY)
    next(steps(tiny, SHORT))  # what is imported on the way is no tensor
    before = resident_mib("VmRSS")
    running = steps(described, LENGTHS)
    next(running)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak counts from here
    next(running)
    answer.put(resident_mib("VmHWM") - before)


def settings_of(folder: str, settings: tuple[str, ...]) -> RunConfig:
    return load(settings=[f"model.path={folder}", *STEP, *settings])


def main() -> None:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system
    spawn = multiprocessing.get_context("spawn")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL), "utf-8")
        for name, settings in KINDS.items():
            answer: Any = spawn.Queue()
            child = spawn.Process(target=measure, args=(folder, settings, answer))
            child.start()
            resident = answer.get()
            child.join()
            predicted = probe(settings_of(folder, settings), LENGTHS).peak_bytes / 2**20
            rows[name] = {
                "predicted_mib": round(predicted),
                "resident_mib": round(resident),
                "error_percent": round(100 * (predicted / resident - 1)),
            }
    report(bench="engine_memory", kinds=rows)


if __name__ == "__main__":
    main()
