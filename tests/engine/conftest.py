"""What the engine's tests share, because it is slow to make: models, and runs that have ended."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from composer_engine.config import preset_names
from composer_engine.protocol import Event, StepCompleted
from tests.engine.engine_process import EngineProcess, read_events

PRESETS = Path(__file__).parents[2] / "engine" / "composer_engine" / "presets"
SMOKE = PRESETS / "smoke.toml"


class Finished(NamedTuple):
    """A run that has ended, and everything it left."""

    status: int
    events: list[Event]
    folder: Path
    stdout: bytes
    stderr: str

    @property
    def steps(self) -> list[StepCompleted]:
        return [event for event in self.events if isinstance(event, StepCompleted)]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The smoke preset, whole, as a person starts it, on a seed that nothing was tuned on."""
    assert "smoke" in preset_names()
    folder = tmp_path_factory.mktemp("smoke") / "run"
    command = [sys.executable, "-m", "composer_engine", "--config", str(SMOKE)]
    command += ["--set", "optimizer.seed=20261", "--run-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    events = read_events(folder / "events.jsonl")
    return Finished(done.returncode, events, folder, done.stdout, done.stderr.decode())


Start = Callable[..., EngineProcess]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts an engine on the smoke preset with settings, in ``tmp_path / "run"``.

    ``config=None`` leaves ``--config`` out; ``run_dir=None`` leaves ``--run-dir`` out.
    """

    def starting(
        *settings: str,
        config: Path | None = SMOKE,
        run_dir: Path | None = tmp_path / "run",
        heartbeat: Path | None = None,
        before: Callable[[], None] | None = None,
        resume: str = "none",
    ) -> EngineProcess:
        arguments = ["--config", str(config)] if config else []
        arguments += ["--resume", resume]
        arguments += ["--run-dir", str(run_dir)] if run_dir else []
        for setting in settings:
            arguments += ["--set", setting]
        return EngineProcess(tmp_path, *arguments, heartbeat=heartbeat, before=before)

    return starting


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 20,000-parameter Qwen2, heads untied, and a character tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from composer_engine.builtin.make_checkpoint import make_tokenizer

    folder = tmp_path_factory.mktemp("models") / "random"
    tokenizer = make_tokenizer()
    import torch

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64,
            tie_word_embeddings=False,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every kind that a random model can sometimes please: say an 'a', say a digit."""
    file = tmp_path_factory.mktemp("data") / "tasks.jsonl"
    rows: list[dict[str, object]] = []
    for n in range(6):
        rows.append({"prompt": f"say {n}: ", "answer": "a", "reward": {"kind": "contains"}})
        rows.append(
            {
                "prompt": f"digit {n}: ",
                "reward": {"kind": "regex", "pattern": "[0-9]"},
                "hint": "a digit",
                "chosen": str(n),
                "rejected": "Zed",
            }
        )
    rows.append({"prompt": "replay only", "chosen": "yes", "rejected": "no, Zed"})
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return file
