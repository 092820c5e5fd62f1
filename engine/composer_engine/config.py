"""What a run is asked to do, read: presets, files and settings, and one clear line a mistake.

A configuration is plain nested tables until the very end: a preset, a file and ``a.b=c`` settings
are laid over each other, each value remembering where it came from, and only then is the whole
turned into a frozen `RunConfig`. So every error can say which file and line, or which setting.

The fields themselves are in `composer_engine.schema`, the rules between them in
`composer_engine.rules`.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from composer_engine.config_file import ConfigSyntaxError, FileKind, Table, Value, read_table
from composer_engine.fields import (
    FIELDS,
    ConfigError,
    ConfigProblem,
    Field,
    convert_leaf,
    field_text,
    get_field,
    parse_field,
    unknown_field,
)
from composer_engine.rules import contradictions
from composer_engine.schema import (
    BUILTIN,
    CheckpointConfig,
    DataConfig,
    HintConfig,
    LocalConfig,
    LossConfig,
    ModalConfig,
    ModelConfig,
    OptimizerConfig,
    ReportConfig,
    RolloutConfig,
    RunConfig,
    SafetyConfig,
    looks_like_hub_id,
)

__all__ = [
    "BUILTIN",
    "FIELDS",
    "CheckpointConfig",
    "ConfigError",
    "ConfigProblem",
    "DataConfig",
    "Field",
    "HintConfig",
    "LocalConfig",
    "LossConfig",
    "ModalConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ReportConfig",
    "RolloutConfig",
    "RunConfig",
    "SafetyConfig",
    "build",
    "config_hash",
    "differences",
    "field_text",
    "file_values",
    "get_field",
    "load",
    "looks_like_hub_id",
    "parse_field",
    "preset_names",
    "preset_values",
    "remembered",
    "setting_values",
    "to_toml",
]


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
            problems.append(ConfigProblem(value.path, unknown_field(value.path), value.where))
            continue
        where[value.path] = value.where
        try:
            if value.is_text:
                leaf = parse_field(value.path, value.data)
            else:
                leaf = convert_leaf(field, value.data, strict=True)
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
    problems = [p._replace(where=where.get(p.field, "")) for p in contradictions(config)]
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
            table[name] = convert_leaf(field, value, strict=True)
    return msgspec.convert(kept, RunConfig)


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
