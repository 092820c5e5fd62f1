"""``python -m composer_engine.probe --config RUN.toml``: a step's memory and work, before it runs.

The step's own code runs on fake tensors, so nothing is allocated and no weights are needed: a
folder with a ``config.json`` is enough. One JSON object goes to stdout. Exit status 2: the
configuration or the model cannot be used, and one line on stderr says why.

Counted is what the tensors of one process take, on CUDA unless ``model.device`` is cpu: the CPU's
attention, which keeps for its backward what CUDA's keeps, stands in for it. Not counted: what
libraries take for themselves (see ``overhead``), ``model.torch_compile``, and vLLM's own share.
"""

import argparse
import gc
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from composer_engine.config import BUILTIN, ConfigError, RunConfig, load
from composer_engine.data import check_rows, glance
from composer_engine.failures import SetupError, complain, failure_of
from composer_engine.fake_run import Counted, FakeRun
from composer_engine.inputs import is_there_already
from composer_engine.memory import (
    Flops,
    Lengths,
    Memory,
    Work,
    default_lengths,
    generation,
    joining,
    overhead_bytes,
    rollout_flops,
    works_of,
)
from composer_engine.prediction import (
    CountTokens,
    by_characters,
    measured_lengths,
    settings_file,
)

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_MOST_TOKENS = 1 << 20  # of a micro batch: more take minutes to plan and count
_ADAM_PASSES = 7  # over the trained weights: four are read, three written


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of this configuration will take; bytes and FLOPs of one optimizer step.

    All is of one process, of the ``processes`` that share a step.

    ``memory`` is the moment when most is held, in ``phase``. ``peak_bytes`` is of tensors alone;
    ``need_bytes`` adds ``memory.overhead``. ``flops.sdpo`` is what SDPO adds to GRPO's forward
    and backward, which it shares: its teacher and its part of the head.
    """

    model: str
    device: str
    processes: int
    parameters: int
    trained_parameters: int
    phase: str
    memory: Memory
    peak_bytes: int
    need_bytes: int
    training_bytes: int
    generation_bytes: int
    flops: Flops
    optimizer_bytes: int
    lengths: Lengths
    assumptions: tuple[str, ...]
    seconds: float


def probe(
    config: RunConfig,
    lengths: Lengths | None = None,
    *,
    failed_share: float = 1.0,
    processes: int = 1,
) -> Probe:
    """Counts a step of this run. ``lengths`` of None: measured on the data, or the defaults.

    Raises `SetupError` when the model cannot be made of its settings alone, and for what the
    engine itself would refuse.
    """
    began = time.monotonic()
    _check_split(config, processes)
    settings = settings_file(config.model)
    if lengths is None:
        _check_data(config)
    count = _token_counter(settings.parent)
    given = lengths or measured_lengths(config, count)
    is_exact = given is not None and count is not by_characters
    lengths = given or default_lengths(config)
    run = FakeRun(config, lengths, settings)
    _check_model(config, run, lengths.prompt if is_exact else 1)
    works = works_of(config, run.lengths, failed_share, processes)
    _check_work(run.lengths, works)
    counted = [run.step(work) for work in works]
    held = max((kind.held for kind in counted), key=Counter.total)
    sampled = generation(run.shape, config, lengths, processes)
    joined = joining(run.trained_bytes, processes)
    moments = {
        "training": _total(held, joined),
        "generation": _total(run.ledger.held(), sampled, joined),
    }
    phase, memory = max(moments.items(), key=lambda moment: moment[1].tensor_bytes)
    on_cuda = config.model.device != "cpu"
    overhead = overhead_bytes(memory.tensor_bytes, on_cuda=on_cuda)
    return Probe(
        model=config.model.path,
        device="cuda" if on_cuda else "cpu",
        processes=processes,
        parameters=run.parameters,
        trained_parameters=run.trained,
        phase=phase,
        memory=msgspec.structs.replace(memory, overhead=overhead),
        peak_bytes=memory.tensor_bytes,
        need_bytes=memory.tensor_bytes + overhead,
        training_bytes=moments["training"].tensor_bytes,
        generation_bytes=moments["generation"].tensor_bytes,
        flops=Flops(
            **_of_a_step(counted, works, config.optimizer.micro_batches),
            rollout=rollout_flops(run.shape, config, lengths, processes),
        ),
        optimizer_bytes=_ADAM_PASSES * run.trained_bytes,
        lengths=lengths,
        assumptions=tuple(_assumptions(config, failed_share, is_measured=given is not None)),
        seconds=round(time.monotonic() - began, 2),
    )


def _check_split(config: RunConfig, processes: int) -> None:
    rollout = config.rollout
    completions = rollout.prompts_per_step * rollout.completions_per_prompt
    if processes < 1 or completions % (processes * config.optimizer.micro_batches):
        raise SetupError(
            f"the {completions} completions of a step cannot be split over {processes} processes "
            f"with {config.optimizer.micro_batches} micro batches each"
        )


def _check_data(config: RunConfig) -> None:
    """By the engine's own rules, as far as the first rows tell. Raises `SetupError`."""
    data = config.data
    if data.path != BUILTIN and is_there_already(data.path):
        return  # on a volume, which this machine does not see
    seen = glance(data.path, data.max_rows, rename=data.rename, reward=data.reward)
    if seen.is_whole:
        check_rows(seen.tasks, config.rollout.prompts_per_step)


def _check_model(config: RunConfig, run: FakeRun, prompt: int) -> None:
    """Raises `SetupError` for more tokens than the model reads, or knows."""
    from composer_engine.model import check_top_k

    check_top_k(config.loss.top_k, run.causal_lm)
    completion, limit = config.rollout.max_completion_tokens, run.shape.max_tokens
    if limit and prompt + completion > limit:
        raise SetupError(
            f"rollout.max_completion_tokens: a prompt of {prompt} tokens and {completion} to come "
            f"are more than the {limit} that the model can read"
        )


def _check_work(lengths: Lengths, works: Sequence[Work]) -> None:
    """Raises `SetupError` for a micro batch that would take minutes to plan."""
    for work in works:
        tokens = (
            work.completions * (lengths.prompt + lengths.completion)
            + work.taught * (lengths.teacher_prompt + lengths.completion)
            + work.pairs * (2 * lengths.pair_prompt + lengths.chosen + lengths.rejected)
        )
        if tokens > _MOST_TOKENS:
            raise SetupError(
                f"rollout.prompts_per_step: {tokens:,} tokens in a micro batch cannot be counted; "
                f"the most is {_MOST_TOKENS:,}",
                "raise optimizer.micro_batches, or lower rollout.max_completion_tokens",
            )


def _assumptions(config: RunConfig, failed_share: float, *, is_measured: bool) -> Iterator[str]:
    if is_measured:
        yield "every text is as long as the longest that was looked at; completions as allowed"
    else:
        yield "the data was not looked at: lengths are the defaults"
    yield f"{failed_share:.0%} of the rollouts fail and are taught from a hint"
    if config.model.device == "cpu":
        yield "overhead is not counted on the CPU"
    else:
        yield "overhead is CUDA's context (0.6 GiB) and 8 % for its allocator: priors, not measured"
    if config.rollout.backend == "vllm":
        yield "vLLM's share of the GPU is not counted"


def _total(held: Counter[str], *added: Memory) -> Memory:
    return Memory(**sum((Counter(msgspec.structs.asdict(part)) for part in added), held))


def _of_a_step(
    counted: Sequence[Counted], works: Sequence[Work], micro_batches: int
) -> dict[str, int]:
    """Each channel's FLOPs: the mean of the kinds of step, of all micro batches."""
    total: Counter[str] = Counter()
    for (_, flops), work in zip(counted, works, strict=True):
        total["grpo"] += flops["grpo"]
        total["sdpo"] += flops["sdpo"]
        if work.pairs:
            total["replay"] += round(flops["replay"] * work.mean_pairs / work.pairs)
    return {channel: flops * micro_batches // len(works) for channel, flops in total.items()}


def _token_counter(folder: Path) -> CountTokens:
    """The model's own tokenizer where its file is there; else a guess by characters."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return by_characters
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001  # the Rust library raises nothing narrower
        return by_characters
    return lambda text: len(tokenizer.encode(text).ids)


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return count


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m composer_engine.probe",
        description="What a step of this run will take: one JSON object on stdout, in bytes and "
        "FLOPs. Nothing is trained, and no weights are needed.",
    )
    parser.add_argument("--config", type=Path, required=True, help="a .toml, .yaml or .json file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override one field"
    )
    parser.add_argument(
        "--failed-share",
        type=_share,
        default=1.0,
        metavar="0..1",
        help="rollouts that fail and are taught from a hint (default: 1, the most there can be)",
    )
    parser.add_argument(
        "--processes", type=_count, default=1, metavar="N", help="that share a step (default: 1)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Print the probe of a run; the value is the exit status."""
    options = _parser().parse_args(arguments)
    os.environ.update(_OFFLINE)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # It logs, with its traceback, every error that it raises.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    try:
        config = load(file=options.config, settings=options.set)
        found = probe(config, failed_share=options.failed_share, processes=options.processes)
    except (ConfigError, SetupError) as error:
        failed = failure_of(error)
        said = filter(None, (failed.message, failed.hint))
        complain("composer_engine.probe: " + "\n  ".join(said))
        return 2
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return 0


if __name__ == "__main__":
    gc.disable()  # a fifth of the time goes there, and the process ends with its one answer
    sys.exit(main())
