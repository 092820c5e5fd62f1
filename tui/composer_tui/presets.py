"""The presets that ship with the program, and those that a person saved."""

import re
from pathlib import Path

from composer_engine.config import (
    ConfigError,
    ConfigProblem,
    RunConfig,
    build,
    file_values,
    preset_names,
    preset_values,
    to_toml,
)
from composer_engine.config_file import Table
from composer_tui.runs.folder import write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def default_presets_dir() -> Path:
    """Where a person's presets are."""
    import platformdirs

    return platformdirs.user_config_path("composer-tui") / "presets"


class Presets:
    """Presets by name: the shipped ones first, then a person's own."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else default_presets_dir()

    def names(self) -> list[str]:
        """Every name; a person's preset hides a shipped one of the same name."""
        shipped = preset_names()
        return [*shipped, *(name for name in self.own_names() if name not in shipped)]

    def own_names(self) -> list[str]:
        """The names of a person's presets. A file with another kind of name is none."""
        try:
            stems = sorted(path.stem for path in self.folder.glob("*.toml"))
        except OSError:
            return []
        return [stem for stem in stems if _NAME.fullmatch(stem)]

    def values(self, name: str) -> Table:
        """What a preset sets, to be laid under other values. Raises `ConfigError`."""
        if name in self.own_names():
            return file_values(self.folder / f"{name}.toml")
        if name not in self.names():
            message = f"there is no preset {name!r}; there are: {', '.join(self.names())}"
            raise ConfigError([ConfigProblem("", message)])
        return preset_values(name)

    def load(self, name: str) -> RunConfig:
        """Raises `ConfigError`."""
        return build(self.values(name))

    def save(self, name: str, config: RunConfig) -> Path:
        """Write a preset, over one of the same name. Raises `ConfigError` with one problem."""
        if not _NAME.fullmatch(name):
            message = "a preset's name is letters, digits, '.', '_' and '-'"
            raise ConfigError([ConfigProblem("", message)])
        path = self.folder / f"{name}.toml"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, to_toml(config).encode())
        except OSError as error:
            message = f"cannot write {path}: {error.strerror}"
            raise ConfigError([ConfigProblem("", message)]) from None
        return path
