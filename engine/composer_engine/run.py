"""One attempt from loaded data to its last event. Everything heavy is imported here."""

import warnings
from pathlib import Path

import datasets
import msgspec
import torch
import transformers
from transformers import PrinterCallback, ProgressCallback

from composer_engine.callback import Reporter
from composer_engine.checkpoint import CheckpointPart, Checkpoints
from composer_engine.config import RunConfig, config_hash
from composer_engine.contract import PREEMPTED
from composer_engine.data import Data
from composer_engine.emitter import Emitter
from composer_engine.failures import DataError, NonFiniteError
from composer_engine.given import as_given
from composer_engine.model import (
    Loaded,
    check_top_k,
    describe_device,
    load_model,
    non_finite_weights,
    readable_tokens,
)
from composer_engine.protocol import (
    AlertRaised,
    Logged,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunStarted,
)
from composer_engine.requirements import engine_version
from composer_engine.resumable import digests
from composer_engine.resume import Checkpoint, check_loaded, processes_note, rows_note
from composer_engine.rules import pointless
from composer_engine.safety import NonFiniteGuard, StopRequest
from composer_engine.sampler import MemorySampler
from composer_engine.seal import Identity, Standing
from composer_engine.sinks import Sinks
from composer_engine.throughput import Throughput, peak_flops
from composer_engine.trainer import ComposerTrainer, compiles
from composer_engine.world import World

_SMALL_BF16_RATE = 3e-5  # at 1e-5 a step still leaves most weights as they were
_ONE_THREAD_PARAMETERS = 10_000_000
_ALONE = World()


def run(
    config: RunConfig,
    data: Data,
    run_id: str,
    root: Path,
    emitter: Emitter,
    stop: StopRequest,
    world: World = _ALONE,
    resumed: Checkpoint | None = None,
) -> None:
    """Train as configured, with checkpoints under ``root``; ends with `RunFinished`.

    With ``resumed``, from that checkpoint on: of this very configuration, as its caller has seen.
    Raises what ends it otherwise; the emitter turns that into `RunFailed`.
    """
    _quiet_libraries()
    loaded = load_model(config.model, config.optimizer.seed, world.local_rank)
    check_top_k(config.loss.top_k, loaded.causal_lm)
    check_lengths(config, loaded, data)
    of_what = digests(loaded, data)
    if resumed is not None:
        check_loaded(resumed, of_what)
    device = describe_device(loaded.device, world.size)
    emitter.emit(
        RunStarted(
            run_id=run_id,
            attempt=emitter.attempt,
            total_steps=config.optimizer.steps,
            model=as_given(config.model.path),
            parameters=loaded.parameters,
            device=device,
            engine_version=engine_version(),
            config_hash=config_hash(config),
            resumed_step=resumed.step if resumed else 0,
        )
    )
    if resumed is not None:
        for note in (*processes_note(resumed, world.size), *rows_note(resumed, of_what["marks"])):
            emitter.emit(note)
    _warn(config, loaded, data, emitter)
    if loaded.device.type == "cpu" and loaded.parameters < _ONE_THREAD_PARAMETERS:
        # Handing out so little work costs more than it saves, and stalls on a busy machine.
        torch.set_num_threads(1)
    checkpoints = _checkpoints(config, of_what, root, emitter, world, resumed)
    wants_sinks = config.report.sinks and not world.rank
    sinks = Sinks(config, run_id, emitter) if wants_sinks else None
    try:
        train(config, data, loaded, checkpoints, emitter, stop, world, resumed=resumed, sinks=sinks)
    finally:
        checkpoints.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _checkpoints(
    config: RunConfig,
    of_what: dict[str, str],
    root: Path,
    emitter: Emitter,
    world: World,
    resumed: Checkpoint | None,
) -> Checkpoints | CheckpointPart:
    """Rank 0 owns them, and knows what they are of."""
    if world.rank:
        return CheckpointPart(root)
    identity = Identity(
        engine_version=engine_version(),
        config_hash=config_hash(config),
        config=msgspec.to_builtins(config),
        processes=world.size,
        **of_what,
    )
    return Checkpoints(
        root,
        config.checkpoint.keep,
        emitter,
        keep_best=config.checkpoint.keep_best,
        identity=identity,
        standing=resumed.seal.standing if resumed else None,
        last_step=resumed.step if resumed else 0,
    )


def train(
    config: RunConfig,
    data: Data,
    loaded: Loaded,
    checkpoints: Checkpoints | CheckpointPart,
    emitter: Emitter,
    stop: StopRequest,
    world: World = _ALONE,
    trainer_class: type[ComposerTrainer] = ComposerTrainer,
    resumed: Checkpoint | None = None,
    sinks: Sinks | None = None,
) -> ComposerTrainer:
    """The training itself, from a loaded model to `RunFinished`. Returns the trainer.

    ``loaded`` has its initial weights, also when the run goes on from ``resumed``.
    """
    trainer = trainer_class(config, loaded, data, checkpoints, world)
    standing = resumed.seal.standing if resumed else Standing()
    guard = NonFiniteGuard(config.safety.non_finite_patience, standing.non_finite_in_a_row)
    done = resumed.step if resumed else 0
    peak = peak_flops(loaded.device, loaded.causal_lm.dtype)
    everyones_peak = None if peak is None else peak * world.size
    throughput = Throughput(loaded.causal_lm.config.get_text_config(), everyones_peak)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Reporter(config, emitter, stop, guard, trainer, throughput, sinks))
    if sinks is not None:
        trainer.add_callback(sinks)
    seconds = config.report.memory_every_seconds
    with MemorySampler(emitter, loaded.device, seconds, world.size):
        if resumed is not None:
            trainer.recall(resumed)
        if done >= config.optimizer.steps:
            message = f"nothing is left to train: optimizer.steps is {config.optimizer.steps}"
            emitter.emit(Logged(level="info", message=message))
        else:
            _train_on(trainer, emitter, stop, resumed)
    steps = max(done, trainer.state.global_step)
    if guard.exhausted:
        raise NonFiniteError(
            f"{guard.in_a_row} steps in a row were not finite (last: {guard.last_guilty})",
            "the weights are those of the last finite step; lower optimizer.learning_rate, "
            "or set the weight of the channel named above to 0 to see whether it is the cause",
        )
    early = steps < config.optimizer.steps
    if early and stop.reason() == PREEMPTED:
        message = f"{PREEMPTED}, at step {steps}"
        emitter.emit(RunFailed(kind="preempted", message=message))
        return trainer
    asked = (stop.reason() or "asked in another of its processes") if early else ""
    reason = "; ".join(filter(None, (asked, trainer.checkpoints.unsaved)))
    ended_by = stop.ended_by if early else ""
    emitter.emit(RunFinished(steps=steps, stopped_early=early, reason=reason, ended_by=ended_by))
    return trainer


def _train_on(
    trainer: ComposerTrainer, emitter: Emitter, stop: StopRequest, resumed: Checkpoint | None
) -> None:
    """To the last step, unless it is asked to stop before the first."""
    if trainer.pairs:
        emitter.emit(PhaseChanged(phase="warming"))
        done = trainer.precompute_reference(stop.reason)
        if done.from_cache:
            some = f"{done.from_cache} of {done.pairs}"
            message = f"reference log-probs of {some} pairs: from the cache"
            emitter.emit(Logged(level="info", message=message))
    if trainer.anywhere(bool(stop.reason())):
        return
    if resumed is not None:
        trainer.go_on_from(resumed)
    else:
        trainer.train()


def check_lengths(config: RunConfig, loaded: Loaded, data: Data) -> None:
    """Raises `DataError` for every text that is longer than the model can read."""
    limit = readable_tokens(loaded.causal_lm)
    if limit is None:
        return
    room = config.rollout.max_completion_tokens
    needs = [(task.where, "prompt", task.prompt, room) for task in data.tasks]
    if config.loss.replay_weight:
        for pair in data.pairs:
            needs.append((pair.where, "chosen", pair.prompt + pair.chosen, 1))
            needs.append((pair.where, "rejected", pair.prompt + pair.rejected, 1))
    problems = []
    tokens = loaded.tokenizer(text=[text for _, _, text, _ in needs])["input_ids"]
    for (where, field, _, more), ids in zip(needs, tokens, strict=True):
        if len(ids) + more > limit:
            problems.append(
                f"{where}: {field}: {len(ids)} tokens and {more} to come are more than the "
                f"{limit} that the model can read"
            )
    if problems:
        raise DataError(problems)


def _warn(config: RunConfig, loaded: Loaded, data: Data, emitter: Emitter) -> None:
    """What is legal and still probably not meant."""
    weak = [
        f"{name} holds numbers that are not finite" for name in non_finite_weights(loaded.model)
    ]
    for message in weak[:10]:
        emitter.emit(AlertRaised(rule="non_finite", level="warning", message=message))
    notes = pointless(config)
    if config.loss.replay_weight and not data.pairs:
        notes.append("loss.replay_weight is set, but no row has chosen and rejected: no replay")
    pure_bf16 = config.model.dtype == "bfloat16" and not config.model.lora_rank
    if pure_bf16 and config.optimizer.learning_rate <= _SMALL_BF16_RATE:
        notes.append(
            "bfloat16 weights round away most updates at this learning rate: "
            "use float32 weights, a LoRA adapter, or a higher rate"
        )
    for message in notes:
        emitter.emit(Logged(level="warning", message=message))
    if compiles(config.model):
        message = "compiling the backbone: the first step may take minutes"
        emitter.emit(Logged(level="info", message=message))


def _quiet_libraries() -> None:
    """stderr is the run's log: no progress bars, no advice for the libraries' own users."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
