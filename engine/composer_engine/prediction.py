"""What can be known of a run without its weights: the model's settings and the texts' lengths.

Read from files on this machine, and quickly: no torch, no network.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from composer_engine.config import BUILTIN, ModelConfig, RunConfig, looks_like_hub_id
from composer_engine.config_file import expanded
from composer_engine.failures import SetupError
from composer_engine.memory import Lengths, UnknownArchitecture, default_lengths, estimate, shape_of

_ROWS = 1000  # of the data that are looked at
_CHARACTERS_A_TOKEN = 3.0  # of English under a large vocabulary: 4 to 5; fewer is safer
_BOM = b"\xef\xbb\xbf"
_LONGEST = 4  # texts by characters, among which the longest by tokens is sought

CountTokens = Callable[[str], int]


def settings_file(model: ModelConfig) -> Path:
    """The model's ``config.json``; weights need not be there. Raises `SetupError`."""
    if model.path == BUILTIN:
        return Path(str(resources.files("composer_engine") / "builtin" / "config.json"))
    folder = expanded(model.path)
    if folder.is_dir() or not looks_like_hub_id(model.path):
        if (file := folder / "config.json").is_file():
            return file
        raise SetupError(f"model.path: {model.path} holds no config.json")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision or None)
    if isinstance(cached, str):
        return Path(cached)
    revision = f" --revision {model.revision}" if model.revision else ""
    raise SetupError(
        f"model.path: the Hub's cache on this machine holds no config.json of {model.path}",
        f"fetch it: hf download {model.path} config.json{revision}",
    )


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """What the model's ``config.json`` says. Raises `SetupError`."""
    file = settings_file(model)
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SetupError(f"model.path: cannot read {file}: {error}") from None
    if not isinstance(settings, dict):
        raise SetupError(f"model.path: {file} is no table of settings")
    return settings


def by_characters(text: str) -> int:
    """Tokens of a text, where there is no tokenizer to ask."""
    return math.ceil(len(text) / _CHARACTERS_A_TOKEN)


def measured_lengths(config: RunConfig, count: CountTokens) -> Lengths | None:
    """The longest of the first rows, in tokens; None where the data is no JSONL on this machine.

    Completions are as long as they may be.
    """
    rows = _first_rows(config)
    if not rows:
        return None

    def longest(name: str, *, of: list[dict[str, Any]]) -> int:
        texts = [text for row in of if isinstance(text := row.get(name), str)]
        texts = sorted(texts, key=len)[-_LONGEST:]
        return max(map(count, texts), default=0)

    pairs = [row for row in rows if row.get("chosen") is not None]
    tasks = [
        row
        for row in rows
        if row.get("chosen") is None or row.get("answer") is not None or row.get("reward")
    ]
    completion, hints = config.rollout.max_completion_tokens, config.hints
    helps = {
        "feedback": (hints.feedback_template, longest("hint", of=tasks)),
        "sibling": (hints.sibling_template, completion),
        "reference": (hints.reference_template, longest("answer", of=tasks)),
    }
    prompt = longest("prompt", of=tasks)
    more = [count(helps[source][0]) + helps[source][1] for source in hints.sources]
    return Lengths(
        prompt=max(prompt, 1),
        completion=completion,
        teacher_prompt=prompt + max(more, default=0),
        pair_prompt=max(longest("prompt", of=pairs), 1),
        chosen=longest("chosen", of=pairs) + 1,  # the end of the text is scored, too
        rejected=longest("rejected", of=pairs) + 1,
        pairs=None if len(rows) == _ROWS else len(pairs),
    )


def predicted_peak(config: RunConfig, processes: int = 1) -> int | None:
    """The closed form's peak in bytes, in one of so many processes that share a step.

    None for a model of which it knows too little.
    """
    try:
        shape = shape_of(model_settings(config.model))
    except (SetupError, UnknownArchitecture):
        return None
    lengths = measured_lengths(config, by_characters) or default_lengths(config)
    return estimate(shape, config, lengths, processes=processes).peak_bytes


def _first_rows(config: RunConfig) -> list[dict[str, Any]]:
    """Those that can be read. What cannot is told when the run begins."""
    new_names = dict(text.split(":", 1) for text in config.data.rename)
    return [
        {new_names.get(name, name): value for name, value in row.items()}
        for row in itertools.islice(_rows(config), _ROWS)
    ]


def _rows(config: RunConfig) -> Iterator[Mapping[str, Any]]:
    builtin = resources.files("composer_engine") / "builtin" / "tasks.jsonl"
    path = config.data.path
    file = Path(str(builtin)) if path == BUILTIN else expanded(path)
    if not file.is_file() or file.suffix == ".parquet":
        return
    limit = config.data.max_rows or None
    try:
        with file.open("rb") as lines:
            for line in itertools.islice(filter(bytes.strip, lines), limit):
                row = msgspec.json.decode(line.removeprefix(_BOM))
                if isinstance(row, dict):
                    yield row
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return
