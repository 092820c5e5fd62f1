r"""Verifiable rewards: functions of a completion, chosen by a row's ``reward`` or ``data.reward``.

| spec | reward is 1.0 when the completion, stripped of outer white space, ... |
|---|---|
| ``{"kind": "exact"}`` | equals the row's ``answer``, stripped |
| ``{"kind": "contains", "text": "..."}`` | holds the text (the row's ``answer`` without it) |
| ``{"kind": "number", "tolerance": 0.0}`` | has a last number within the tolerance of ``answer`` |
| ``{"kind": "regex", "pattern": "..."}`` | matches the pattern somewhere |
| ``{"kind": "code", "tests": "..."}`` | is Python that passes the tests (the row's ``answer``) |
| ``{"kind": "python", "function": "..."}`` | the reward is what a function of yours says |

Anything else is 0.0. ``exact`` and ``contains`` take ``"ignore_case": true``. A row with an
``answer`` and no ``reward`` is ``exact``, if ``data.reward`` does not say otherwise. Rewards are
finite by construction.

``code`` runs what a model wrote, locked in: see `composer_engine.code_reward`. It takes
``"seconds"`` (5; of processor time, and twice as many on the wall), ``"memory_mib"`` (512) and
``"partial": true``, with which the reward is the share of the checks that pass. With ``"sandbox":
false`` it runs with your own rights, under limits alone: for machines without such a sandbox.

``python`` names ``path/to/file.py:name`` or ``package.module:name``, imported once and called as
``name(completion, prompt=..., answer=...)``, where ``answer`` may be ``None``. It gives a number
that is finite as a float32. Whatever else it does is a reward of 0.0 and an alert that counts the
failures and has the first one's words: a mistake in it costs a signal, never the run. It has your
rights, and no limits.

Both ``python`` and ``"sandbox": false`` can be said in ``data.reward`` only: the rows of a data set
may be somebody else's, and do not choose what runs on your machine.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from composer_engine.code_reward import Checks, CodeReward, Limits, check_sandbox, read_checks
from composer_engine.python_reward import PythonReward, RewardError, check_place, load_function

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


class Code(_Spec, frozen=True, tag="code"):
    tests: Annotated[str, Meta(min_length=1)] | None = None
    seconds: Annotated[int, Meta(ge=1, le=600)] = 5
    memory_mib: Annotated[int, Meta(ge=64, le=2**20)] = 512
    partial: bool = False
    sandbox: bool = True


class Python(_Spec, frozen=True, tag="python"):
    function: Annotated[str, Meta(min_length=3, max_length=4096)]


RewardSpec = Exact | Contains | Number | Regex | Code | Python
_KINDS = ("exact", "contains", "number", "regex", "code", "python")
_decoder: msgspec.json.Decoder[RewardSpec] = msgspec.json.Decoder(RewardSpec)


class Scores(NamedTuple):
    """``complaints`` are lines for people: what failed while rewards were computed."""

    values: list[float]
    complaints: list[str]


def read_spec(text: str) -> RewardSpec:
    """``data.reward``: a kind, a spec as JSON, or nothing. Raises `ValueError`."""
    text = text.strip()
    if not text:
        return Exact()
    if not text.startswith("{"):
        if text not in _KINDS:
            near = difflib.get_close_matches(text, _KINDS, n=1)
            asked = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no kind {text!r}; the kinds are {', '.join(_KINDS)}{asked}")
        text = msgspec.json.encode({"kind": text}).decode()
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from None


def judges_without_answer(spec: RewardSpec) -> bool:
    """Whether it says something of a row that has no ``answer``."""
    match spec:
        case Contains():
            return spec.text is not None
        case Code():
            return spec.tests is not None
        case _:
            return isinstance(spec, Regex | Python)


def check_ready(spec: RewardSpec, *, is_glance: bool) -> None:
    """Raises `ValueError` for what no row can change, such as a function that is missing."""
    match spec:
        case Regex():
            _regex(spec.pattern)
        case Python():
            check_place(spec.function)
            if not is_glance:
                load_function(spec.function)
        case Code():
            if spec.tests is not None:
                _checks(spec.tests)
            if spec.sandbox and not is_glance:
                _check_sandbox()


def check_from_row(spec: RewardSpec) -> None:
    """Raises `ValueError` for what rows may not ask for."""
    match spec:
        case Python():
            raise ValueError("kind 'python' is for data.reward: rows do not choose what runs here")
        case Code(sandbox=False):
            raise ValueError("no sandbox is for data.reward: rows do not choose what runs here")


def score(rewards: Sequence[Reward], completions: Sequence[str]) -> Scores:
    """Each completion's reward by its own row's; code runs in parallel, a process a core."""
    failures: dict[str, list[str]] = {}
    values = []
    with ThreadPoolExecutor(_cores()) as pool:
        asked = [
            pool.submit(reward, completion).result
            if isinstance(reward, CodeReward)
            else partial(reward, completion)
            for reward, completion in zip(rewards, completions, strict=True)
        ]
        for value in asked:
            try:
                values.append(value())
            except RewardError as error:
                failures.setdefault(error.function, []).append(error.message)
                values.append(0.0)
            except OSError as error:  # no process, no pipe or no folder is to be had
                failures.setdefault("code", []).append(f"{type(error).__name__}: {error}")
                values.append(0.0)
    complaints = [
        f"the reward {function} failed for {len(messages)} of {len(completions)} completions, "
        f"which get 0: {messages[0]}"
        for function, messages in failures.items()
    ]
    return Scores(values, complaints)


def _cores() -> int:
    """This process's share of the machine's."""
    everyones = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (everyones or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def make_reward(
    spec: RewardSpec, answer: str | None, prompt: str = "", *, is_glance: bool = False
) -> Reward:
    """The reward that ``spec`` means for a row. Raises `ValueError` with one clear line.

    At a ``is_glance`` nothing is imported or started, and the value is not to be called.
    """
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
        case Code():
            return _code(spec, answer, is_glance=is_glance)
        case Python():
            if is_glance:
                check_place(spec.function)
                return _unknown
            return PythonReward(load_function(spec.function), spec.function, prompt, answer)


def _code(spec: Code, answer: str | None, *, is_glance: bool) -> Reward:
    tests = spec.tests or _needed(answer, "code")
    limits = Limits(spec.seconds, spec.memory_mib << 20, spec.sandbox)
    if spec.sandbox and not is_glance:
        _check_sandbox()
    return CodeReward(_checks(tests), limits, spec.partial)


def _checks(tests: str) -> Checks:
    try:
        return read_checks(tests)
    except ValueError as error:
        raise ValueError(f"reward 'code': {error}") from None


def _check_sandbox() -> None:
    try:
        check_sandbox()
    except ValueError as error:
        raise ValueError(f"reward 'code': {error}") from None


def _unknown(_: str) -> float:
    raise AssertionError("a glance makes no rewards")


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
