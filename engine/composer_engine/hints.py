"""What helps a failed rollout: the prompts that its teacher reads.

Three sources, each of which has something to say or has not:

- ``feedback``: the row's ``hint``;
- ``sibling``: of the completions of the same prompt that succeeded, the one with the highest
  reward, and of equals the first;
- ``reference``: the row's ``answer``, whatever it is to the reward (tests, for ``code``).

``hints.sources`` names those that are asked, and in which order: the first that has something
teaches. A rollout that succeeded needs none.
"""

import re
from collections.abc import Callable, Sequence
from ctypes import c_float
from typing import NamedTuple

from composer_engine.config import HintConfig
from composer_engine.data import Task

_PLACE = re.compile(r"\{(prompt|hint|solution|answer)\}")


class Failure(NamedTuple):
    """A rollout that did not succeed, and the best of its siblings that did."""

    task: Task
    solution: str | None


def hint_contexts(
    tasks: Sequence[Task],
    completions: Sequence[str],
    rewards: Sequence[float],
    group: int,
    hints: HintConfig,
) -> list[str | None]:
    """The teacher's prompt for each rollout; ``None`` where it has nothing to teach from.

    ``group`` consecutive completions are of the same prompt.
    """
    # Rewards come from a float32 tensor: what was 0.7 is a little less, and as good as 0.7.
    enough = min(hints.success_reward, c_float(hints.success_reward).value)
    contexts: list[str | None] = []
    for index, (task, reward) in enumerate(zip(tasks, rewards, strict=True)):
        if reward >= enough:
            contexts.append(None)
            continue
        start = index - index % group
        best = max(range(start, start + group), key=rewards.__getitem__)
        solution = completions[best] if rewards[best] >= enough else None
        contexts.append(_context(Failure(task, solution), hints))
    return contexts


def _context(failure: Failure, hints: HintConfig) -> str | None:
    told = (_BUILDERS[source](failure, hints) for source in hints.sources)
    return next((context for context in told if context is not None), None)


def _feedback(failure: Failure, hints: HintConfig) -> str | None:
    return _filled(hints.feedback_template, failure, "hint", failure.task.hint)


def _sibling(failure: Failure, hints: HintConfig) -> str | None:
    return _filled(hints.sibling_template, failure, "solution", failure.solution)


def _reference(failure: Failure, hints: HintConfig) -> str | None:
    return _filled(hints.reference_template, failure, "answer", failure.task.answer)


def _filled(template: str, failure: Failure, name: str, part: str | None) -> str | None:
    if part is None:
        return None
    return fill(template, {"prompt": failure.task.prompt, name: part})


_BUILDERS: dict[str, Callable[[Failure, HintConfig], str | None]] = {
    "feedback": _feedback,
    "sibling": _sibling,
    "reference": _reference,
}


def fill(template: str, parts: dict[str, str]) -> str:
    """The template with its places filled in one pass: braces in a part stay as they are."""
    return _PLACE.sub(lambda place: parts.get(place[1], place[0]), template)
