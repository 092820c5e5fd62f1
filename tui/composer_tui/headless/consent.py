"""Asking a person before something is ended that cannot be begun again."""

import sys
from collections.abc import Sequence


def has_consent(lines: Sequence[str], word: str) -> bool | None:
    """Whether a person at a terminal types ``word`` after reading the lines; None without one.

    What is asked goes to stderr, so that stdout stays the answer's.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    for line in lines:
        print(line, file=sys.stderr)
    print(f"type {word} to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == word
