"""Who teaches a failed rollout, in which order, and with which words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from composer_engine.config import HintConfig
from composer_engine.data import Task
from composer_engine.hints import fill, hint_contexts

HINTS = HintConfig(
    feedback_template="{prompt}|{hint}",
    sibling_template="{prompt}?{solution}",
    reference_template="{prompt}!{answer}",
)
SOURCES = ("feedback", "sibling", "reference")


def task(prompt: str, hint: str | None = None, answer: str | None = None) -> Task:
    return Task(prompt, lambda _: 0.0, hint, "rows:1", answer)


def test_only_failed_rollouts_are_taught_by_their_own_hint_or_a_sibling() -> None:
    tasks = [task("a", "h")] * 2 + [task("b")] * 2 + [task("c")] * 2
    completions = ["no", "yes", "bad", "good", "bad", "worse"]
    rewards = [0.0, 1.0, 0.5, 1.0, 0.0, 0.0]
    contexts = hint_contexts(tasks, completions, rewards, 2, HINTS)
    assert contexts == ["a|h", None, "b?good", None, None, None]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_a_reward_that_a_tensor_has_rounded_is_still_a_success(share: float) -> None:
    hints = replace(HINTS, success_reward=share)
    rewards: list[float] = torch.tensor([share, 0.0]).tolist()
    tasks = [task("a", "h")] * 2
    assert hint_contexts(tasks, ["good", "bad"], rewards, 2, hints) == [None, "a|h"]


def test_a_success_in_another_group_is_no_sibling() -> None:
    tasks = [task("same")] * 4
    contexts = hint_contexts(tasks, ["x", "x", "y", "y"], [0.0, 0.0, 1.0, 1.0], 2, HINTS)
    assert contexts == [None, None, None, None]


def test_the_best_sibling_teaches_and_of_equals_the_first() -> None:
    hints = replace(HINTS, success_reward=0.5)
    contexts = hint_contexts([task("a")] * 4, [*"wxyz"], [0.0, 0.5, 1.0, 1.0], 4, hints)
    assert contexts == ["a?y", None, None, None]


@pytest.mark.parametrize(
    ("sources", "context"),
    [
        (("feedback", "sibling", "reference"), "a|h"),
        (("sibling", "feedback"), "a?good"),
        (("reference", "feedback"), "a!42"),
        ((), None),
    ],
)
def test_the_first_source_that_has_something_teaches(
    sources: tuple[str, ...], context: str | None
) -> None:
    hints = replace(HINTS, sources=sources)
    tasks = [task("a", "h", "42")] * 2
    assert hint_contexts(tasks, ["bad", "good"], [0.0, 1.0], 2, hints)[0] == context


def test_the_row_s_answer_teaches_where_nothing_else_can() -> None:
    hints = replace(HINTS, sources=SOURCES)
    tasks = [task("a", answer="42")] * 2 + [task("b")] * 2
    contexts = hint_contexts(tasks, ["x"] * 4, [0.0] * 4, 2, hints)
    assert contexts == ["a!42", "a!42", None, None]


def test_braces_in_a_prompt_or_a_hint_are_left_alone() -> None:
    filled = fill("{prompt} {hint} {other}", {"prompt": "{hint}", "hint": "{prompt} {0}"})
    assert filled == "{hint} {prompt} {0} {other}"


parts = st.text(alphabet="ab{}\\$ hintsolutionprompt", max_size=12)


@given(parts, parts)
def test_what_fills_a_template_is_there_to_the_letter(prompt: str, hint: str) -> None:
    assert fill("<{prompt}><{hint}>", {"prompt": prompt, "hint": hint}) == f"<{prompt}><{hint}>"


@given(
    st.integers(1, 4).flatmap(
        lambda group: st.tuples(
            st.just(group),
            st.lists(
                st.tuples(
                    st.none() | st.just("h"),
                    st.none() | st.just("42"),
                    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=group, max_size=group),
                ),
                max_size=4,
            ),
        )
    ),
    st.permutations(SOURCES),
    st.integers(0, 3),
)
def test_every_failure_that_some_source_can_help_is_helped_and_no_success(
    rolled: tuple[int, list[tuple[str | None, str | None, list[float]]]],
    order: list[str],
    count: int,
) -> None:
    group, prompts = rolled
    sources = tuple(order[:count])
    hints = replace(HINTS, sources=sources)
    tasks = [task("p", hint, answer) for hint, answer, rewards in prompts for _ in rewards]
    rewards = [reward for _, _, given in prompts for reward in given]
    completions = [f"{place}:{reward}" for place, reward in enumerate(rewards)]
    contexts = hint_contexts(tasks, completions, rewards, group, hints)
    for place, (context, reward) in enumerate(zip(contexts, rewards, strict=True)):
        first = place - place % group
        best = max(rewards[first : first + group])
        can = {
            "feedback": tasks[place].hint and "p|h",
            "sibling": best >= 1 and f"p?{first + rewards[first:].index(best)}:{best}",
            "reference": tasks[place].answer and "p!42",
        }
        wanted = [can[source] for source in sources if can[source]] if reward < 1 else []
        assert context == (wanted[0] if wanted else None)
