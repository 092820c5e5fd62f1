"""``python -m composer_engine --config RUN.toml``: config in, train, events out, exit status.

0: finished, also when it was asked to stop early. 1: failed. 2: it could not begin, because of
the command line, the configuration, the data or the model.

``torchrun --nproc-per-node N -m composer_engine ...`` trains with N processes, of which the first
is the engine to everybody else.
"""

import argparse
import contextlib
import gc
import importlib.util
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from composer_engine.config import load
from composer_engine.contract import ENGINE_PACKAGES, OPENING_VARIABLE
from composer_engine.data import check_rows, load_data
from composer_engine.emitter import Emitter, take_stdout
from composer_engine.failures import SetupError, complain
from composer_engine.hub import asked_offline
from composer_engine.lifeline import die_with_parent, follow_parent, write_process_file
from composer_engine.mitigation import naming_the_way_out
from composer_engine.model_folder import model_folder
from composer_engine.prediction import predicted_peak
from composer_engine.protocol import Logged, PhaseChanged, RunFailed, RunFinished
from composer_engine.requirements import check_optional
from composer_engine.resume import NONE, check_config, choose
from composer_engine.safety import StopRequest
from composer_engine.sink_places import prepare_sinks
from composer_engine.world import World, check_split, this_world

# The engine reads what is on this machine, and fetches a hub id's files before anything else.
# These keep every library below it from looking further.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the engine; the value is the exit status."""
    options = _parser().parse_args(arguments)
    stdout = take_stdout()
    may_download = not asked_offline(os.environ)
    os.environ.update(_OFFLINE)
    world = this_world()
    if world.size == 1:
        # With several devices in sight the Trainer would split each batch over them.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = first
    folder: Path | None = options.run_dir
    if world.rank:
        return _help(options, folder, world, may_download)
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_process_file(folder)
        emitter = Emitter(stdout, folder)
    except OSError as error:
        emitter = Emitter(stdout, None)
        with emitter:
            raise SetupError(f"cannot write the run folder {folder}: {error.strerror}") from error
        return _status(emitter)
    with emitter:
        _attempt(options, folder, emitter, world, may_download)
    return _status(emitter)


def _help(
    options: argparse.Namespace, folder: Path | None, world: World, may_download: bool
) -> int:
    """What a process does that trains along: it says nothing but, on stderr, why it failed."""
    with Emitter(None, None) as silent:
        _attempt(options, folder, silent, world, may_download)
    last = silent.last
    if isinstance(last, RunFailed) and last.kind != "config":  # rank 0 has that, too
        complain(f"composer_engine: process {world.rank}: {last.message}")
    return 0 if isinstance(last, RunFinished) else 1


def _attempt(
    options: argparse.Namespace,
    folder: Path | None,
    emitter: Emitter,
    world: World,
    may_download: bool,
) -> None:
    """Everything that may fail once there is an emitter to say so."""
    stop = StopRequest(emitter, None if world.rank else folder)
    stop.listen()
    if opening := os.environ.get(OPENING_VARIABLE):
        emitter.emit(Logged(level="warning", message=opening))
    if world.size == 1:
        follow_parent(stop.ask)
    else:
        die_with_parent()
    config = load(file=options.config, settings=options.set)
    resumed, said = choose(folder, options.resume)
    for line in (*said, *(check_config(config, resumed) if resumed else ())):
        emitter.emit(line)
    emitter.emit(PhaseChanged(phase="loading"))
    _check_packages()
    check_optional(config)
    say = partial(_say, emitter)
    model_folder(config.model, say if may_download else None)
    data = load_data(
        config.data.path,
        config.data.max_rows,
        split=config.data.split,
        rename=config.data.rename,
        reward=config.data.reward,
        report=say if may_download else None,
    )
    check_rows(len(data.tasks), config.rollout.prompts_per_step)
    check_split(config, world.size)
    if world.size > 1 and folder is None:
        raise SetupError("several processes need one --run-dir to save in")

    run_id = options.run_id or (folder.name if folder else config.name)
    with contextlib.ExitStack() as around:
        predict = partial(predicted_peak, processes=world.size)
        around.enter_context(naming_the_way_out(config, predict, world.size))
        root = folder or Path(around.enter_context(tempfile.TemporaryDirectory(prefix="composer-")))
        if not world.rank:
            prepare_sinks(config.report.sinks, root, run_id)

        gc.disable()  # all that is imported now stays, so that nothing is gained by walking it
        from composer_engine.run import run  # everything heavy, sinks' packages included

        gc.freeze()
        gc.enable()
        run(config, data, run_id, root, emitter, stop, world, resumed)


def _say(emitter: Emitter, message: str) -> None:
    emitter.emit(Logged(level="info", message=message))


def _check_packages() -> None:
    """Raises `SetupError` when the engine's own dependencies are not installed."""
    missing = [name for name in ENGINE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"{', '.join(missing)} cannot be found; "
            'the engine needs: pip install "composer-tui[engine]"'
        )


def _status(emitter: Emitter) -> int:
    """The exit status of the last event; a failure to begin also gets its line on stderr."""
    last = emitter.last
    if last is None or isinstance(last, RunFinished):
        return 0 if last else 1
    lines = [last.message, last.hint, last.detail if last.kind != "engine" else ""]
    complain("composer_engine: " + "\n  ".join(filter(None, lines)))
    return 2 if last.kind == "config" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m composer_engine",
        description="Train as a configuration says; events go to stdout, one JSON object a line.",
    )
    parser.add_argument("--config", type=Path, required=True, help="a .toml, .yaml or .json file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override one field"
    )
    parser.add_argument(
        "--run-dir", type=Path, help="append events.jsonl and keep checkpoints here"
    )
    parser.add_argument(
        "--resume",
        default=NONE,
        metavar="auto|none|PATH",
        help="go on from the newest whole checkpoint of the run folder, or from that one",
    )
    parser.add_argument("--run-id", help="the run's name in its events (default: the folder's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
