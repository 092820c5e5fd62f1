"""The training step beside the textbook's: time and peak memory, as one JSON object.

Without CUDA a small model with a real vocabulary is stepped on the CPU: forward and backward of
all three channels. With CUDA it is Qwen2.5-0.5B's shape with random weights in bfloat16, and the
step includes fused AdamW. Each measurement has a process of its own; the variants take turns, and
the medians are told. ``naive`` is tests/engine/naive.py: five forwards, all logits held.

    python -m tests.bench.engine_step [--rounds 5]
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM

from composer_engine.plan import Planner, Rollout, Scored, can_share_prompts
from composer_engine.step import StepOptions, backward
from tests.engine import naive

VOCABULARY = 151_936
TARGETS = {
    "cpu": {"memory_ratio": 5.0, "time_ratio": 2.5},
    "cuda": {
        "time_ratio": 1 / 0.5,
        "memory_ratio": 1 / 0.35,
        "memory_ratio_checkpointed": 1 / 0.18,
    },
}
_NO_STEP = (124, "out of memory")
_WARM_UP, _STEPS = 5, 10  # on CUDA, where a step is short
_CPU_SETTLE = 1


class Shape(NamedTuple):
    """A model and a step: B rollouts and B pairs of T tokens each, half of them scored."""

    model: dict[str, Any]
    sequences: int
    tokens: int
    dtype: torch.dtype


_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "tie_word_embeddings": True,
}
_QWEN25_05B = {
    "vocab_size": VOCABULARY,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
SHAPES = {
    "cpu": Shape(_SMALL, 2, 512, torch.float32),
    "2x1024": Shape(_QWEN25_05B, 2, 1024, torch.bfloat16),
    "8x2048": Shape(_QWEN25_05B, 8, 2048, torch.bfloat16),
}
VARIANTS = {
    "cpu": ("naive", "per_channel", "summed"),
    "2x1024": ("naive", "per_channel", "summed", "checkpointed", "compiled"),
    "8x2048": ("naive", "per_channel", "summed", "checkpointed", "compiled"),
}


def work_of(shape: Shape, seed: int = 0) -> naive.Work:
    """Random tokens. The pairs' sides share a prompt; half the rollouts, at least one, failed.

    A failed rollout is taught on all of its scored tokens; a hint fills half of its prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    count, width, half = shape.sequences, shape.tokens, shape.tokens // 2

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist())

    rollouts = [(ids(width), half) for _ in range(count)]
    teachers: list[naive.Text | None] = [None] * count
    for row in range(0, count, 2):
        tokens, start = rollouts[row]
        teachers[row] = ((*tokens[: half // 2], *ids(half - half // 2), *tokens[half:]), start)
    prompts = [ids(half) for _ in range(count)]
    return naive.Work(
        rollouts=rollouts,
        advantages=torch.linspace(1.0, -1.0, count).tolist(),
        old_logps=None,
        teachers=teachers,
        chosen=[((*prompt, *ids(half)), half) for prompt in prompts],
        rejected=[((*prompt, *ids(half)), half) for prompt in prompts],
        reference=[-11.0 * half] * (2 * count),
    )


def step_of(model: Any, work: naive.Work, variant: str, device: torch.device) -> Callable[[], None]:
    """One forward and backward of all channels; the gradients are added to the parameters'."""
    options = StepOptions(channel_backward="summed" if variant == "summed" else "per_channel")
    if variant == "naive":

        def textbook() -> None:
            with device:
                naive.step(model, work, options)

        return textbook
    rollouts = [
        Rollout(Scored(*text), advantage, Scored(*teacher) if teacher else None)
        for text, advantage, teacher in zip(
            work.rollouts, work.advantages, work.teachers, strict=True
        )
    ]
    tokens = sum(len(ids) - start for ids, start in work.rollouts)
    active = sum(len(text[0]) - text[1] for text in work.teachers if text)
    planner = Planner(0, device)
    chosen, rejected = ([Scored(*text) for text in side] for side in (work.chosen, work.rejected))

    def ours() -> None:
        # Planned anew each time, as in a run.
        student = planner.student(rollouts, tokens, active)
        replay = planner.replay(
            chosen,
            rejected,
            work.reference,
            len(chosen),
            share_prompts=can_share_prompts(model),
        )
        backward(model, student, replay, options)

    return ours


def model_of(shape: Shape, variant: str, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(**shape.model, use_cache=False)
    with device:
        torch.set_default_dtype(shape.dtype)
        model = Qwen2ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    if variant == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    if variant == "compiled":
        model.model.compile(dynamic=False)
    return model.train()


# ---------------------------------------------------------------- one measurement


def measure_cpu(shape: Shape, variant: str, what: str) -> dict[str, float]:
    """``memory``: the peak of the first step over the model and its gradients. Else seconds."""
    device = torch.device("cpu")
    model = model_of(shape, variant, device)
    step = step_of(model, work_of(shape), variant, device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    if what == "memory":
        before = _resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        step()
        return {"peak_bytes": _resident_bytes("VmHWM") - before}
    for _ in range(_CPU_SETTLE):
        step()
    began = time.perf_counter()
    step()
    return {"step_seconds": time.perf_counter() - began}


def measure_cuda(shape: Shape, variant: str) -> dict[str, float]:
    """The whole step with its optimizer. Seconds are a median over synchronised steps."""
    device = torch.device("cuda")
    model = model_of(shape, variant, device)
    step = step_of(model, work_of(shape), variant, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def whole() -> None:
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(_WARM_UP):
        whole()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        whole()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {
        "step_seconds": statistics.median(seconds),
        "peak_bytes": peak,
        "reserved_bytes": reserved,
        "kernel_launches": _launches(whole),
    }


def _launches(step: Callable[[], None]) -> int:
    """Kernels that one step launches, those of replayed CUDA graphs as one each."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(
        event.count
        for event in profiler.key_averages()
        if re.match(r"cu(da)?(LaunchKernel|GraphLaunch)", event.key)
    )


def _resident_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(found[1]) * 1024 if found else 0


# ---------------------------------------------------------------- all of them


def child(shape: str, variant: str, what: str) -> dict[str, float] | None:
    """One measurement in its own process; None where it ran out of memory."""
    environ = dict(os.environ)
    if what == "time":
        # As an accelerator's allocator does: freed pages are kept, not given back and faulted in.
        environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    command = [sys.executable, "-m", "tests.bench.engine_step", "--shape", shape]
    done = subprocess.run(
        [*command, "--variant", variant, "--measure", what],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == _NO_STEP[0]:
        return None
    if done.returncode:
        raise SystemExit(f"{shape} {variant}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def bench(shape: str, rounds: int) -> dict[str, Any]:
    """Every variant of one shape, in turns: medians, and their ratios to the naive ones."""
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS[shape]}
    measures: tuple[str, ...] = ("memory", "time") if shape == "cpu" else ("all",)
    for turn in range(rounds):
        for what in measures:
            if what == "memory" and turn:
                continue  # the same bytes each time
            for variant in found:
                one = child(shape, variant, what)
                found[variant] += [one] if one else []
    table: dict[str, dict[str, Any]] = {}
    for variant, numbers in found.items():
        if not numbers:
            table[variant] = {"result": _NO_STEP[1]}
            continue
        names = {name for one in numbers for name in one}
        table[variant] = {
            name: statistics.median(one[name] for one in numbers if name in one) for name in names
        }
    first = table["naive"]
    for row in table.values():
        for name, ratio in (("step_seconds", "time_ratio"), ("peak_bytes", "memory_ratio")):
            if name in row and name in first:
                row[ratio] = round(first[name] / row[name], 2)
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--variant")
    parser.add_argument("--measure", default="all")
    options = parser.parse_args()
    if options.variant:
        shape = SHAPES[options.shape]
        try:
            if options.shape == "cpu":
                numbers = measure_cpu(shape, options.variant, options.measure)
            else:
                numbers = measure_cuda(shape, options.variant)
        except torch.OutOfMemoryError:
            raise SystemExit(_NO_STEP[0]) from None
        print(json.dumps(numbers))
        return
    has_cuda = torch.cuda.is_available()
    shapes = [options.shape] if options.shape else (["2x1024", "8x2048"] if has_cuda else ["cpu"])
    report: dict[str, Any] = {
        "bench": "engine_step",
        "device": torch.cuda.get_device_name() if has_cuda else "no CUDA device",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rounds": options.rounds,
        "ratio": "naive / ours: how many times less time, or memory",
        "targets": TARGETS["cuda" if has_cuda else "cpu"],
        "shapes": {shape: bench(shape, options.rounds) for shape in shapes},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
