"""Several processes that train one model: the same steps as one process takes, and one voice."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from composer_engine.checkpoint import CheckpointPart, Checkpoints
from composer_engine.child import engine_command
from composer_engine.config import load
from composer_engine.data import load_data
from composer_engine.emitter import Emitter
from composer_engine.failures import SetupError
from composer_engine.model import load_model
from composer_engine.protocol import (
    CHANNELS,
    CheckpointSaved,
    Device,
    RunFinished,
    RunStarted,
    StepCompleted,
    violations,
)
from composer_engine.run import train
from composer_engine.safety import StopRequest
from composer_engine.trainer import ComposerTrainer
from composer_engine.world import World, check_split, this_world
from tests.engine.conftest import SMOKE
from tests.engine.engine_process import read_events, wait_until

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.engine.warm"])
STEPS = 4
COMPARED = frozenset(
    {"sdpo_active_tokens", "replay_margin", "num_tokens", "frac_reward_zero_std", "entropy"}
    | {f"{kind}_{name}" for kind in ("grad_share", "grad_norm") for name in CHANNELS}
)


class Scripted(ComposerTrainer):
    """Rolls out what a script says, which knows the place of a completion in the whole step.

    Sampling cannot be the same in one process and in two: each has its own random numbers. What
    is learnt from the same rollouts can.
    """

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        first = self.world.rank * len(prompt_ids)
        texts = [
            self.say(self._tokenizer.decode(ids), first + place)
            for place, ids in enumerate(prompt_ids)
        ]
        return [
            [*self._tokenizer.encode(text), self._tokenizer.eos_token_id] for text in texts
        ], None

    def say(self, prompt: str, place: int) -> str:
        """Right for some places, wrong in several lengths for others; another one each step."""
        turn = place + self.state.global_step
        left, _, right = prompt.rstrip("=").partition("+")
        known = left.isdecimal() and right.isdecimal()
        if turn % 3 == 0 and known:
            return str(int(left) + int(right))
        return "1" * (1 + turn % 4)


def train_part(rank: int, size: int, port: int, folder: str, settings: tuple[str, ...]) -> None:
    """In a process of its own: one part of the training; leaves what it came to."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    world, root = this_world(), Path(folder)
    assert world == World(rank, size, rank)
    base = (f"optimizer.steps={STEPS}", "optimizer.learning_rate=1e-3", "checkpoint.every_steps=0")
    config = load("smoke", settings=(*base, "loss.replay_pairs=5", *settings))
    loaded = load_model(config.model, config.optimizer.seed)
    emitter = Emitter(None, None if rank else root)
    checkpoints: Any = CheckpointPart(root) if rank else Checkpoints(root, 1, emitter)
    emitter.emit(start())
    data = load_data(config.data.path)
    stop = StopRequest(emitter, None)
    train(config, data, loaded, checkpoints, emitter, stop, world, Scripted)
    torch.save(loaded.causal_lm.state_dict(), root / f"weights-{rank}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


def start() -> RunStarted:
    return RunStarted(
        run_id="r",
        total_steps=STEPS,
        model="m",
        parameters=1,
        device=Device(kind="cpu", name="c", count=1, total_bytes=1),
        engine_version="0",
        config_hash="0",
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def train_together(folder: Path, size: int, *settings: str) -> list[StepCompleted]:
    """The steps that so many processes took."""
    folder.mkdir()
    port = free_port()
    parts = [
        _context.Process(target=train_part, args=(rank, size, port, str(folder), settings))
        for rank in range(size)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join(60)
    assert [part.exitcode for part in parts] == [0] * size
    events = read_events(folder / "events.jsonl")
    assert violations(events) == []
    return [event for event in events if isinstance(event, StepCompleted)]


def weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"weights-{rank}.pt")
    return found


# ---------------------------------------------------------------- what is learnt


@pytest.mark.parametrize(
    "settings",
    [
        ("loss.channel_backward=summed",),
        (
            "loss.channel_backward=per_channel",
            "optimizer.micro_batches=2",
            "hints.success_reward=2",
            "loss.sdpo_weight=1",
            "loss.teacher=ema",
            "loss.teacher_ema_rate=0.5",
            "rollout.updates_per_rollout=2",
            "report.channel_norms_every_steps=2",
        ),
    ],
    ids=["one batch, one backward", "micro batches, all taught by an average, each rollout twice"],
)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, settings: tuple[str, ...]) -> None:
    alone = train_together(tmp_path / "one", 1, *settings)
    together = train_together(tmp_path / "two", 2, *settings)
    assert len(alone) == len(together) == STEPS
    for one, two in zip(alone, together, strict=True):
        assert two.reward_mean == one.reward_mean
        assert two.reward_std == pytest.approx(one.reward_std)
        assert two.loss == pytest.approx(one.loss, rel=1e-4, abs=1e-6)
        assert two.channels.grpo == pytest.approx(one.channels.grpo, rel=1e-4, abs=1e-6)
        assert two.channels.sdpo == pytest.approx(one.channels.sdpo, rel=1e-4)
        assert two.channels.replay == pytest.approx(one.channels.replay, rel=1e-4)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
        assert two.metrics.keys() == one.metrics.keys()
        for name in {*one.metrics} & COMPARED:
            assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-3, abs=1e-5), name
        if one.step > 1:  # before, all margins are zero, and their signs are rounding
            assert two.metrics["replay_accuracy"] == one.metrics["replay_accuracy"]
    first, second = weights(tmp_path / "two", 0), weights(tmp_path / "two", 1)
    expected = weights(tmp_path / "one", 0)
    for name, parameter in expected.items():
        assert torch.equal(first[name], second[name])  # the two never part
        # AdamW divides by the gradient's own size, so what is rounding in it is not in a step.
        assert torch.allclose(first[name], parameter, atol=2e-4), name
    moved = load_model(load("smoke").model, 0).causal_lm.state_dict()
    assert any(not torch.allclose(moved[n], p, atol=1e-3) for n, p in expected.items())


# ---------------------------------------------------------------- one voice


def heard(lines: list[bytes], word: bytes) -> bool:
    return any(word in line for line in [*lines])


def test_torchrun_makes_one_engine_of_two_processes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = engine_command(SMOKE, run_dir, "pair", 2)
    command += ["--set", "optimizer.steps=100000", "--set", "checkpoint.every_steps=0"]
    with (tmp_path / "stderr").open("wb") as stderr:
        engine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
    said: list[bytes] = []

    def listen() -> None:
        assert engine.stdout is not None
        said.extend(engine.stdout)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        for word in (b"loading", b"run_started", b'"step":5,'):  # each may take its time
            wait_until(lambda: engine.poll() is not None or heard(said, word), word.decode())  # noqa: B023
        (run_dir / "stop").write_text("asked by a test\n")
        assert engine.wait(60) == 0, (tmp_path / "stderr").read_text()
    finally:
        engine.kill()
        listener.join()
    assert b"".join(said) == (run_dir / "events.jsonl").read_bytes()
    events = read_events(run_dir / "events.jsonl")
    assert violations(events) == []
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    assert started.device.count == 1  # both on the one CPU
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert (last.stopped_early, last.reason) == (True, "asked by a test")
    (saved,) = [event for event in events if isinstance(event, CheckpointSaved)]
    checkpoint = run_dir / saved.path
    parts = {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"}
    assert parts <= {path.name for path in checkpoint.iterdir()}
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    assert state["global_step"] == last.steps == saved.step


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it")
def test_a_worker_does_not_outlive_the_torchrun_that_started_it() -> None:
    worker = (
        "import os, time; from composer_engine.lifeline import die_with_parent; "
        "die_with_parent(); print(os.getpid(), flush=True); time.sleep(600)"
    )
    launcher = (
        "import subprocess, sys; "
        "subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    )
    command = [sys.executable, "-c", launcher, worker]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as torchrun:
        assert torchrun.stdout is not None
        pid = int(torchrun.stdout.readline())
        torchrun.kill()
    wait_until(lambda: not is_at_work(pid), "the worker's end")


def is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- what cannot be shared


@pytest.mark.parametrize(
    ("settings", "size", "word"),
    [
        (("rollout.prompts_per_step=3",), 2, "prompts_per_step"),
        (("rollout.prompts_per_step=4",), 8, "prompts_per_step"),
        (("optimizer.micro_batches=32",), 2, "micro_batches"),
    ],
)
def test_a_step_that_cannot_be_shared_evenly_is_refused(
    settings: tuple[str, ...], size: int, word: str
) -> None:
    config = load("smoke", settings=settings)
    check_split(config, 1)
    with pytest.raises(SetupError, match=word):
        check_split(config, size)


def test_torchruns_variables_say_who_we_are() -> None:
    assert this_world({}) == World(0, 1, 0)
    assert this_world({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}) == World(0, 1, 0)
    assert this_world({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}) == World(3, 4, 1)


def test_a_part_that_cannot_be_written_is_the_owners_to_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = CheckpointPart(tmp_path)

    def fail() -> None:
        raise OSError("disk full")

    part.save(3, fail)
    assert "disk full" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="out of memory"):
        part.save(3, lambda: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
