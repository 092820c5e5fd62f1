r"""Verifiable rewards: pure functions of a completion, chosen by a row's ``reward`` field.

| spec | reward is 1.0 when the completion, stripped of outer white space, ... |
|---|---|
| ``{"kind": "exact"}`` | equals the row's ``answer``, stripped |
| ``{"kind": "contains", "text": "..."}`` | holds the text (the row's ``answer`` without it) |
| ``{"kind": "number", "tolerance": 0.0}`` | has a last number within the tolerance of ``answer`` |
| ``{"kind": "regex", "pattern": "..."}`` | matches the pattern somewhere |

Anything else is 0.0. ``exact`` and ``contains`` take ``"ignore_case": true``. A row with an
``answer`` and no ``reward`` is ``exact``. Rewards are finite by construction.
"""

import math
import re
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

# Python's regex engine cannot be interrupted, and a bad pattern is exponential in the length of
# what it searches: patterns see this many characters of a completion, from its end.
REGEX_CHARACTERS = 2_000
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
# A group that is repeated without bound and repeats without bound inside: (a+)+, (\d*)*, (.+){2,}
_NESTED_REPEAT = re.compile(r"\((?:[^()\\]|\\.)*[+*](?:[^()\\]|\\.)*\)(?:[+*]|\{\d*,\})")

Reward = Callable[[str], float]


class _Spec(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    pass


class Exact(_Spec, frozen=True, tag="exact"):
    ignore_case: bool = False


class Contains(_Spec, frozen=True, tag="contains"):
    text: Annotated[str, Meta(min_length=1)] | None = None
    ignore_case: bool = False


class Number(_Spec, frozen=True, tag="number"):
    tolerance: Annotated[float, Meta(ge=0)] = 0.0


class Regex(_Spec, frozen=True, tag="regex"):
    pattern: Annotated[str, Meta(min_length=1, max_length=1_000)]


RewardSpec = Exact | Contains | Number | Regex


def make_reward(spec: RewardSpec, answer: str | None) -> Reward:
    """The reward that ``spec`` means for a row. Raises `ValueError` with one clear line."""
    match spec:
        case Exact():
            return _exact(_needed(answer, "exact"), ignore_case=spec.ignore_case)
        case Contains():
            text = spec.text or _needed(answer, "contains")
            return _contains(text, ignore_case=spec.ignore_case)
        case Number():
            return _number(_needed(answer, "number"), spec.tolerance)
        case Regex():
            return _regex(spec.pattern)


def last_number(text: str) -> float | None:
    """The last number in a text, thousands separators allowed; ``None`` without a finite one."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    value = float(found[-1].replace(",", ""))
    return value if math.isfinite(value) else None


def _needed(answer: str | None, kind: str) -> str:
    if answer is None or not answer.strip():
        raise ValueError(f"reward {kind!r} needs the row's 'answer'")
    return answer.strip()


def _folded(text: str, *, ignore_case: bool) -> str:
    return text.strip().casefold() if ignore_case else text.strip()


def _exact(answer: str, *, ignore_case: bool) -> Reward:
    wanted = _folded(answer, ignore_case=ignore_case)
    return lambda completion: float(_folded(completion, ignore_case=ignore_case) == wanted)


def _contains(text: str, *, ignore_case: bool) -> Reward:
    wanted = text.casefold() if ignore_case else text
    return lambda completion: float(wanted in _folded(completion, ignore_case=ignore_case))


def _number(answer: str, tolerance: float) -> Reward:
    wanted = last_number(answer)
    if wanted is None:
        raise ValueError(f"reward 'number' needs a number in 'answer', not {answer!r}")

    def reward(completion: str) -> float:
        value = last_number(completion)
        return float(value is not None and abs(value - wanted) <= tolerance)

    return reward


def _regex(pattern: str) -> Reward:
    if _NESTED_REPEAT.search(pattern):
        raise ValueError(
            f"reward 'regex' has a repeat inside a repeat, which can take for ever: {pattern!r}"
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"reward 'regex' does not compile: {error}: {pattern!r}") from None
    return lambda completion: float(
        compiled.search(completion.strip()[-REGEX_CHARACTERS:]) is not None
    )
