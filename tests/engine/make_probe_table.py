"""``python -m tests.engine.make_probe_table [WORD ...]``: what the probe counts, kept.

The closed form is compared with it. Takes minutes; with words, only the rows that are named by
all of them are counted. To be made anew whenever the step's memory or work changes on purpose:
tests/engine/test_probe.py counts two of its rows again, to see that it is not stale.
"""

import json
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from composer_engine.config import RunConfig, load
from composer_engine.memory import Lengths
from composer_engine.probe import Probe, probe

TABLE = Path(__file__).with_name("probe_table.json")


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    }


MODELS: dict[str, dict[str, Any]] = {
    "small": _qwen2(256, 4, 4, 2, 768) | {"vocab_size": 8192},
    "Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 4864),
    "Qwen2.5-1.5B": _qwen2(1536, 28, 12, 2, 8960),
    "Qwen2.5-3B": _qwen2(2048, 36, 16, 2, 11008),
    "Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 18944)
    | {"vocab_size": 152064, "tie_word_embeddings": False},
    "Qwen3-0.6B": _qwen2(1024, 28, 16, 8, 3072)
    | {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960},
    "Llama-3.2-1B": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
    },
}


class Row(NamedTuple):
    """One run: a model's name, settings over the defaults, and the tokens of its texts."""

    model: str
    settings: tuple[str, ...]
    lengths: Lengths

    @property
    def name(self) -> str:
        tokens = f"P={self.lengths.prompt} C={self.lengths.completion}"
        return " ".join((self.model, *self.settings, tokens))

    def config(self, folder: str = "somewhere") -> RunConfig:
        return load(settings=[f"model.path={folder}", *self.settings])


def _row(
    model: str, settings: str, completions: int = 2, prompt: int = 512, completion: int = 512
) -> Row:
    lengths = Lengths(
        prompt=prompt,
        completion=completion,
        teacher_prompt=prompt + 64,
        pair_prompt=prompt,
        chosen=completion,
        rejected=completion,
    )
    step = ("rollout.prompts_per_step=1", f"rollout.completions_per_prompt={completions}")
    tokens = (f"rollout.max_completion_tokens={completion}", f"loss.replay_pairs={completions}")
    return Row(model, (*step, *tokens, *settings.split()), lengths)


_BF16 = "model.dtype=bfloat16"
_LORA = "model.lora_rank=16"
_SAVING = "model.gradient_checkpointing=true"
_SUMMED = "loss.channel_backward=summed"
_NO_SDPO = "loss.sdpo_weight=0"
_NO_REPLAY = "loss.replay_weight=0"
_APART = "loss.share_prompts=false"

ROWS = (
    _row("small", f"{_BF16} {_SUMMED}", 4, 64, 128),
    _row("small", f"{_SAVING} loss.teacher=ema optimizer.micro_batches=2", 4, 64, 128),
    _row("Qwen2.5-0.5B", _BF16),
    _row("Qwen2.5-0.5B", ""),
    _row("Qwen2.5-0.5B", f"{_BF16} {_SAVING}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_SUMMED}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_SUMMED} {_SAVING}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_NO_REPLAY}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_NO_SDPO}"),
    _row("Qwen2.5-0.5B", f"{_NO_SDPO} {_NO_REPLAY}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_APART}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_APART} {_SAVING}"),
    _row("Qwen2.5-0.5B", f"{_BF16} loss.top_k=100 loss.top_k_tail=true"),
    _row("Qwen2.5-0.5B", f"{_BF16} loss.teacher=frozen"),
    _row("Qwen2.5-0.5B", f"{_BF16} loss.teacher=ema"),
    _row("Qwen2.5-0.5B", f"{_BF16} loss.alternate_channels=true"),
    _row("Qwen2.5-0.5B", f"{_BF16} optimizer.micro_batches=4", 8, 256, 256),
    _row("Qwen2.5-0.5B", f"{_BF16} rollout.updates_per_rollout=2", 2, 100, 32),
    _row("Qwen2.5-0.5B", _BF16, 8, 256, 256),
    _row("Qwen2.5-0.5B", "model.device=cpu", 4, 32, 64),
    _row("Qwen2.5-0.5B", f"{_BF16} {_LORA}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_LORA} {_SAVING}", 4, 512, 1024),
    _row("Qwen2.5-0.5B", f"{_LORA}"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_LORA} model.lora_dora=true"),
    _row("Qwen2.5-0.5B", f"{_BF16} {_LORA} optimizer.micro_batches=64", 64, 256, 2048),
    _row("Qwen3-0.6B", _BF16),
    _row("Llama-3.2-1B", f"{_BF16} {_NO_SDPO}", 4, 256, 512),
    _row("Qwen2.5-1.5B", _BF16),
    _row("Qwen2.5-1.5B", _SAVING),
    _row("Qwen2.5-1.5B", f"{_BF16} {_SAVING}", 4, 1024, 1024),
    _row("Qwen2.5-3B", f"{_BF16} {_SAVING}", 4, 512, 1024),
    _row("Qwen2.5-3B", f"model.dtype=float16 {_LORA}"),
    _row("Qwen2.5-7B", f"{_BF16} {_SAVING}", 2, 512, 1024),
    _row("Qwen2.5-7B", f"{_BF16} {_LORA} {_SAVING}", 4, 1024, 1024),
    _row("Qwen2.5-7B", f"{_BF16} {_NO_REPLAY} loss.teacher=frozen"),
)


def counted(row: Row) -> Probe:
    """The probe of a row, by its model's settings alone."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[row.model]), "utf-8")
        return probe(row.config(folder), row.lengths)


def recorded(found: Probe) -> dict[str, Any]:
    """What the table keeps of a probe."""
    return {
        "phase": found.phase,
        "parameters": found.parameters,
        "trained_parameters": found.trained_parameters,
        "memory": msgspec.to_builtins(found.memory),
        "training_bytes": found.training_bytes,
        "generation_bytes": found.generation_bytes,
        "flops": msgspec.to_builtins(found.flops),
    }


def table() -> dict[str, dict[str, Any]]:
    """As it was recorded, by the rows' names."""
    kept: dict[str, dict[str, Any]] = json.loads(TABLE.read_bytes())
    return kept


def main(words: Collection[str]) -> None:
    """Counts the rows that are named by all of the words, and keeps the others as they were."""
    kept = table() if words else {}
    for row in ROWS:
        if not all(word in row.name for word in words):
            continue
        found = counted(row)
        kept[row.name] = recorded(found)
        line = f"{found.peak_bytes / 2**30:7.2f} GiB {found.seconds:5.1f} s  {row.name}\n"
        sys.stderr.write(line)
    kept = {row.name: kept[row.name] for row in ROWS if row.name in kept}
    TABLE.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
