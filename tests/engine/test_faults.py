"""Real engines that are stopped, starved, killed or fed what they cannot use."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from composer_engine import builtin
from composer_engine.builtin.arithmetic import task_rows
from composer_engine.builtin.make_checkpoint import make_tokenizer
from composer_engine.protocol import (
    AlertRaised,
    CheckpointSaved,
    Event,
    Logged,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
    violations,
)
from tests.engine.conftest import SMOKE, Start
from tests.engine.engine_process import EngineProcess, read_events, wait_until

BUILTIN = Path(builtin.__file__).parent
LONG = "optimizer.steps=100000"
NO_SAVES = "checkpoint.every_steps=0"


def ending(engine: EngineProcess) -> RunFinished | RunFailed:
    """The last event of a lawful stream."""
    events = engine.events()
    assert violations(events) == []
    assert isinstance(events[-1], RunFinished | RunFailed)
    return events[-1]


def saved(events: list[Event]) -> list[CheckpointSaved]:
    return [event for event in events if isinstance(event, CheckpointSaved)]


def refused(engine: EngineProcess, *words: str) -> RunFailed:
    """It would not begin: status 2, one event that says why, and the same on stderr."""
    assert engine.wait() == 2
    last = ending(engine)
    assert isinstance(last, RunFailed)
    assert last.kind == "config"
    said = f"{last.message}\n{last.detail}\n{last.hint}"
    for word in words:
        assert word in said
    assert last.message in engine.stderr.read_text()
    assert "Traceback" not in engine.stderr.read_text()
    return last


# ---------------------------------------------------------------- asked to stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_finishes_the_step_saves_and_ends_well(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    engine = start(LONG, NO_SAVES)
    engine.wait_for_step(3)
    engine.signal(number)
    assert engine.wait() == 0
    last = ending(engine)
    assert isinstance(last, RunFinished)
    assert last.stopped_early
    assert last.reason == f"asked by {number.name}"
    (checkpoint,) = saved(engine.events())
    assert checkpoint.step == last.steps == engine.steps()[-1].step
    assert (tmp_path / "run" / checkpoint.path / "model.safetensors").is_file()


def test_a_stop_file_stops_the_run_from_anywhere_and_is_used_up(
    start: Start, tmp_path: Path
) -> None:
    engine = start(LONG, NO_SAVES)
    engine.wait_for_step(2)
    (tmp_path / "run" / "stop").touch()
    assert engine.wait() == 0
    last = ending(engine)
    assert isinstance(last, RunFinished)
    assert last.reason == "asked by the stop file"
    assert len(saved(engine.events())) == 1
    assert not (tmp_path / "run" / "stop").exists()


def test_a_second_signal_ends_a_long_step_at_once(start: Start, random_model: Path) -> None:
    # A random model seldom ends a text, so one step takes many times as long as this test.
    engine = start(
        LONG,
        f"model.path={random_model}",
        "rollout.max_completion_tokens=480",
        "rollout.prompts_per_step=64",
        "rollout.completions_per_prompt=16",
        "loss.replay_weight=0",
    )
    wait_until(lambda: any(isinstance(e, RunStarted) for e in engine.events()), "the start")
    wait_until(lambda: b'"training"' in engine.stdout.read_bytes(), "training")
    began = time.monotonic()
    while engine.process.is_alive():
        engine.signal(signal.SIGINT)
        time.sleep(0.02)
    assert time.monotonic() - began < 5
    assert engine.wait() == 1
    last = ending(engine)
    assert isinstance(last, RunFailed)
    assert last.kind == "killed"
    assert "asked a second time" in last.message
    assert engine.steps() == []


def test_a_signal_while_the_model_loads_ends_the_run_before_its_first_step(start: Start) -> None:
    engine = start(LONG)
    wait_until(lambda: b'"loading"' in engine.stdout.read_bytes(), "loading")
    engine.signal(signal.SIGTERM)
    assert engine.wait() == 0
    last = ending(engine)
    assert isinstance(last, RunFinished)
    assert last.stopped_early
    assert last.steps <= 2


def test_an_engine_whose_launcher_is_gone_saves_and_stops(start: Start, tmp_path: Path) -> None:
    pipe = tmp_path / "heartbeat"
    os.mkfifo(pipe)
    # Opened for reading and writing, so that neither side waits for the other.
    launcher = os.open(pipe, os.O_RDWR)
    engine = start(LONG, NO_SAVES, heartbeat=pipe)
    engine.wait_for_step(2)
    assert engine.process.is_alive()
    os.close(launcher)
    assert engine.wait() == 0
    last = ending(engine)
    assert isinstance(last, RunFinished)
    assert last.reason == "the program that launched the run is gone"
    assert len(saved(engine.events())) == 1


def test_an_engine_whose_parent_dies_stops_even_if_the_pipe_is_held_open(tmp_path: Path) -> None:
    launcher = f"""
import os, subprocess, sys
read, write = os.pipe()
os.set_inheritable(write, True)
holder = subprocess.Popen(["sleep", "60"], pass_fds=[write])
engine = subprocess.Popen(
    [sys.executable, "-m", "composer_engine", "--config", {str(SMOKE)!r},
     "--run-dir", {str(tmp_path / "run")!r}],
    env=os.environ | {{"COMPOSER_HEARTBEAT_FD": str(read)}}, pass_fds=[read],
    stdout=subprocess.DEVNULL, start_new_session=True)
print(holder.pid, flush=True)
sys.stdin.read(1)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", launcher],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    holder = int(parent.stdout.readline())
    events = tmp_path / "run" / "events.jsonl"
    try:
        wait_until(lambda: events.exists() and b'"loading"' in events.read_bytes(), "loading")
        parent.kill()
        parent.wait()
        wait_until(lambda: b'"run_finished"' in events.read_bytes(), "the end")
    finally:
        os.kill(holder, signal.SIGKILL)
        parent.stdin.close()
        parent.stdout.close()
    last = read_events(events)[-1]
    assert isinstance(last, RunFinished)
    assert last.reason == "the program that launched the run is gone"


# ---------------------------------------------------------------- torn, killed, crowded


def test_a_killed_engine_is_mourned_by_its_next_attempt(start: Start, tmp_path: Path) -> None:
    engine = start(LONG)
    engine.wait_for_step(2)
    engine.signal(signal.SIGKILL)
    assert engine.wait() == -signal.SIGKILL
    path = tmp_path / "run" / "events.jsonl"
    with path.open("ab") as file:
        file.write(b'{"event":"logg')  # what a kill in the middle of a write leaves
    again = start("optimizer.steps=2")
    assert again.wait() == 0
    lines = path.read_bytes().splitlines()
    events = read_events_but(path, b'{"event":"logg')
    assert violations(events) == []
    assert lines.count(b'{"event":"logg') == 1
    assert [e.attempt for e in events if isinstance(e, RunStarted)] == [1, 2]
    (mourned,) = [event for event in events if isinstance(event, RunFailed)]
    assert mourned.kind == "killed"


def read_events_but(path: Path, torn: bytes) -> list[Event]:
    whole = path.with_name("whole.jsonl")
    whole.write_bytes(
        b"".join(line for line in path.read_bytes().splitlines(True) if line.strip() != torn)
    )
    return read_events(whole)


def chatter() -> None:
    """Prints from inside training, in every way a library might."""
    from trl.trainer import grpo_trainer

    library: Any = grpo_trainer
    original = library.shuffle_sequence_dict

    def chatty(batch: object) -> object:
        print("a library says hello")
        os.write(1, b"straight to the descriptor\n")
        sys.__stdout__.write("through the original stdout\n")  # type: ignore[union-attr]  # it is open here
        subprocess.run(["echo", "from a child"], check=True)
        return original(batch)

    library.shuffle_sequence_dict = chatty


def test_stray_prints_never_reach_the_events(start: Start, tmp_path: Path) -> None:
    engine = start("optimizer.steps=3", before=chatter)
    assert engine.wait() == 0
    ending(engine)
    assert engine.stdout.read_bytes() == (tmp_path / "run" / "events.jsonl").read_bytes()
    log = engine.stderr.read_text()
    for said in ("a library", "straight to", "through the original", "from a child"):
        assert log.count(said) == 3


def test_a_reader_that_goes_away_does_not_end_a_run_that_has_a_folder(tmp_path: Path) -> None:
    # The pipe's read end is closed before the engine says its first word.
    command = [sys.executable, "-m", "composer_engine", "--config", str(SMOKE)]
    command += ["--run-dir", str(tmp_path / "run"), "--set", "model.path=nowhere"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 2
    assert b"Broken pipe" in done.stderr
    (*_, last) = read_events(tmp_path / "run" / "events.jsonl")
    assert isinstance(last, RunFailed)


def starved() -> None:
    """The third step asks for more memory than any machine has."""
    from composer_engine import trainer

    honest: Any = trainer.ComposerTrainer._compute_loss

    def greedy(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        if self.state.global_step == 2:
            torch.empty(1 << 52)
        loss: torch.Tensor = honest(self, model, inputs)
        return loss

    trainer.ComposerTrainer._compute_loss = greedy  # type: ignore[method-assign]  # inside a real engine


def test_a_run_that_is_out_of_memory_names_the_next_thing_to_turn_on(start: Start) -> None:
    engine = start("model.gradient_checkpointing=true", before=starved)
    assert engine.wait() == 1
    last = ending(engine)
    assert isinstance(last, RunFailed)
    assert last.kind == "oom"
    assert last.message.startswith("out of memory: ")
    assert last.hint.startswith("set optimizer.micro_batches = 2, predicted peak ")
    assert "torch.empty(1 << 52)" in last.detail
    assert [step.step for step in engine.steps()] == [1, 2]


# ---------------------------------------------------------------- not finite


def poisoned(folder: Path, character: str) -> Path:
    """The builtin model with its head untied, and a NaN in the embedding of one character."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUILTIN / name).read_bytes())
    settings = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    weights = load_file(BUILTIN / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.clone()
    embedding[make_tokenizer().convert_tokens_to_ids(character), 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_channel_that_is_not_finite_ends_the_run_by_name_and_moves_no_weight(
    start: Start, tmp_path: Path
) -> None:
    # The model never says Z and no prompt has one: only the replay channel ever reads the NaN.
    model = poisoned(tmp_path / "poisoned", "Z")
    data = tmp_path / "rows.jsonl"
    rows = [row | {"chosen": row["answer"], "rejected": "Zed"} for row in task_rows()]
    data.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    engine = start(
        f"model.path={model}",
        f"data.path={data}",
        "optimizer.learning_rate=0.1",
        "optimizer.weight_decay=0.1",
        "safety.non_finite_patience=4",
    )
    assert engine.wait() == 1
    last = ending(engine)
    assert isinstance(last, RunFailed)
    assert last.kind == "non_finite"
    assert "replay" in last.message
    steps = engine.steps()
    assert len(steps) == 4
    for step in steps:
        assert step.loss is None
        assert step.grad_norm is None
        assert step.channels.replay is None
        assert step.channels.grpo is not None
        assert step.channels.sdpo is not None
    alerts = [event for event in engine.events() if isinstance(event, AlertRaised)]
    assert "embed_tokens" in alerts[0].message
    assert [alert.rule for alert in alerts] == ["non_finite"] * 5
    assert all(alert.message.startswith("replay is not finite") for alert in alerts[1:])
    (checkpoint,) = saved(engine.events())
    before = load_file(model / "model.safetensors")
    after = load_file(tmp_path / "run" / checkpoint.path / "model.safetensors")
    for name, weight in before.items():
        assert torch.equal(weight.nan_to_num(123.0), after[name].nan_to_num(123.0)), name


def test_a_model_that_cannot_be_sampled_is_named_as_such(start: Start, tmp_path: Path) -> None:
    engine = start(f"model.path={poisoned(tmp_path / 'poisoned', '+')}", "loss.replay_weight=0")
    assert engine.wait() == 1
    last = ending(engine)
    assert isinstance(last, RunFailed)
    assert last.kind == "non_finite"
    assert "cannot be sampled" in last.message


# ---------------------------------------------------------------- a folder and a file of one's own


def test_a_model_folder_and_a_jsonl_file_train_with_all_channels(
    start: Start, random_model: Path, task_file: Path
) -> None:
    engine = start(
        f"model.path={random_model}",
        f"data.path={task_file}",
        "model.lora_rank=4",
        "optimizer.steps=12",
        "optimizer.micro_batches=4",
        "optimizer.learning_rate=1e-3",
        "optimizer.schedule=cosine",
        "optimizer.warmup_steps=2",
        "rollout.max_completion_tokens=12",
        "loss.replay_pairs=5",
        "report.samples_every_steps=0",
        "checkpoint.every_steps=0",
    )
    assert engine.wait() == 0, engine.stderr.read_text()
    assert isinstance(ending(engine), RunFinished)
    steps = engine.steps()
    assert [step.step for step in steps] == [*range(1, 13)]
    assert all(step.channels.replay is not None for step in steps)
    assert any(step.channels.sdpo is not None for step in steps)
    assert any(step.channels.grpo is not None for step in steps)
    rates = [step.learning_rate for step in steps if step.learning_rate is not None]
    assert rates[0] < rates[1]
    assert rates[-1] < 1e-3
    assert [event.step for event in saved(engine.events())] == [12]


def test_a_run_without_any_signal_says_so(start: Start, tmp_path: Path) -> None:
    # Every completion is right, so no group has an advantage and no rollout has failed.
    rows = [f'{{"prompt":"{n}","reward":{{"kind":"regex","pattern":"^"}}}}' for n in range(4)]
    data = tmp_path / "easy.jsonl"
    data.write_text("\n".join(rows), "utf-8")
    engine = start(f"data.path={data}", "optimizer.steps=2")
    assert engine.wait() == 0
    assert all(step.loss is None and step.reward_mean == 1.0 for step in engine.steps())
    alerts = [event for event in engine.events() if isinstance(event, AlertRaised)]
    assert [(alert.rule, alert.step) for alert in alerts] == [("no_signal", 1), ("no_signal", 2)]
    assert len(engine.steps()) == 2


def test_without_a_run_folder_nothing_is_left_behind(start: Start, tmp_path: Path) -> None:
    before = {*Path("/tmp").glob("composer-*")}  # noqa: S108  (only looked at)
    engine = start("optimizer.steps=1", run_dir=None)
    assert engine.wait() == 0
    events = engine.events()
    assert violations(events) == []
    started = next(event for event in events if isinstance(event, RunStarted))
    assert started.run_id == "smoke"
    assert {*Path("/tmp").glob("composer-*")} <= before  # noqa: S108
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- refused before it begins


def given_an_opening() -> None:
    os.environ["COMPOSER_OPENING"] = "attempt 2 of 2"


def test_a_bad_configuration_is_refused_by_field(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text('[optimizer]\nsteps = "many"\nlearning_rat = 1\n', "utf-8")
    engine = start(config=config, before=given_an_opening)
    last = refused(engine, "optimizer.steps", "optimizer.learning_rat")
    assert "bad.toml:2" in last.message
    first = engine.events()[0]
    assert isinstance(first, Logged)
    assert first.message == "attempt 2 of 2"


def test_bad_rows_are_all_named_before_any_model_is_loaded(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt":"x"}\n{"prompt":3,"answer":"y"}\n\nnot json\n', "utf-8")
    engine = start(f"data.path={data}")
    refused(engine, "rows.jsonl:1: answer", "rows.jsonl:2: prompt", "rows.jsonl:4: not JSON")
    assert not any(isinstance(event, RunStarted | StepCompleted) for event in engine.events())


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("model.path=/nowhere/at/all", "is not a folder"),
        ("data.path=/nowhere/at/all.jsonl", "No such file"),
        ("rollout.prompts_per_step=101", "the data has 100"),
        ("model.path=.", "holds no config.json"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(start: Start, setting: str, word: str) -> None:
    refused(start(setting), word)


def test_a_prompt_longer_than_the_model_reads_is_refused_by_line(
    start: Start, tmp_path: Path
) -> None:
    data = tmp_path / "long.jsonl"
    rows = [f'{{"prompt":"{"1" * (600 if n == 2 else 5)}","answer":"y"}}' for n in range(4)]
    data.write_text("\n".join(rows), "utf-8")
    refused(start(f"data.path={data}"), "long.jsonl:3: prompt: 600 tokens")


def test_a_torn_checkpoint_is_refused_in_one_line(start: Start, tmp_path: Path) -> None:
    torn = tmp_path / "run/checkpoints/step-9"
    torn.mkdir(parents=True)
    refused(start(resume="checkpoints/step-9"), "--resume checkpoints/step-9", "complete.json")


def test_a_run_folder_that_cannot_be_written_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(start(run_dir=tmp_path / "file" / "run"), "cannot write the run folder")


def test_a_machine_without_trl_is_told_the_one_command(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['trl'] = None; from composer_engine.__main__ import main; "
        f"sys.exit(main(['--config', {str(SMOKE)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b'trl cannot be found; the engine needs: pip install "composer-tui[engine]"' in (
        done.stderr
    )
    events = tmp_path / "stdout"
    events.write_bytes(done.stdout)
    assert violations(read_events(events)) == []
