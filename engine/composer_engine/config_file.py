"""Configuration text to flat values that remember their file and line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    import yaml


def expanded(path: str) -> Path:
    """A path with its ``~``; one of a user that there is not stays as it is, and is not found."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


FileKind = Literal["toml", "yaml"]
_DEEPEST = 2


class Value(NamedTuple):
    """One leaf: dotted path, data, and where it was written (``file:line``, or a setting).

    ``is_text``: the data is raw text from a command line or a form, still to be typed.
    """

    path: str
    data: Any
    where: str
    is_text: bool = False


Table = list[Value]


class ConfigSyntaxError(ValueError):
    """A file that is not TOML or YAML at all."""

    def __init__(self, message: str, where: str) -> None:
        self.message, self.where = message, where
        super().__init__(f"{where}: {message}")


def read_table(text: str, kind: FileKind, name: str) -> Table:
    """The leaves of a file's text, in file order. Raises `ConfigSyntaxError`."""
    return _read_toml(text, name) if kind == "toml" else _read_yaml(text, name)


def _read_toml(text: str, name: str) -> Table:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        message = re.sub(r" \(at .*\)$", "", str(error))
        raise ConfigSyntaxError(message, f"{name}:{line[1]}" if line else name) from None
    except RecursionError:
        raise ConfigSyntaxError("is nested too deep", name) from None
    lines = _toml_lines(text)
    return [
        Value(path, data, f"{name}:{lines[path]}" if path in lines else name)
        for path, data in _flatten(tree, "")
    ]


def _flatten(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, data in tree.items():
        if isinstance(data, dict):
            yield from _flatten(data, f"{prefix}{key}.")
        else:
            yield prefix + key, data


_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=")


def _toml_lines(text: str) -> dict[str, int]:
    """Line numbers of keys that stand at the start of a line; others fall back to the file."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _unquote(header[1]) + "."
        elif key := _ASSIGNMENT.match(line):
            lines.setdefault(section + _unquote(key[1]), number)
    return lines


def _unquote(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))


def _read_yaml(text: str, name: str) -> Table:
    import yaml  # 10 ms that a TOML user, and the app's first paint, need not wait for

    try:
        # Composed for the line numbers; a scalar is then constructed by the safe schema alone.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return [] if root is None else _yaml_leaves(root, "", name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigSyntaxError(error.problem or "is not YAML", where) from None
    except yaml.YAMLError as error:
        raise ConfigSyntaxError(str(error).splitlines()[0], name) from None
    except RecursionError:
        raise ConfigSyntaxError("is nested too deep", name) from None


def _yaml_leaves(node: yaml.Node, path: str, name: str) -> Table:
    import yaml

    where = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        # No section has sections: a limit here also bounds what nested aliases can unfold to.
        if path.count(".") >= _DEEPEST:
            raise ConfigSyntaxError("is nested too deep", where)
        leaves: Table = []
        seen: set[str] = set()
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigSyntaxError("a field's name must be plain text", where)
            if key.value in seen:
                again = f"{name}:{key.start_mark.line + 1}"
                raise ConfigSyntaxError(f"{key.value} is given twice", again)
            seen.add(key.value)
            leaves += _yaml_leaves(child, f"{path}.{key.value}" if path else key.value, name)
        return leaves
    if not path:
        raise ConfigSyntaxError("expected sections and fields", where)
    return [Value(path, _construct(node, where), where)]


def _construct(node: yaml.Node, where: str) -> Any:
    import yaml

    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node, deep=True)
    except ValueError as error:  # a date that is none, above all
        raise ConfigSyntaxError(str(error), where) from None
    finally:
        loader.dispose()
    # YAML 1.1 reads 1e-5 as text (it wants 1.0e-5); nobody who writes it means text.
    if isinstance(value, str) and isinstance(node, yaml.ScalarNode) and node.style is None:
        try:
            return float(value)
        except ValueError:
            return value
    return value
