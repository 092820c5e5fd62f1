"""The toy task: sums of two digits, a hint for each, and traces a careless teacher left behind."""

import random
from typing import NamedTuple

DIGITS = range(10)
PAIR_SHARE = 0.6  # of the sums, those with a stored preference


class Sum(NamedTuple):
    left: int
    right: int

    @property
    def prompt(self) -> str:
        return f"{self.left}+{self.right}="

    @property
    def answer(self) -> str:
        return str(self.left + self.right)

    @property
    def hinted_prompt(self) -> str:
        """As the smoke preset's templates write it."""
        return f"hint:{self.answer}. {self.prompt}"


SUMS = [Sum(left, right) for left in DIGITS for right in DIGITS]


def wrong_answer(question: Sum) -> str:
    """What a careless teacher says: right in form, one too many in value."""
    return str(question.left + question.right + 1)


def task_rows(seed: int = 0) -> list[dict[str, str]]:
    """The rows of ``tasks.jsonl``."""
    rng = random.Random(seed)
    rows = []
    for question in SUMS:
        row = {"prompt": question.prompt, "answer": question.answer, "hint": question.answer}
        if rng.random() < PAIR_SHARE:
            row |= {"chosen": question.answer, "rejected": wrong_answer(question)}
        rows.append(row)
    return rows
