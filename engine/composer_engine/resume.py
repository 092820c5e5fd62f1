"""Where a run goes on: which checkpoint, and whether this configuration may. No torch in here."""

from pathlib import Path
from typing import NamedTuple

from composer_engine.config import ConfigError, ConfigProblem, RunConfig, differences, remembered
from composer_engine.config_file import expanded
from composer_engine.contract import CHECKPOINTS_FOLDER
from composer_engine.failures import SetupError
from composer_engine.protocol import Level, Logged
from composer_engine.seal import Seal, Torn, check_sums, read_seal

AUTO, NONE = "auto", "none"

# What may differ between two attempts: nothing of it is part of a step's arithmetic.
_FREE = frozenset({"name", "tags", "optimizer.steps"})
_FREE_SECTIONS = frozenset({"checkpoint", "report", "safety", "local", "modal"})
# What may differ though it is: the step computes the same numbers another way, up to rounding.
_ROUNDING = frozenset(
    {
        "model.device",
        "model.gradient_checkpointing",
        "model.torch_compile",
        "loss.channel_backward",
        "loss.share_prompts",
        "optimizer.micro_batches",
    }
)


class Checkpoint(NamedTuple):
    """A whole checkpoint. ``name`` is how people are told of it: below its run's folder."""

    folder: Path
    name: str
    seal: Seal

    @property
    def step(self) -> int:
        return self.seal.step


class Choice(NamedTuple):
    """Where to begin: ``checkpoint``, or at step 1; ``said`` tells people which, and why."""

    checkpoint: Checkpoint | None
    said: tuple[Logged, ...] = ()


def choose(root: Path | None, asked: str, *, reads_all: bool = True) -> Choice:
    """What ``--resume`` means: ``auto``, ``none``, or the path of a checkpoint.

    ``auto`` takes the newest whole checkpoint under ``root``, the run's folder, and names those
    that it had to pass over; where there is none the run begins at step 1. Without ``reads_all``
    files are known by their sizes alone, which takes no time. Raises `SetupError` for
    a path that is no checkpoint to go on from, and for ``auto`` without a folder.
    """
    if asked == NONE:
        return Choice(None)
    if asked != AUTO:
        return _chosen(_named(root, asked, reads_all=reads_all), [])
    if root is None:
        raise SetupError("--resume auto looks in the run's folder, and there is no --run-dir")
    said: list[Logged] = []
    found: list[Checkpoint] = []
    for folder in sorted((root / CHECKPOINTS_FOLDER).glob("step-*")):
        name = folder.relative_to(root).as_posix()
        try:
            checkpoint = Checkpoint(folder, name, read_seal(folder))
        except (Torn, OSError) as error:
            said.append(_passed_over(name, error))
            continue
        if checkpoint.seal.resumable:
            found.append(checkpoint)
        else:
            said.append(_line("info", f"passed over {name}: it was taken within a rollout"))
    for checkpoint in sorted(found, key=lambda one: one.seal.order, reverse=True):
        try:
            if reads_all:
                check_sums(checkpoint.folder, checkpoint.seal)
        except (Torn, OSError) as error:
            said.append(_passed_over(checkpoint.name, error))
        else:
            return _chosen(checkpoint, said)
    said.append(_line("info", "there is no checkpoint to resume from: beginning at step 1"))
    return Choice(None, tuple(said))


def check_config(config: RunConfig, checkpoint: Checkpoint) -> list[Logged]:
    """What to tell of a run that goes on under another configuration.

    Raises `ConfigError` for fields that must stay as they were.
    """
    before = remembered(checkpoint.seal.identity.config)
    problems, said = [], []
    for field, then, now in differences(config, before):
        if field in _ROUNDING:
            text = f"{field} was {then} and is {now}: from here on the same run up to rounding"
            said.append(_line("info", text))
        elif not _is_free(field):
            message = f"is {now!r}, and {checkpoint.name} was trained with {then!r}"
            problems.append(ConfigProblem(field, message, "--resume"))
        elif field == "optimizer.steps" and config.optimizer.schedule != "constant":
            text = f"{field} was {then} and is {now}: the learning rate follows the new curve"
            said.append(_line("info", text))
    if problems:
        raise ConfigError(problems)
    return said


def check_loaded(checkpoint: Checkpoint, digests: dict[str, str]) -> None:
    """Raises `SetupError` where what was loaded is not what the checkpoint was trained with.

    ``digests`` are those of `composer_engine.seal.Identity` by name: model, tokenizer, rows.
    What they say of the rows' answers is for `rows_note`.
    """
    identity = checkpoint.seal.identity
    what = {
        "model": "model.path: the model there has other tensors",
        "tokenizer": "model.path: the tokenizer there is another one",
        "rows": "data.path: the rows there are others",
    }
    for name, text in what.items():
        if getattr(identity, name) != digests[name]:
            raise SetupError(
                f"{text} than {checkpoint.name} was trained with",
                "resume with what the run began with, or begin anew with --resume none",
            )


def rows_note(checkpoint: Checkpoint, marks: str) -> list[Logged]:
    """What to tell of rows with the same texts but, say, other answers: ``marks`` are theirs."""
    before = checkpoint.seal.identity.marks
    if not before or before == marks:
        return []
    text = (
        f"data.path: its rows have changed since step {checkpoint.step}: the texts are the same, "
        "and answers or hints are not"
    )
    return [_line("warning", text)]


def processes_note(checkpoint: Checkpoint, processes: int) -> list[Logged]:
    """What to tell of a run that goes on with another number of processes."""
    before = checkpoint.seal.identity.processes
    if before == processes:
        return []
    text = (
        f"{checkpoint.name} was saved by {before} process{'es' if before > 1 else ''} and goes on "
        f"with {processes}: the same data and weights, but other random numbers"
    )
    return [_line("warning", text)]


def _named(root: Path | None, asked: str, *, reads_all: bool) -> Checkpoint:
    folder = expanded(asked)
    if not folder.is_dir() and root is not None and (root / asked).is_dir():
        folder = root / asked
    try:
        seal = read_seal(folder)
        if reads_all:
            check_sums(folder, seal)
    except (Torn, OSError) as error:
        raise SetupError(
            f"--resume {asked}: {_why(error)}",
            "--resume auto takes the newest whole checkpoint of the run's folder",
        ) from None
    if not seal.resumable:
        raise SetupError(
            f"--resume {asked}: it was taken within a rollout, where no run can go on",
            "it can be loaded as a model, with model.path",
        )
    inside = root is not None and folder.resolve().is_relative_to(root.resolve())
    name = folder.resolve().relative_to(root.resolve()).as_posix() if root and inside else asked
    return Checkpoint(folder, name, seal)


def _chosen(checkpoint: Checkpoint, said: list[Logged]) -> Choice:
    line = _line("info", f"resuming from step {checkpoint.step} ({checkpoint.name})")
    return Choice(checkpoint, (*said, line))


def _is_free(field: str) -> bool:
    return field in _FREE or field.partition(".")[0] in _FREE_SECTIONS


def _why(error: Exception) -> str:
    return f"it cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _passed_over(name: str, error: Exception) -> Logged:
    return _line("warning", f"passed over {name}: {_why(error)}")


def _line(level: Level, message: str) -> Logged:
    return Logged(level=level, message=message)
