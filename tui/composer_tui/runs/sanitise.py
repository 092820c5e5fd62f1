"""The one place where text from outside becomes text that a terminal may be given.

A terminal obeys what it is sent: an escape sequence in a log line can move the cursor, rename the
window or write the clipboard. So every string is cleaned once, on its way in.
"""

import re
from typing import Any, TypeVar

import msgspec

from composer_engine.protocol import Event, Logged, RunFailed, SampleGenerated, Unrecognized

MAX_BLOCK = 1 << 16  # characters
_BLOCKS = frozenset(
    {
        (SampleGenerated, "prompt"),
        (SampleGenerated, "completion"),
        (RunFailed, "detail"),
        (Logged, "message"),
    }
)
_TAB = "    "

# Sequences before single characters. Possessive: a hostile line costs its length, not its square.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?"  # CSI
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*+(?:\x07|\x1b\\|\x9c)?"  # strings
    r"|\x1b[ -/]*+[0-~]?"  # the rest: two or three characters
)
# What may stay is what prints, and what joins: zero-width joiners build emoji and Indic letters.
_BROKEN = re.compile("[\ud800-\udfff]")
_SPACES = re.compile("[\n\v\f\x1c-\x1e\x85\u2028\u2029]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_T = TypeVar("_T", bound=Event | Unrecognized)
_S = TypeVar("_S", bound=msgspec.Struct)


def clean(text: str) -> str:
    """One line with no control character in it; a carriage return overwrites, as on a terminal."""
    if text.isprintable():
        return text
    text = text.rstrip("\r\n")
    text = text[text.rfind("\r") + 1 :]
    text = _SEQUENCE.sub("", text).replace("\t", _TAB)
    text = _SPACES.sub(" ", text)
    text = _UNPRINTABLE.sub("", text)
    return _BROKEN.sub("\ufffd", text)


def clean_block(text: str) -> str:
    """Clean lines, their newlines kept; cut to `MAX_BLOCK` characters and marked where cut."""
    block = text[: MAX_BLOCK + 1]
    if not block.isprintable():
        block = "\n".join(map(clean, block.split("\n")))
    return block if len(text) <= MAX_BLOCK >= len(block) else block[: MAX_BLOCK - 1] + "…"


def clean_event(event: _T) -> _T:
    """The event with every string in it clean. What a person wrote in lines stays in lines."""
    return _clean_struct(event)


def _clean_struct(struct: _S) -> _S:
    changes: dict[str, Any] = {}
    for name in struct.__struct_fields__:
        before = getattr(struct, name)
        is_block = isinstance(before, str) and (type(struct), name) in _BLOCKS
        after = clean_block(before) if is_block else _clean_value(before)
        if after is not before:
            changes[name] = after
    return msgspec.structs.replace(struct, **changes) if changes else struct


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, msgspec.Struct):
        return _clean_struct(value)
    if isinstance(value, dict):
        return {clean(key): item for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_clean_value, value))
    return value
