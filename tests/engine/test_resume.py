"""Runs that were killed, torn and starved, and go on as if they had never stopped."""

import json
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerControl
from transformers.trainer_pt_utils import safe_globals

from composer_engine.callback import Reporter
from composer_engine.checkpoint import Checkpoints
from composer_engine.config import FIELDS, ConfigError, RunConfig, build, get_field, load
from composer_engine.config_file import Value
from composer_engine.contract import EVENTS_FILE
from composer_engine.data import load_data
from composer_engine.emitter import Emitter
from composer_engine.failures import SetupError, failure_of
from composer_engine.mitigation import OutOfMemory, naming_the_way_out, next_mitigation
from composer_engine.protocol import (
    AlertRaised,
    CheckpointSaved,
    Event,
    Logged,
    RunFinished,
    RunStarted,
    StepCompleted,
    Unrecognized,
    decode,
    violations,
)
from composer_engine.record import StepRecord
from composer_engine.resume import AUTO, NONE, check_config, check_loaded, choose
from composer_engine.run import run
from composer_engine.safety import NonFiniteGuard, StopRequest
from composer_engine.seal import (
    SEAL_FILE,
    Best,
    Identity,
    Seal,
    Standing,
    Torn,
    read_seal,
    sum_of,
    write_seal,
)
from composer_engine.world import check_split
from tests.engine.conftest import SMOKE
from tests.engine.engine_process import EngineProcess, read_events, wait_until

# Three steps an epoch, so that most checkpoints lie in another epoch than the first.
SMALL = (
    "data.max_rows=12",
    "rollout.completions_per_prompt=4",
    "checkpoint.every_steps=2",
    "checkpoint.keep=99",
    "optimizer.learning_rate=1e-3",
    "optimizer.weight_decay=0.1",
    "report.samples_every_steps=0",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """So little work is slower on two, and much slower on two that others use."""
    torch.set_num_threads(1)


def configured(*settings: str) -> RunConfig:
    return load("smoke", settings=(*SMALL, *settings))


def attempt(folder: Path, *settings: str, resume: str = NONE) -> list[Event]:
    """One attempt in this process; the events of all attempts. Raises what the run raises."""
    folder.mkdir(exist_ok=True)
    config = configured(*settings)
    data = load_data(config.data.path, config.data.max_rows)
    resumed, said = choose(folder, resume)
    emitter = Emitter(None, folder)
    for line in (*said, *(check_config(config, resumed) if resumed else ())):
        emitter.emit(line)
    stop = StopRequest(emitter, folder)
    run(config, data, "run", folder, emitter, stop, resumed=resumed)
    emitter.close()
    return read_events(folder / EVENTS_FILE)


def steps_of(folder: Path) -> dict[int, StepCompleted]:
    """Every step as the run has it in the end: of one that came again, the last."""
    events = whole_events(folder)
    return {event.step: event for event in events if isinstance(event, StepCompleted)}


def whole_events(folder: Path) -> list[Event]:
    """Without the lines that a kill tore in two."""
    events = map(decode, (folder / EVENTS_FILE).read_bytes().splitlines())
    return [event for event in events if not isinstance(event, Unrecognized)]


def of_kind(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# ---------------------------------------------------------------- to the last bit


def numbers(step: StepCompleted) -> dict[str, object]:
    """All that a step says but what a clock measured."""
    told = msgspec.to_builtins(step)
    for clock in ("seq", "time", "step_seconds", "seconds", "tokens_per_second", "mfu"):
        del told[clock]
    told["metrics"] = {k: v for k, v in told["metrics"].items() if "time" not in k}
    return dict(told)


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested tables and lists by their path."""
    if isinstance(value, dict):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for name, part in parts:
        leaves |= flattened(part, f"{path}/{name}")
    return leaves


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Everything that a checkpoint remembers, by file and place in it."""
    state: dict[str, Any] = {}
    for path in checkpoint.glob("*.safetensors"):
        state |= flattened(load_file(path), path.name)
    with safe_globals():
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            state |= flattened(torch.load(checkpoint / name, weights_only=True), name)
    trainer = json.loads((checkpoint / "trainer_state.json").read_bytes())
    del trainer["stateful_callbacks"]  # whether that attempt was to end there
    return state | flattened(trainer, "trainer_state")


def largest_difference(one: Path, other: Path) -> float:
    """Over all numbers of two checkpoints; infinite where they hold different things."""
    ours, theirs = state_of(one), state_of(other)
    assert ours.keys() == theirs.keys()
    largest = 0.0
    for name, value in ours.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            left, right = torch.as_tensor(value), torch.as_tensor(theirs[name])
            assert left.shape == right.shape
            gap = (left.double() - right.double()).abs().max().item() if left.numel() else 0.0
        elif isinstance(value, int | float):
            gap = abs(value - theirs[name])
        else:
            gap = 0.0 if value == theirs[name] else float("inf")
        assert gap == 0.0, name
        largest = max(largest, gap)
    return largest


def assert_same_run(one: Path, other: Path, steps: int) -> None:
    """Two runs that cannot be told apart: their numbers, and their last checkpoint."""
    ours, theirs = steps_of(one), steps_of(other)
    assert [*sorted(theirs)] == [*range(1, steps + 1)]
    for step in range(1, steps + 1):
        assert numbers(theirs[step]) == numbers(ours[step])
    last = f"checkpoints/step-{steps}"
    assert largest_difference(one / last, other / last) == 0.0
    assert read_seal(one / last).standing.non_finite_in_a_row == 0


VARIANTS = {
    "plain": (),
    "off-policy": (
        "rollout.updates_per_rollout=2",
        "optimizer.micro_batches=2",
        "optimizer.schedule=cosine",
        "loss.teacher=ema",
    ),
    "adapter": (
        "model.path={random_model}",
        "model.lora_rank=4",
        "loss.teacher=frozen",
        "loss.alternate_channels=true",
        "rollout.max_completion_tokens=8",
    ),
}


@pytest.mark.parametrize("name", ["off-policy", "adapter"])
def test_a_run_goes_on_exactly_from_each_of_its_checkpoints(
    tmp_path: Path, random_model: Path, name: str
) -> None:
    variant = [setting.format(random_model=random_model) for setting in VARIANTS[name]]
    settings = ("optimizer.steps=8", *variant)
    straight = tmp_path / "straight"
    attempt(straight, *settings)
    for step in (2, 4, 6):
        again = tmp_path / f"from-{step}"
        attempt(again, *settings, resume=str(straight / f"checkpoints/step-{step}"))
        events = read_events(again / EVENTS_FILE)
        (started,) = of_kind(events, RunStarted)
        assert started.resumed_step == step
        assert [e.step for e in of_kind(events, StepCompleted)] == [*range(step + 1, 9)]
        ours, theirs = steps_of(straight), steps_of(again)
        assert all(numbers(ours[n]) == numbers(theirs[n]) for n in range(step + 1, 9))
        assert (
            largest_difference(straight / "checkpoints/step-8", again / "checkpoints/step-8") == 0.0
        )


def killed_often(folder: Path, settings: tuple[str, ...], steps: int, kills: int, seed: int) -> int:
    """A run of real processes, killed so often at random moments; how often it went on from one."""
    moments = random.Random(seed)
    arguments = ["--config", str(SMOKE), "--run-dir", str(folder), "--resume", AUTO]
    for setting in (*SMALL, *settings):
        arguments += ["--set", setting]
    for kill in range(kills + 1):
        own = folder.with_name(f"{folder.name}-{kill}")
        own.mkdir()
        engine = EngineProcess(own, *arguments)
        if kill < kills:
            # In its first steps, before them, or in the middle of a checkpoint; the first time
            # not before there is one.
            wanted, later = moments.randint(0, 3) + 3 * (kill == 0), moments.uniform(0, 0.05)
            wait_until(
                lambda: len(engine.steps()) >= wanted or not engine.process.is_alive(),  # noqa: B023
                "a step",
            )
            time.sleep(later)
            engine.signal(signal.SIGKILL)
        status = engine.wait()
        assert status == (-signal.SIGKILL if kill < kills else 0), engine.stderr.read_text()
    events = whole_events(folder)
    assert violations(events) == []
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert last.steps == steps
    return sum(event.resumed_step > 0 for event in of_kind(events, RunStarted))


@pytest.mark.parametrize(("name", "kills"), [("plain", 5), ("off-policy", 5)])
def test_a_run_that_is_killed_again_and_again_cannot_be_told_from_one_that_was_not(
    tmp_path: Path, name: str, kills: int
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # pytest shows it when this fails
    steps = 32  # more than can be done between so many kills
    settings = (f"optimizer.steps={steps}", *VARIANTS[name])
    attempt(tmp_path / "straight", *settings)
    resumes = killed_often(tmp_path / "killed", settings, steps, kills, seed)
    assert resumes > 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed", steps)
    saved = {path.name for path in (tmp_path / "killed/checkpoints").iterdir()}
    assert saved == {f"step-{step}" for step in range(2, steps + 1, 2)}
    for folder in saved:
        one, other = (tmp_path / run / "checkpoints" / folder for run in ("straight", "killed"))
        assert largest_difference(one, other) == 0.0


def test_a_run_that_was_short_goes_on_as_if_it_had_been_long(tmp_path: Path) -> None:
    one_pair = "loss.replay_pairs=1"  # so that the longer run replays pairs that are new to it
    attempt(tmp_path / "straight", one_pair, "optimizer.steps=6")
    attempt(tmp_path / "short", one_pair, "optimizer.steps=4")
    attempt(tmp_path / "short", one_pair, "optimizer.steps=6", resume=AUTO)
    ours, theirs = steps_of(tmp_path / "straight"), steps_of(tmp_path / "short")
    for step in range(1, 7):
        # Their reference is that of the initial weights, scored beside other pairs.
        assert theirs[step].channels.replay == pytest.approx(ours[step].channels.replay, rel=1e-4)
        assert theirs[step].loss == pytest.approx(ours[step].loss, rel=1e-3, abs=1e-5)
    again = attempt(tmp_path / "short", one_pair, "optimizer.steps=6", resume=AUTO)
    assert violations(again) == []
    assert again[-1] == msgspec.structs.replace(
        RunFinished(steps=6), seq=again[-1].seq, time=again[-1].time
    )
    assert "nothing is left to train" in of_kind(again, Logged)[-1].message


def test_what_saves_memory_may_be_turned_on_on_the_way(tmp_path: Path) -> None:
    settings = ("optimizer.steps=4",)
    attempt(tmp_path / "straight", *settings)
    attempt(tmp_path / "split", "optimizer.steps=2")
    attempt(tmp_path / "split", *settings, "optimizer.micro_batches=4", resume=AUTO)
    ours, theirs = steps_of(tmp_path / "straight"), steps_of(tmp_path / "split")
    for step in (3, 4):
        assert theirs[step].loss == pytest.approx(ours[step].loss, rel=1e-3, abs=1e-5)
        assert theirs[step].grad_norm == pytest.approx(ours[step].grad_norm, rel=1e-3)


# ---------------------------------------------------------------- which checkpoint


def made(root: Path, step: int, attempt: int = 1, *, resumable: bool = True) -> Path:
    """A checkpoint of two files, as whole as any."""
    folder = root / f"checkpoints/step-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 10)
    (folder / "deep").mkdir()
    (folder / "deep/state").write_bytes(b"s" * 5)
    seal = Seal(
        step=step,
        attempt=attempt,
        saved_at=float(step),
        resumable=resumable,
        files={"weights": 10, "deep/state": 5},
        identity=Identity(config=msgspec.to_builtins(RunConfig())),
    )
    write_seal(folder, seal)
    return folder


def chosen(root: Path) -> int:
    """The step that auto goes on from; 0 for the beginning."""
    checkpoint = choose(root, AUTO).checkpoint
    return checkpoint.step if checkpoint else 0


def test_the_newest_is_of_the_latest_attempt_and_then_of_the_latest_step(tmp_path: Path) -> None:
    made(tmp_path, 80, attempt=1)
    made(tmp_path, 9, attempt=2)
    made(tmp_path, 10, attempt=2)
    checkpoint, said = choose(tmp_path, AUTO)
    assert checkpoint is not None
    assert checkpoint.folder == tmp_path / "checkpoints/step-10"
    assert [line.message for line in said] == ["resuming from step 10 (checkpoints/step-10)"]


def without_seal(folder: Path) -> None:
    (folder / SEAL_FILE).unlink()


def without_a_file(folder: Path) -> None:
    (folder / "deep/state").unlink()


def with_a_short_file(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 9)


def with_a_torn_seal(folder: Path) -> None:
    seal = (folder / SEAL_FILE).read_bytes()
    (folder / SEAL_FILE).write_bytes(seal[: len(seal) // 2])


def with_an_altered_seal(folder: Path) -> None:
    seal = (folder / SEAL_FILE).read_text()
    (folder / SEAL_FILE).write_text(seal.replace('"step": 20', '"step": 99'))


def with_an_empty_seal(folder: Path) -> None:
    (folder / SEAL_FILE).write_bytes(b"")


TEARS: dict[Callable[[Path], None], str] = {
    without_seal: "it has no complete.json",
    without_a_file: "deep/state is missing",
    with_a_short_file: "weights has 9 bytes of 10",
    with_a_torn_seal: "complete.json is damaged",
    with_an_altered_seal: "complete.json was altered",
    with_an_empty_seal: "complete.json is damaged",
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_passed_over_by_name_and_refused_by_path(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    made(tmp_path, 10)
    torn = made(tmp_path, 20)
    tear(torn)
    checkpoint, (warning, _) = choose(tmp_path, AUTO)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert warning.level == "warning"
    assert warning.message.startswith(f"passed over checkpoints/step-20: {TEARS[tear]}")
    with pytest.raises(SetupError, match=TEARS[tear]):
        choose(tmp_path, str(torn))


@given(st.data())
def test_a_seal_with_one_wrong_byte_is_no_seal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = made(tmp_path_factory.mktemp("seal"), 20)
    whole, path = read_seal(folder), folder / SEAL_FILE
    seal = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(seal) - 1))
    seal[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(seal)
    with suppress(Torn):
        assert read_seal(folder) == whole  # white space, or a number written another way


def test_where_there_is_none_a_run_begins_at_step_1_and_says_so(tmp_path: Path) -> None:
    checkpoint, (said,) = choose(tmp_path, AUTO)
    assert checkpoint is None
    assert said.message.endswith("beginning at step 1")
    assert choose(tmp_path, NONE) == (None, ())
    with pytest.raises(SetupError, match="no --run-dir"):
        choose(None, AUTO)


def test_a_checkpoint_within_a_rollout_is_a_model_and_no_place_to_go_on_from(
    tmp_path: Path,
) -> None:
    made(tmp_path, 4)
    folder = made(tmp_path, 5, resumable=False)
    assert chosen(tmp_path) == 4
    with pytest.raises(SetupError, match="within a rollout"):
        choose(tmp_path, str(folder))


def test_a_path_may_be_given_from_the_run_folder_on(tmp_path: Path) -> None:
    made(tmp_path, 4)
    checkpoint = choose(tmp_path, "checkpoints/step-4").checkpoint
    assert checkpoint is not None
    assert checkpoint.name == "checkpoints/step-4"
    for nothing in ("checkpoints/step-5", str(tmp_path)):
        with pytest.raises(SetupError, match="--resume"):
            choose(tmp_path, nothing)


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("optimizer.steps=7", True),
        ("checkpoint.keep=9", True),
        ("report.samples_every_steps=3", True),
        ("safety.non_finite_patience=9", True),
        ("modal.cap_usd=9", True),
        ("name=other", True),
        ("optimizer.micro_batches=2", True),
        ("model.gradient_checkpointing=true", True),
        ("model.path=elsewhere", False),
        ("data.max_rows=5", False),
        ("optimizer.learning_rate=0.1", False),
        ("optimizer.seed=1", False),
        ("loss.dpo_beta=0.2", False),
        ("rollout.updates_per_rollout=2", False),
        ("hints.success_reward=0.5", False),
    ],
)
def test_a_run_goes_on_only_as_the_run_that_it_was(
    tmp_path: Path, setting: str, allowed: bool
) -> None:
    made(tmp_path, 4)
    checkpoint = choose(tmp_path, AUTO).checkpoint
    assert checkpoint is not None
    config = load(settings=[setting])
    if allowed:
        check_config(config, checkpoint)
    else:
        with pytest.raises(ConfigError) as caught:
            check_config(config, checkpoint)
        (problem,) = caught.value.problems
        assert problem.field == setting.partition("=")[0]
        assert "checkpoints/step-4 was trained with" in problem.message


def test_another_model_tokenizer_or_data_under_the_same_path_is_noticed(tmp_path: Path) -> None:
    made(tmp_path, 4)
    checkpoint = choose(tmp_path, AUTO).checkpoint
    assert checkpoint is not None
    same = {"model": "", "tokenizer": "", "rows": ""}
    check_loaded(checkpoint, same)
    for name, word in (("model", "tensors"), ("tokenizer", "tokenizer"), ("rows", "data.path")):
        with pytest.raises(SetupError, match=word):
            check_loaded(checkpoint, same | {name: "other"})


def test_rows_with_the_same_texts_and_other_answers_are_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n'
    settings = (f"data.path={file}", "rollout.prompts_per_step=2")
    file.write_text(rows)
    attempt(tmp_path / "run", *settings, "optimizer.steps=2")
    file.write_text(rows.replace('"3"', '"4"'))
    events = attempt(tmp_path / "run", *settings, "optimizer.steps=3", resume=AUTO)
    said = [line.message for line in of_kind(events, Logged) if line.level == "warning"]
    assert any("data.path: its rows have changed since step 2" in line for line in said)


def test_files_of_the_right_size_that_hold_something_else_are_passed_over(tmp_path: Path) -> None:
    made(tmp_path, 10)
    changed = made(tmp_path, 20)
    seal = read_seal(changed)
    sums = {name: sum_of(changed / name) for name in seal.files}
    write_seal(changed, msgspec.structs.replace(seal, sums=sums))
    assert chosen(tmp_path) == 20
    (changed / "weights").write_bytes(b"w" * 9 + b"v")
    checkpoint, (warning, _) = choose(tmp_path, AUTO)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert warning.level == "warning"
    assert warning.message == (
        "passed over checkpoints/step-20: weights holds something else than was written"
    )
    with pytest.raises(SetupError, match="weights holds something else"):
        choose(tmp_path, str(changed))
    assert choose(tmp_path, AUTO, reads_all=False).checkpoint == (
        changed,
        "checkpoints/step-20",
        read_seal(changed),
    )


def test_a_checkpoint_of_which_one_bit_changed_costs_the_steps_since_the_one_before(
    tmp_path: Path,
) -> None:
    attempt(tmp_path / "run", "optimizer.steps=4")
    file = tmp_path / "run/checkpoints/step-4/optimizer.pt"
    stored = bytearray(file.read_bytes())
    stored[len(stored) // 2] ^= 1
    file.write_bytes(stored)
    events = attempt(tmp_path / "run", "optimizer.steps=5", resume=AUTO)
    assert of_kind(events, RunStarted)[-1].resumed_step == 2


def test_a_file_without_a_sum_that_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    attempt(tmp_path / "run", "optimizer.steps=2")
    folder = tmp_path / "run/checkpoints/step-2"
    write_seal(folder, msgspec.structs.replace(read_seal(folder), sums={}))
    file = folder / "optimizer.pt"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(SetupError, match="step-2 cannot be loaded") as caught:
        attempt(tmp_path / "run", "optimizer.steps=4", resume=AUTO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_more_steps_give_the_next_one_the_rate_of_the_new_curve(
    tmp_path: Path, schedule: str
) -> None:
    curve = f"optimizer.schedule={schedule}"
    attempt(tmp_path / "long", "optimizer.steps=4", curve)
    attempt(tmp_path / "run", "optimizer.steps=2", curve)
    attempt(tmp_path / "run", "optimizer.steps=4", curve, resume=AUTO)
    straight, resumed = steps_of(tmp_path / "long"), steps_of(tmp_path / "run")
    assert [resumed[n].learning_rate for n in (3, 4)] == [straight[n].learning_rate for n in (3, 4)]


# ---------------------------------------------------------------- which stay


class Saves:
    """The checkpoints of a run without a trainer: a step is a reward and a file."""

    def __init__(self, root: Path, keep: int, standing: Standing | None = None) -> None:
        self.root, self.emitter = root, Emitter(None, root)
        self.checkpoints = Checkpoints(root, keep, self.emitter, standing=standing)

    def save(self, step: int, *rewards: float, before_the_seal: Callable[[], object] = int) -> None:
        for reward in rewards:
            self.checkpoints.note(reward, 0)

        def write() -> None:
            folder = self.checkpoints.staging / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "weights").write_text(str(rewards))
            before_the_seal()

        self.checkpoints.save(step, write)

    @property
    def steps(self) -> set[int]:
        return {int(path.name[5:]) for path in (self.root / "checkpoints").glob("step-*")}


def test_the_last_ones_stay_and_the_best_and_it_is_remembered(tmp_path: Path) -> None:
    saves = Saves(tmp_path, keep=2)
    saves.save(10, 0.2, 0.2)
    saves.save(20, 0.0, 1.0)  # the mean since the checkpoint before counts, not one step
    saves.save(30, 0.4, 0.4)
    saves.save(40, 0.3)
    assert saves.steps == {20, 30, 40}
    events = of_kind(read_events(tmp_path / EVENTS_FILE), CheckpointSaved)
    assert [event.best for event in events] == [True, True, False, False]
    standing = read_seal(tmp_path / "checkpoints/step-40").standing
    assert standing.best == Best(step=20, attempt=1, reward=0.5)
    again = Saves(tmp_path, keep=2, standing=standing)
    again.save(50, 0.45)
    again.save(60, 0.45)
    assert again.steps == {20, 50, 60}
    again.save(70, 0.9)
    again.save(80, 0.8)
    assert again.steps == {70, 80}


def test_a_best_one_that_is_gone_keeps_no_other_from_being_it(tmp_path: Path) -> None:
    gone = Standing(best=Best(step=5, attempt=1, reward=0.99))
    saves = Saves(tmp_path, keep=1, standing=gone)
    saves.save(10, 0.5)
    assert read_seal(tmp_path / "checkpoints/step-10").standing.best == Best(
        step=10, attempt=1, reward=0.5
    )


def test_without_keep_best_only_the_last_ones_stay(tmp_path: Path) -> None:
    saves = Saves(tmp_path, keep=1)
    saves.checkpoints = Checkpoints(tmp_path, 1, saves.emitter, keep_best=False)
    saves.save(10, 1.0)
    saves.save(20, 0.0)
    assert saves.steps == {20}


def test_what_is_torn_counts_for_nothing_and_goes(tmp_path: Path) -> None:
    saves = Saves(tmp_path, keep=2)
    saves.save(10, 0.1)
    without_seal(tmp_path / "checkpoints/step-10")
    saves.save(20, 0.1)
    saves.save(30, 0.1)
    assert saves.steps == {20, 30}


def test_the_count_of_bad_steps_is_taken_along(tmp_path: Path) -> None:
    saves = Saves(tmp_path, keep=1)
    saves.checkpoints.note(0.5, 2)
    saves.save(4)
    count = read_seal(tmp_path / "checkpoints/step-4").standing.non_finite_in_a_row
    guard = NonFiniteGuard(3, count)
    guard.judge("sdpo")
    assert guard.exhausted


# ---------------------------------------------------------------- a full disk


@contextmanager
def disk_full_beyond(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_is_full_when_the_seal_is_due_gives_back_what_was_there(
    tmp_path: Path,
) -> None:
    Saves(tmp_path, keep=2).save(10, 0.25)
    saves = Saves(tmp_path, keep=2)
    with ExitStack() as stack:
        saves.save(10, 0.5, before_the_seal=lambda: stack.enter_context(disk_full_beyond(100)))
    assert read_seal(tmp_path / "checkpoints/step-10").attempt == 1
    assert (tmp_path / "checkpoints/step-10/weights").read_text() == "(0.25,)"
    saves.save(20, 0.5)
    assert saves.steps == {10, 20}


def test_a_disk_that_fills_up_costs_one_checkpoint_and_the_last_good_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Checkpoints.save
    seen: list[set[str]] = []

    def sometimes(self: Checkpoints, step: int, write: Any, **more: Any) -> None:
        with disk_full_beyond(65_536) if step == 4 else nullcontext():
            honest(self, step, write, **more)
        seen.append({path.name for path in (tmp_path / "checkpoints").glob("step-*")})

    monkeypatch.setattr(Checkpoints, "save", sometimes)
    events = attempt(tmp_path, "optimizer.steps=6", "checkpoint.keep=1")
    assert seen[:2] == [{"step-2"}, {"step-2"}]
    assert chosen(tmp_path) == 6
    (alert,) = of_kind(events, AlertRaised)
    assert (alert.rule, alert.level, alert.step) == ("disk", "error", 4)
    assert alert.message.endswith("the last one is of step 2")
    assert isinstance(events[-1], RunFinished)
    best = of_kind(events, CheckpointSaved)[-1].best
    assert seen[-1] == ({"step-6"} if best else {"step-2", "step-6"})


def test_a_run_whose_end_could_not_be_saved_says_so_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Checkpoints.save

    def on_a_full_disk(self: Checkpoints, step: int, write: Any, **more: Any) -> None:
        with disk_full_beyond(65_536) if step > 2 else nullcontext():
            honest(self, step, write, **more)

    monkeypatch.setattr(Checkpoints, "save", on_a_full_disk)
    events = attempt(tmp_path, "optimizer.steps=3")
    (alert,) = of_kind(events, AlertRaised)
    assert "enforce fail" not in alert.message
    assert "limit" in alert.message
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert (last.steps, last.stopped_early) == (3, False)
    assert last.reason == alert.message
    assert last.reason.endswith("the last one is of step 2")


# ---------------------------------------------------------------- between rollouts only


class Stepper:
    """What `Reporter` sees of a trainer, without one."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints, self.record = checkpoints, StepRecord(rewards=torch.ones(1, 2))
        self.state, self.control = SimpleNamespace(global_step=0), TrainerControl()

    def clock(self) -> float:
        return 0.0

    def anywhere(self, flag: bool) -> bool:
        return flag


@pytest.mark.parametrize(
    ("updates", "asked_at", "saves", "ends"),
    [
        (1, None, [2, 4, 6, 8, 10, 11], 11),
        (1, 5, [2, 4, 5], 5),
        (3, None, [3, 6, 9, 11], 11),  # the last step saves wherever it is
        (3, 4, [3, 6], 6),
        (3, 6, [3, 6], 6),
    ],
)
def test_a_run_saves_and_stops_between_rollouts(
    tmp_path: Path, updates: int, asked_at: int | None, saves: list[int], ends: int
) -> None:
    settings = ("optimizer.steps=11", f"rollout.updates_per_rollout={updates}")
    config, emitter = configured(*settings), Emitter(None, tmp_path)
    stop = StopRequest(emitter, tmp_path)
    stepper: Any = Stepper(Checkpoints(tmp_path, 9, emitter))
    throughput: Any = None
    reporter = Reporter(config, emitter, stop, NonFiniteGuard(3), stepper, throughput)
    saved = []
    while not stepper.control.should_training_stop:
        stepper.state.global_step += 1
        if stepper.state.global_step == asked_at:
            stop.ask("for a test")
        reporter.on_step_end()
        if stepper.control.should_save:
            saved.append(stepper.state.global_step)
    assert (saved, stepper.state.global_step) == (saves, ends)


# ---------------------------------------------------------------- out of memory


def test_the_way_out_of_memory_is_named_one_step_at_a_time() -> None:
    config = load(settings=["model.path=m", "loss.channel_backward=summed"])
    named = []
    while (found := next_mitigation(config)) is not None:
        named.append(f"{found.field}={found.value}")
        config = found.config
    assert named == [
        "model.gradient_checkpointing=true",
        'loss.channel_backward="per_channel"',
        "optimizer.micro_batches=2",
        "optimizer.micro_batches=4",
        "optimizer.micro_batches=8",
        "optimizer.micro_batches=16",
        "optimizer.micro_batches=32",
        "rollout.max_completion_tokens=128",
        "rollout.max_completion_tokens=64",
        "model.lora_rank=16",
        'model.dtype="bfloat16"',
    ]
    assert build([Value(path, value, "") for path, value in leaves(config)]) == config


def test_the_way_out_is_one_that_every_process_can_take() -> None:
    config = load(settings=["rollout.prompts_per_step=6", "rollout.completions_per_prompt=2"])
    while (found := next_mitigation(config, processes=3)) is not None:
        config = found.config
        check_split(config, 3)
    assert config.optimizer.micro_batches == 4  # of the 12 completions each process has 4


def leaves(config: RunConfig) -> Iterator[tuple[str, Any]]:
    return ((path, get_field(config, path)) for path in FIELDS)


def test_the_way_out_says_what_it_would_take_when_somebody_knows() -> None:
    seen = []

    def predict(config: RunConfig) -> int:
        seen.append(config.model.gradient_checkpointing)
        return 5 * 2**30

    found = next_mitigation(RunConfig(), predict)
    assert found is not None
    assert found.hint == "set model.gradient_checkpointing = true, predicted peak 5.0 GiB"
    assert seen == [True]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
        RuntimeError("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed"),
        MemoryError(),
    ],
)
def test_whoever_runs_out_of_memory_in_whatever_words_is_told_the_way_out(
    error: BaseException,
) -> None:
    with pytest.raises(OutOfMemory) as caught, naming_the_way_out(RunConfig()):
        raise error
    failure = failure_of(caught.value)
    assert failure.kind == "oom"
    assert failure.hint == "set model.gradient_checkpointing = true"
    assert "Traceback" in failure.detail


def test_any_other_error_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shape"), naming_the_way_out(RunConfig()):
        raise RuntimeError("shape mismatch")
