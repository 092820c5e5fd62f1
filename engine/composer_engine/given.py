"""Paths as a person wrote them, where a container finds the same things elsewhere."""

import json
import os
from collections.abc import Mapping

GIVEN_VARIABLE = "COMPOSER_GIVEN_PATHS"
"""Environment of an engine in a container: JSON, from each path there to the one that was given."""


def given_paths_text(paths: Mapping[str, str]) -> str:
    """The variable's value; paths that are the same in both places are left out."""
    return json.dumps({there: given for there, given in paths.items() if there != given})


def as_given(text: str) -> str:
    """The text with every path of the container as it was given. For what a person reads."""
    paths: dict[str, str] = json.loads(os.environ.get(GIVEN_VARIABLE) or "{}")
    for there in sorted(paths, key=len, reverse=True):
        text = text.replace(there, paths[there])
    return text
