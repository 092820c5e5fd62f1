"""What a run is asked to do: the schema, its presets, and one clear line for each mistake.

A configuration is plain nested tables until the very end: a preset, a file and ``a.b=c`` settings
are laid over each other, each value remembering where it came from, and only then is the whole
turned into a frozen `RunConfig`. So every error can say which file and line, or which setting.
"""

import contextlib
import difflib
import hashlib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from composer_engine.config_file import ConfigSyntaxError, FileKind, Table, Value, read_table

_SHOWN = 60  # characters of a wrong value
BUILTIN = "builtin"
_NO_GPU = ("none", "cpu", "")
_NAME_CHARACTERS = "[A-Za-z0-9._-]"
_NAME_RULE = "letters, digits, '.', '_' and '-', a letter or digit first"
_POINT_ZERO = re.compile(r"\.0$")

Text = Annotated[str, Meta(max_length=4096)]
Count = Annotated[int, Meta(ge=1, le=10**9)]
Weight = Annotated[float, Meta(ge=0)]
Unit = Annotated[float, Meta(ge=0, le=1)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelConfig(_Section, frozen=True, kw_only=True):
    path: Annotated[
        Text, Meta(description="folder of a Hugging Face causal LM, or 'builtin' for the tiny one")
    ] = BUILTIN
    dtype: Annotated[Literal["float32", "bfloat16"], Meta(description="type of the weights")] = (
        "float32"
    )
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="auto takes CUDA where there is one")
    ] = "auto"
    lora_rank: Annotated[
        int, Meta(ge=0, le=1024, description="rank of a LoRA adapter; 0 trains all weights")
    ] = 0
    lora_alpha: Annotated[float, Meta(gt=0, description="scale of the LoRA adapter")] = 16.0
    gradient_checkpointing: Annotated[
        bool, Meta(description="recompute activations: less memory, more time")
    ] = False


class DataConfig(_Section, frozen=True, kw_only=True):
    path: Annotated[
        Text, Meta(description="JSONL file of prompts, or 'builtin' for the toy arithmetic")
    ] = BUILTIN
    max_rows: Annotated[int, Meta(ge=0, description="read at most so many rows; 0 reads all")] = 0


class RolloutConfig(_Section, frozen=True, kw_only=True):
    prompts_per_step: Annotated[Count, Meta(description="prompts a step")] = 4
    completions_per_prompt: Annotated[
        int, Meta(ge=2, description="completions a prompt: the group of GRPO's advantage")
    ] = 8
    max_completion_tokens: Annotated[Count, Meta(description="tokens a completion at most")] = 256
    temperature: Annotated[float, Meta(gt=0, description="sampling temperature")] = 1.0


class LossConfig(_Section, frozen=True, kw_only=True):
    sdpo_weight: Annotated[
        Weight, Meta(description="weight of self-distillation from hints; 0 turns it off")
    ] = 0.1
    replay_weight: Annotated[
        Weight, Meta(description="weight of trace-replay DPO; 0 turns it off")
    ] = 0.05
    dpo_beta: Annotated[
        float, Meta(gt=0, description="DPO's own beta: how far from the reference")
    ] = 0.1
    jsd_beta: Annotated[
        Unit, Meta(description="SDPO's divergence: 0 forward KL, 1 reverse KL, between: JSD")
    ] = 0.5
    replay_pairs: Annotated[Count, Meta(description="preference pairs replayed a step")] = 8


class HintConfig(_Section, frozen=True, kw_only=True):
    success_reward: Annotated[
        float, Meta(description="a rollout with at least this reward succeeded")
    ] = 1.0
    feedback_template: Annotated[
        Text,
        Meta(
            min_length=1,
            description="the teacher's prompt from a row's hint: {prompt} and {hint}",
        ),
    ] = "{prompt}\n\nFeedback on an earlier attempt: {hint}\n\n"
    sibling_template: Annotated[
        Text,
        Meta(
            min_length=1,
            description="the teacher's prompt from a successful sibling: {prompt}, {solution}",
        ),
    ] = "{prompt}\n\nA correct solution: {solution}\n\n"


class OptimizerConfig(_Section, frozen=True, kw_only=True):
    steps: Annotated[Count, Meta(description="optimizer steps")] = 150
    learning_rate: Annotated[float, Meta(gt=0, lt=1, description="peak learning rate")] = 1e-6
    warmup_steps: Annotated[int, Meta(ge=0, description="steps of linear warm-up")] = 0
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], Meta(description="learning rate after warm-up")
    ] = "constant"
    weight_decay: Annotated[Weight, Meta(description="AdamW's weight decay")] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0, description="clip the gradient to this norm")] = 1.0
    micro_batches: Annotated[
        Count, Meta(description="split a step's completions into so many backward passes")
    ] = 1
    seed: Annotated[int, Meta(ge=0, lt=2**32, description="seed of sampling and data order")] = 0


class CheckpointConfig(_Section, frozen=True, kw_only=True):
    every_steps: Annotated[
        int, Meta(ge=0, description="save every so many steps; 0 saves at the end only")
    ] = 50
    keep: Annotated[Count, Meta(description="checkpoints kept")] = 2


class SafetyConfig(_Section, frozen=True, kw_only=True):
    non_finite_patience: Annotated[
        Count, Meta(description="non-finite steps in a row that end the run")
    ] = 3


class ReportConfig(_Section, frozen=True, kw_only=True):
    samples_every_steps: Annotated[
        int, Meta(ge=0, description="show a rollout every so many steps; 0 shows none")
    ] = 10
    memory_every_seconds: Annotated[
        float, Meta(ge=0.1, description="seconds between memory samples")
    ] = 1.0


class LocalConfig(_Section, frozen=True, kw_only=True):
    on_disconnect: Annotated[
        Literal["keep", "stop"],
        Meta(description="when the program that launched the run dies: keep training, or stop"),
    ] = "keep"
    stop_grace_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="time to save after a stop before SIGTERM")
    ] = 30.0


ModalName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class ModalConfig(_Section, frozen=True, kw_only=True):
    gpu: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9!+-]{1,32}(:[0-9]{1,2})?$")], ...],
        Meta(
            max_length=8,
            description="H100, or H100:2 for two; several: the first to be had; none: CPU only",
        ),
    ] = ("L4",)
    cpu_cores: Annotated[
        float, Meta(gt=0, le=64, description="physical cores reserved (more may be used, and cost)")
    ] = 4.0
    memory_mib: Annotated[int, Meta(ge=128, le=2**20, description="host memory reserved, MiB")] = (
        16384
    )
    timeout_seconds: Annotated[
        int, Meta(ge=1, le=86400, description="an attempt longer than this is ended by Modal")
    ] = 3600
    startup_timeout_seconds: Annotated[
        int, Meta(ge=1, le=86400, description="time for a container to come up")
    ] = 1200
    retries: Annotated[
        int, Meta(ge=0, le=10, description="new attempts after one that crashed; each costs anew")
    ] = 0
    region: Annotated[
        str,
        Meta(pattern=r"^[a-z0-9-]{0,32}$", description="such as us or us-west; costs 1.5 to 1.75x"),
    ] = ""
    cap_usd: Annotated[
        float, Meta(gt=0, le=1e6, description="dollars at which the run saves and ends itself")
    ] = 5.0
    lease_minutes: Annotated[
        float,
        Meta(gt=0, le=60 * 24 * 30, description="after this it saves and ends, unless extended"),
    ] = 120.0
    stall_minutes: Annotated[
        float, Meta(gt=0, le=60 * 24, description="so long without a step: save and end")
    ] = 15.0
    stop_grace_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="time to save after a graceful stop")
    ] = 60.0
    secrets: Annotated[
        tuple[ModalName, ...], Meta(description="Modal secrets, attached where they exist")
    ] = ()
    environment: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9._-]{0,63}$", description="Modal environment; '' the default"),
    ] = ""
    runs_volume: Annotated[ModalName, Meta(description="volume that keeps runs")] = "composer-runs"
    cache_volume: Annotated[ModalName, Meta(description="volume that keeps the HF cache")] = (
        "composer-cache"
    )


class RunConfig(_Section, frozen=True, kw_only=True):
    """One run, whole. Every field has a default, so a preset names only what it changes."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            description="letters, digits, '.', '_' and '-'; the run's folder begins with it",
        ),
    ] = "run"
    tags: Annotated[
        tuple[Annotated[str, Meta(max_length=64, pattern="^[^,]*$")], ...],
        Meta(description="your own labels, without commas"),
    ] = ()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    hints: HintConfig = HintConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    safety: SafetyConfig = SafetyConfig()
    report: ReportConfig = ReportConfig()
    local: LocalConfig = LocalConfig()
    modal: ModalConfig = ModalConfig()


class ConfigProblem(NamedTuple):
    """One mistake: ``field`` is dotted ('' for the whole), ``where`` a file:line or a setting."""

    field: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        named = self.where == f"--set {self.field}"
        parts = (self.where, "" if named else self.field, self.message)
        return ": ".join(part for part in parts if part)


class ConfigError(ValueError):
    """A configuration that cannot be run; ``problems`` is never empty."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Field(NamedTuple):
    """One leaf of the schema, as a form shows it.

    ``choices`` is empty for anything but a Literal and a bool.
    """

    path: str
    type: Any
    default: object
    description: str
    choices: tuple[str, ...]

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]


def _strip(annotation: Any) -> tuple[Any, str]:
    """The bare type and the outermost description of an annotation."""
    description = ""
    while get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        for meta in metadata:
            if isinstance(meta, Meta) and meta.description:
                description = meta.description
    return annotation, description


def _leaves(section: type[msgspec.Struct], prefix: str) -> Iterator[Field]:
    hints = get_type_hints(section, include_extras=True)
    for info in msgspec.structs.fields(section):
        annotation = hints[info.name]
        bare, description = _strip(annotation)
        path = prefix + info.name
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            yield from _leaves(bare, path + ".")
            continue
        choices: tuple[str, ...] = ()
        if get_origin(bare) is Literal:
            choices = tuple(map(str, get_args(bare)))
        elif bare is bool:
            choices = ("true", "false")
        yield Field(path, annotation, info.default, description, choices)


FIELDS: Mapping[str, Field] = types.MappingProxyType(
    {field.path: field for field in _leaves(RunConfig, "")}
)
"""Every leaf of `RunConfig` by its dotted path, in the order of the schema."""


def get_field(config: RunConfig, path: str) -> Any:
    """The value at a dotted path of `FIELDS`."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def field_text(value: object) -> str:
    """A leaf's value as a person would type it; `parse_field` reads it back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def parse_field(path: str, text: str) -> Any:
    """The value that ``text`` means for a field. Raises `ConfigError` with one problem."""
    field = FIELDS.get(path)
    if field is None:
        raise ConfigError([ConfigProblem(path, _unknown_field(path))])
    bare, _ = _strip(field.type)
    value: object = text.strip()
    if bare is str:
        value = _unescape(text)
    elif get_origin(bare) is tuple:
        value = _parts(text)
    return _convert_leaf(field, value)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _gpus(value: object) -> object:
    """``none`` or ``cpu`` alone, like no word at all, asks for no GPU; a file may have one word."""
    asked = _parts(value) if isinstance(value, str) else value
    if isinstance(asked, list | tuple) and asked:
        words = [str(word).strip().lower() for word in asked]
        if all(word in _NO_GPU for word in words):
            return []
        if any(word in _NO_GPU for word in words):
            message = f"{', '.join(map(str, asked))}: none means CPU only, and stands alone"
            raise ConfigError([ConfigProblem("modal.gpu", message)])
    return asked


def _unescape(text: str) -> str:
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")


def _convert_leaf(field: Field, value: object, *, strict: bool = False) -> Any:
    """``strict``: the value is typed already: ``1`` may stand for ``1.0``, ``"1"`` may not."""
    if field.path == "modal.gpu":
        value = _gpus(value)
    try:
        converted = msgspec.convert(value, field.type, strict=strict)
    except msgspec.ValidationError as error:
        message = _plain(str(error), field, value)
        raise ConfigError([ConfigProblem(field.path, message)]) from None
    if isinstance(converted, float) and not math.isfinite(converted):
        message = f"expected a number that is finite, not {converted}"
        raise ConfigError([ConfigProblem(field.path, message)])
    return converted


def _plain(message: str, field: Field, value: object) -> str:
    """msgspec's words, in ours: what is expected, and what was found."""
    shown = ", ".join(map(repr, value)) if isinstance(value, list | tuple) else repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
    if field.choices:
        return f"expected one of {', '.join(field.choices)}, not {shown}"
    expected = re.split(" - at |, got ", message, maxsplit=1)[0]
    expected = expected[:1].lower() + expected[1:]
    for theirs, ours in (
        ("`int`", "a whole number"),
        ("`float`", "a number"),
        ("`bool`", "true or false"),
        ("`str`", "text"),
        ("`array`", "a list"),
    ):
        expected = expected.replace(theirs, ours)
    if "regex" in message:
        rule = _NAME_RULE if _NAME_CHARACTERS in message else field.description
        return f"cannot be {shown}: {rule}"
    return f"{re.sub(_POINT_ZERO, '', expected)}, not {shown or 'nothing'}"


def _unknown_field(path: str) -> str:
    if inside := _fields_of(path):
        return f"is a section; its fields are {', '.join(inside)}"
    section, _, leaf = path.rpartition(".")
    inside = _fields_of(section)
    near = [f"{section}.{name}" for name in difflib.get_close_matches(leaf, inside, n=1)]
    near = near or [name for name in FIELDS if name.rpartition(".")[2] == leaf]
    if not inside:
        near = near or difflib.get_close_matches(path, [*FIELDS], n=1)
    if near:
        return f"there is no such field; did you mean {near[0]}?"
    return "there is no such field" + (
        f"; those of {section} are {', '.join(inside)}" if inside else ""
    )


def _fields_of(section: str) -> list[str]:
    return [name.removeprefix(f"{section}.") for name in FIELDS if name.startswith(f"{section}.")]


def build(values: Iterable[Value]) -> RunConfig:
    """The run that the values ask for, later ones over earlier ones.

    Raises `ConfigError` with every problem found, each with the place its value came from.
    """
    problems: list[ConfigProblem] = []
    tree: dict[str, Any] = {}
    where: dict[str, str] = {}
    for value in values:
        field = FIELDS.get(value.path)
        if field is None:
            problems.append(ConfigProblem(value.path, _unknown_field(value.path), value.where))
            continue
        where[value.path] = value.where
        try:
            if value.is_text:
                leaf = parse_field(value.path, value.data)
            else:
                leaf = _convert_leaf(field, value.data, strict=True)
        except ConfigError as error:
            problems += [problem._replace(where=value.where) for problem in error.problems]
            continue
        *sections, name = value.path.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = leaf
    if problems:
        raise ConfigError(problems)
    config = msgspec.convert(tree, RunConfig)
    problems = [p._replace(where=where.get(p.field, "")) for p in _contradictions(config)]
    if problems:
        raise ConfigError(problems)
    return config


def remembered(tree: object) -> RunConfig:
    """A run as another version wrote it: what this one does not know, or refuses, is passed over.

    For reading what ran, never for running it.
    """
    kept: dict[str, Any] = {}
    for field in FIELDS.values():
        value: Any = tree
        *sections, name = field.path.split(".")
        for section in (*sections, name):
            value = value.get(section) if isinstance(value, Mapping) else None
        if value is None:
            continue
        table = kept
        for section in sections:
            table = table.setdefault(section, {})
        with contextlib.suppress(ConfigError):
            table[name] = _convert_leaf(field, value, strict=True)
    return msgspec.convert(kept, RunConfig)


def _contradictions(config: RunConfig) -> Iterator[ConfigProblem]:
    """Rules that bind several fields."""
    rollout, optimizer = config.rollout, config.optimizer
    completions = rollout.prompts_per_step * rollout.completions_per_prompt
    if completions % optimizer.micro_batches:
        yield ConfigProblem(
            "optimizer.micro_batches",
            f"must divide the {completions} completions of a step "
            f"(prompts_per_step x completions_per_prompt), and {optimizer.micro_batches} does not",
        )
    if optimizer.warmup_steps > optimizer.steps:
        yield ConfigProblem(
            "optimizer.warmup_steps",
            f"{optimizer.warmup_steps} is more than the run's {optimizer.steps} steps",
        )
    for name, parts in (
        ("hints.feedback_template", ("prompt", "hint")),
        ("hints.sibling_template", ("prompt", "solution")),
    ):
        missing = [part for part in parts if "{" + part + "}" not in get_field(config, name)]
        if missing:
            yield ConfigProblem(
                name, "must hold " + " and ".join(f"{{{part}}}" for part in missing)
            )
    if config.model.path == BUILTIN and config.model.lora_rank:
        yield ConfigProblem("model.lora_rank", "the builtin model is too small for an adapter: 0")


def preset_names() -> list[str]:
    """The presets that ship with the program, by name."""
    return [entry.name.removesuffix(".toml") for entry in sorted(_presets(), key=lambda e: e.name)]


def _presets() -> Iterator[Any]:
    folder = resources.files("composer_engine") / "presets"
    return (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_values(name: str) -> Table:
    """A shipped preset's values. Raises `ConfigError` for a name that is none."""
    for entry in _presets():
        if entry.name == f"{name}.toml":
            return read_table(entry.read_text("utf-8"), "toml", f"preset {name}")
    message = f"there is no preset {name!r}; there are: {', '.join(preset_names())}"
    raise ConfigError([ConfigProblem("", message)])


def file_values(path: Path) -> Table:
    """The values of a TOML, YAML or JSON file. Raises `ConfigError`."""
    kinds: dict[str, FileKind] = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "yaml"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        message = f"a configuration is a .toml, .yaml or .json file, and {path.name} is none"
        raise ConfigError([ConfigProblem("", message, str(path))])
    try:
        return read_table(path.read_text("utf-8"), kind, str(path))
    except OSError as error:
        raise ConfigError(
            [ConfigProblem("", f"cannot read it: {error.strerror}", str(path))]
        ) from None
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 (byte {error.start})"
        raise ConfigError([ConfigProblem("", message, str(path))]) from None
    except ConfigSyntaxError as error:
        raise ConfigError([ConfigProblem("", error.message, error.where)]) from None


def setting_values(settings: Iterable[str]) -> Table:
    """Values of ``a.b=c`` settings, as the command line gives them. Raises `ConfigError`."""
    values: Table = []
    problems: list[ConfigProblem] = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        path = path.strip()
        if equals and path:
            values.append(Value(path, text, f"--set {path}", is_text=True))
        else:
            lacks = "names no field" if equals else "has no '='"
            message = f"a setting is section.field=value, and {setting!r} {lacks}"
            problems.append(ConfigProblem("", message, "--set"))
    if problems:
        raise ConfigError(problems)
    return values


def load(
    preset: str | None = None, file: Path | None = None, settings: Iterable[str] = ()
) -> RunConfig:
    """A preset, then a file, then settings, each over the one before. Raises `ConfigError`."""
    values: Table = []
    if preset is not None:
        values += preset_values(preset)
    if file is not None:
        values += file_values(file)
    return build([*values, *setting_values(settings)])


def differences(config: RunConfig, base: RunConfig) -> list[tuple[str, object, object]]:
    """The fields in which two runs differ: (path, base's value, config's value)."""
    pairs = ((path, get_field(base, path), get_field(config, path)) for path in FIELDS)
    return [pair for pair in pairs if pair[1] != pair[2]]


def to_toml(config: RunConfig) -> str:
    """The whole run as TOML that `load` reads back to an equal run."""
    import tomli_w

    return tomli_w.dumps(msgspec.to_builtins(config), multiline_strings=False)


def config_hash(config: RunConfig) -> str:
    """Sixteen hex digits that are equal for equal runs."""
    canonical = msgspec.json.encode(config, order="sorted")
    return hashlib.sha256(canonical).hexdigest()[:16]
