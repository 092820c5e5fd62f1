"""Each field of a run on its own: what it is, and what a text or a value means for it."""

import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from composer_engine.schema import DIMENSIONLESS, RunConfig

_SHOWN = 60  # characters of a wrong value
_SHORT_INTEGER = 10**6  # longer ones are written as 1e+09
_NO_GPU = ("none", "cpu", "")
_NAME_CHARACTERS = "[A-Za-z0-9._-]"
_NAME_RULE = "letters, digits, '.', '_' and '-', a letter or digit first"
_POINT_ZERO = re.compile(r"\.0$")


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
    """One leaf of the schema, as a form or a table shows it.

    ``choices`` is empty for anything but a Literal and a bool. ``unit`` is '' for what is no
    number, `DIMENSIONLESS` for a number without one. ``range`` is what is checked, in words.
    ``source`` says whose meaning or default it is.
    """

    path: str
    type: Any
    default: object
    description: str
    choices: tuple[str, ...]
    unit: str
    range: str
    source: str

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def measure(self) -> str:
        """A number's unit and range in a few words, ``tokens, >= 1``; '' for anything else."""
        unit = "" if self.unit == DIMENSIONLESS else self.unit
        return ", ".join(filter(None, (unit, self.range))) if self.unit else ""


def _strip(annotation: Any) -> tuple[Any, list[Meta]]:
    """The bare type of an annotation and what is written on it, the outermost last."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    bare, *metadata = get_args(annotation)
    return bare, [meta for meta in metadata if isinstance(meta, Meta)]


def _leaves(section: type[msgspec.Struct], prefix: str) -> Iterator[Field]:
    hints = get_type_hints(section, include_extras=True)
    for info in msgspec.structs.fields(section):
        annotation = hints[info.name]
        bare, metas = _strip(annotation)
        path = prefix + info.name
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            yield from _leaves(bare, path + ".")
            continue
        described = metas[-1] if metas else Meta()
        extra = described.extra or {}
        yield Field(
            path=path,
            type=annotation,
            default=info.default,
            description=described.description or "",
            choices=_choices(bare),
            unit=extra.get("unit", ""),
            range=_range(bare, metas),
            source=extra.get("source", ""),
        )


def _choices(bare: Any) -> tuple[str, ...]:
    if get_origin(bare) is Literal:
        return tuple(map(str, get_args(bare)))
    return ("true", "false") if bare is bool else ()


def _members(bare: Any) -> tuple[str, ...]:
    """What a list may hold, where that is a choice."""
    return _choices(_strip(get_args(bare)[0])[0]) if get_origin(bare) is tuple else ()


def _range(bare: Any, metas: Iterable[Meta]) -> str:
    """The limits that are checked, in words: ``0 to 1``, ``> 0``, ``at most 128 characters``."""
    if choices := _choices(bare):
        return ", ".join(choices)
    limits: dict[str, Any] = {}
    for meta in metas:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
            limit = getattr(meta, name)
            if limit is not None:
                limits[name] = limit
    if get_origin(bare) is tuple:
        each = _range(*_strip(get_args(bare)[0]))
        count = f"at most {limits['max_length']}" if "max_length" in limits else "any number"
        return f"{count}; each: {each}"
    if bare is str:
        return _text_range(limits)
    if "ge" in limits and "le" in limits:
        return f"{_limit(limits['ge'])} to {_limit(limits['le'])}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    within = [f"{signs[name]} {_limit(limits[name])}" for name in signs if name in limits]
    return " and ".join(within) or "any finite number"


def _text_range(limits: Mapping[str, Any]) -> str:
    if "pattern" in limits:
        return str(limits["pattern"]).strip("^$")
    least = limits.get("min_length", 0)
    return f"{least} to {limits['max_length']} characters"


def _limit(value: float) -> str:
    exact = f"{value:g}"
    return str(value) if float(exact) != value or 1 < value < _SHORT_INTEGER else exact


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
        raise ConfigError([ConfigProblem(path, unknown_field(path))])
    bare, _ = _strip(field.type)
    value: object = text.strip()
    if bare is str:
        value = _unescape(text)
    elif get_origin(bare) is tuple:
        value = _parts(text)
    return convert_leaf(field, value)


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


def convert_leaf(field: Field, value: object, *, strict: bool = False) -> Any:
    """A field's value from data. Raises `ConfigError` with one problem.

    ``strict``: the value is typed already: ``1`` may stand for ``1.0``, ``"1"`` may not.
    """
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
        near = _near([value], field.choices)
        return f"expected one of {', '.join(field.choices)}, not {shown}{near}"
    members = _members(_strip(field.type)[0])
    if members and isinstance(value, list) and len(value) <= len(members):
        near = _near(value, members)
        return f"expected any of {', '.join(members)}, not {shown}{near}"
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


def _near(values: Iterable[object], choices: tuple[str, ...]) -> str:
    """A question whether the first of the values that is none of the choices was one of them."""
    wrong = [str(value) for value in values if value not in choices]
    near = difflib.get_close_matches(wrong[0], choices, n=1, cutoff=0.6) if wrong else []
    return f"; did you mean {near[0]}?" if near else ""


def unknown_field(path: str) -> str:
    """What is wrong with a path that names no field, and which one was probably meant."""
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
