"""Rewards that a person wrote: a function, named by its file or its module."""

import ast
import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from composer_engine.config_file import expanded

# What a reward becomes: more than this is infinite there.
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


class RewardError(Exception):
    """What a person's function did instead of giving a finite number."""

    def __init__(self, function: str, message: str) -> None:
        self.function, self.message = function, message
        super().__init__(f"{function}: {message}")


@dataclass(frozen=True, slots=True)
class PythonReward:
    """The reward of one row. Calling it raises `RewardError` and nothing else."""

    function: Callable[..., Any]
    name: str
    prompt: str
    answer: str | None

    def __call__(self, completion: str) -> float:
        try:
            given = self.function(completion, prompt=self.prompt, answer=self.answer)
            is_number = not isinstance(given, str | bytes) and hasattr(given, "__float__")
            value = float(given) if is_number else math.nan
        except (Exception, SystemExit) as error:  # theirs, so it may be anything
            raise RewardError(self.name, _named(error)) from error
        if not math.isfinite(value):
            raise RewardError(self.name, f"gave {_shown(given)}, which is no finite number")
        if abs(value) > _LARGEST_FLOAT32:
            raise RewardError(self.name, f"gave {_shown(given)}, which is not finite as a float32")
        return value


def file_of(function: str) -> tuple[str, str] | None:
    """The file and the name of ``path/to/file.py:name``; ``None`` for a module's function."""
    place, _, name = function.rpartition(":")
    return (place, name) if place.endswith(".py") else None


def check_place(function: str) -> None:
    """Raises `ValueError` for a function that, without running anything, is seen to be missing."""
    place, colon, name = function.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(
            f"reward 'python' names path/to/file.py:function or package.module:function, "
            f"not {function!r}"
        )
    if file_of(function) is None:
        if not all(part.isidentifier() for part in place.split(".")):
            raise ValueError(f"reward 'python': {place!r} is neither a .py file nor a module")
        return
    try:
        tree = ast.parse(expanded(place).read_bytes())
    except OSError as error:
        raise ValueError(f"reward 'python': cannot read {place}: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"reward 'python': {place} is not Python: {error}") from None
    if not {name, "*"} & _names(tree):
        raise ValueError(f"reward 'python': {place} has no {name!r} at its top level")


@functools.cache
def load_function(function: str) -> Callable[..., Any]:
    """The function itself; its module is imported once. Raises `ValueError`."""
    check_place(function)
    place, _, name = function.rpartition(":")
    try:
        module = importlib.import_module(place) if file_of(function) is None else _of_file(place)
    except (Exception, SystemExit) as error:  # theirs, so it may be anything
        raise ValueError(f"reward 'python': {place} cannot be imported: {_named(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"reward 'python': {place} has no function {name!r}")  # noqa: TRY004
    try:
        inspect.signature(found).bind("", prompt="", answer=None)
    except TypeError as error:
        raise ValueError(
            f"reward 'python': {function} must take (completion, *, prompt, answer): {error}"
        ) from None
    except ValueError:  # a builtin that does not tell: it is seen when it is called
        pass
    return found  # type: ignore[no-any-return]


def _of_file(place: str) -> Any:
    path = expanded(place).resolve()
    name = f"composer_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look
    spec.loader.exec_module(module)
    return module


def _names(tree: ast.Module) -> set[str]:
    """What the module may define: anything that is bound anywhere outside a function or class."""
    found: set[str] = set()
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        waiting += ast.iter_child_nodes(node)
    return found


def _named(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return type(error).__name__ + (f": {first}" if first else "")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # theirs, too
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004  # characters
