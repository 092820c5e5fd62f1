"""The launch form's contents, apart from any widget."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from composer_engine.config import (
    FIELDS,
    ConfigError,
    RunConfig,
    build,
    differences,
    field_text,
    get_field,
    parse_field,
)
from composer_engine.config_file import Value
from composer_tui.pricing.catalog import UnknownGpu, parse_gpu
from composer_tui.runs.folder import Target
from composer_tui.runs.sanitise import clean

TARGETS: dict[str, Target] = {"local": "local", "modal": "modal", "rehearsal": "rehearsal"}

# What most launches change. Everything else is one key away, under "advanced".
ESSENTIALS = (
    "name",
    "model.path",
    "model.device",
    "data.path",
    "rollout.prompts_per_step",
    "rollout.completions_per_prompt",
    "rollout.max_completion_tokens",
    "loss.sdpo_weight",
    "loss.replay_weight",
    "optimizer.steps",
    "optimizer.learning_rate",
    "checkpoint.every_steps",
)
# What most launches on Modal change; there only for those.
CLOUD_ESSENTIALS = ("modal.gpu", "modal.timeout_seconds", "modal.cap_usd", "modal.lease_minutes")
ADVANCED = tuple(path for path in FIELDS if path not in ESSENTIALS + CLOUD_ESSENTIALS)


def sections(paths: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The fields in groups of one section, in the order in which the sections first appear."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(FIELDS[path].section or "run", []).append(path)
    return list(groups.items())


def label(path: str) -> str:
    """A field's name as the form shows it, within its section."""
    return path.rpartition(".")[2].replace("_", " ")


class Checked(NamedTuple):
    """What a draft means: a run, or what is wrong with each field ('' for the whole)."""

    config: RunConfig | None
    errors: Mapping[str, str]


@dataclass(frozen=True)
class Draft:
    """A preset and what was typed over it, and where it shall run. ``texts`` holds every field."""

    preset: str
    base: RunConfig
    texts: Mapping[str, str]
    target: Target = "local"

    @classmethod
    def of(cls, preset: str, base: RunConfig, target: Target = "local") -> "Draft":
        """A preset as it is."""
        # A preset is a file that someone may have sent: its text goes to the terminal too.
        texts = {path: clean(field_text(get_field(base, path))) for path in FIELDS}
        return cls(preset, base, MappingProxyType(texts), target)

    def to(self, target: Target) -> "Draft":
        """The same run elsewhere."""
        return replace(self, target=target)

    def typed(self, path: str, text: str) -> "Draft":
        """The draft with another text in a field."""
        return replace(self, texts=MappingProxyType({**self.texts, path: text}))

    def is_changed(self, path: str) -> bool:
        """Whether a field says something else than the preset."""
        try:
            return bool(parse_field(path, self.texts[path]) != get_field(self.base, path))
        except ConfigError:
            return True

    def checked(self) -> Checked:
        """Every field on its own; then, when all are right, the rules between them.

        Modal has to have the GPUs that it is asked for; a rehearsal takes any word.
        """
        errors: dict[str, str] = {}
        for path, text in self.texts.items():
            try:
                parse_field(path, text)
            except ConfigError as error:
                errors[path] = error.problems[0].message
        if errors:
            return Checked(None, errors)
        try:
            config = build(Value(path, text, "", is_text=True) for path, text in self.texts.items())
        except ConfigError as error:
            return Checked(None, {problem.field: problem.message for problem in error.problems})
        try:
            for gpu in config.modal.gpu if self.target == "modal" else ():
                parse_gpu(gpu)
        except UnknownGpu as error:
            return Checked(None, {"modal.gpu": str(error)})
        return Checked(config, {})

    def changes(self) -> list[tuple[str, str, str]]:
        """The fields that differ from the preset: path, the preset's text, the draft's."""
        config = self.checked().config
        if config is not None:
            return [
                (path, field_text(old), field_text(new))
                for path, old, new in differences(config, self.base)
            ]
        return [
            (path, field_text(get_field(self.base, path)), text)
            for path, text in self.texts.items()
            if self.is_changed(path)
        ]
