"""The replay's reference is computed once and kept to the last bit, or computed again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from composer_engine.config import load
from composer_engine.model import load_model
from composer_engine.plan import Scored
from composer_engine.protocol import Logged
from composer_engine.reference_cache import (
    ReferenceCache,
    cache_folder,
    group_digest,
    model_identity,
)
from composer_engine.replay import Reference, TokenPair, score_pairs
from composer_engine.trainer import ComposerTrainer
from tests.engine.training import trained

GROUP = (Scored((1, 2, 3), 1), Scored((1, 2, 4), 2))
VALUES = [0.1 + 0.2, -1e-300]


class Counting:
    """Scores sequences by their tokens, and counts how many it was asked for."""

    model = None

    def __init__(self, pairs: int) -> None:
        self.pairs = [TokenPair(Scored((i, 1), 1), Scored((i, 2), 1)) for i in range(pairs)]
        self.asked = 0

    def logps(self, model: Any, sequences: Sequence[Scored]) -> torch.Tensor:
        self.asked += len(sequences)
        return torch.tensor([-(a + b / 7) for (a, b), _ in sequences])


def sides(reference: Reference, pairs: int) -> list[float]:
    values: list[float] = reference.of(range(pairs), torch.device("cpu")).tolist()
    return values


def test_what_was_scored_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    scorer = Counting(20)
    first, found = score_pairs(scorer, range(20), bool, ReferenceCache(tmp_path, "a"))
    assert (found, scorer.asked) == (0, 40)
    cache = ReferenceCache(tmp_path, "a")
    score_pairs(scorer, range(16), bool, cache)
    cache.save()
    scorer.asked = 0
    again, found = score_pairs(scorer, range(20), bool, ReferenceCache(tmp_path, "a"))
    assert (found, scorer.asked) == (16, 8)
    assert sides(again, 20) == sides(first, 20)


def test_a_cache_of_another_model_or_another_batch_is_none(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "a")
    cache.add(GROUP, VALUES)
    cache.save()
    assert ReferenceCache(tmp_path, "a").find(GROUP) == VALUES
    assert ReferenceCache(tmp_path, "a").find(GROUP[:1]) is None
    assert ReferenceCache(tmp_path, "b").find(GROUP) is None
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert ReferenceCache(tmp_path, "b").find(GROUP) is None


def test_no_byte_of_a_file_can_be_changed_unseen(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "a")
    cache.add(GROUP, VALUES)
    cache.save()
    file = tmp_path / "a.safetensors"
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = ReferenceCache(tmp_path, "a").find(GROUP)
        assert found in (None, VALUES), place  # white space of the header says nothing
    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])
        assert ReferenceCache(tmp_path, "a").find(GROUP) is None


def test_a_file_with_other_contents_under_our_name_is_computed_anew(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "a")
    cache.add(GROUP, VALUES)
    cache.save()
    tensors = load_file(tmp_path / "a.safetensors")
    tensors[group_digest(GROUP)] = torch.zeros(2, dtype=torch.float64)
    save_file(tensors, tmp_path / "a.safetensors", {"identity": "a", "digest": "0"})
    assert ReferenceCache(tmp_path, "a").find(GROUP) is None
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "a.safetensors").mkdir()
    assert ReferenceCache(tmp_path, "a").find(GROUP) is None


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ReferenceCache(tmp_path / "file" / "cache", "a")
    cache.add(GROUP, VALUES)
    cache.save()
    assert cache.find(GROUP) == VALUES


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "a")
    cache.add(GROUP, [0.0, float("nan")])
    assert cache.find(GROUP) is None


def test_the_folder_is_the_user_s() -> None:
    assert cache_folder({"COMPOSER_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c/reference")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/composer-tui/reference")
    assert cache_folder({}) == Path.home() / ".cache" / "composer-tui" / "reference"


sequences = st.lists(st.builds(Scored, st.lists(st.integers(0, 12)).map(tuple), st.integers(1, 3)))


@given(sequences, sequences)
def test_groups_have_one_digest_when_they_are_equal_and_only_then(
    one: list[Scored], other: list[Scored]
) -> None:
    assert (group_digest(one) == group_digest(other)) == (one == other)


def test_a_model_is_itself_by_its_weights_and_settings_and_not_by_its_place(
    random_model: Path, tmp_path: Path
) -> None:
    config = load("smoke", settings=(f"model.path={random_model}", "model.device=cpu")).model
    one = load_model(config, 0).causal_lm
    known = model_identity(one, 128)
    moved = tmp_path / "moved"
    moved.symlink_to(random_model)
    elsewhere = load("smoke", settings=(f"model.path={moved}", "model.device=cpu")).model
    assert model_identity(load_model(elsewhere, 0).causal_lm, 128) == known
    assert model_identity(one, 64) != known
    weight = next(one.parameters())
    with torch.no_grad():
        weight.view(-1)[-1] += 1e-3
        assert model_identity(one, 128) != known
        weight.view(-1)[-1] -= 1e-3
    one.config.rms_norm_eps = 0.5
    assert model_identity(one, 128) != known


def test_an_adapter_counts_from_when_it_changes_something(random_model: Path) -> None:
    settings = (f"model.path={random_model}", "model.device=cpu", "model.lora_rank=2")
    config = load("smoke", settings=settings).model
    one, other = load_model(config, 0).causal_lm, load_model(config, 1).causal_lm
    known = model_identity(one)
    assert model_identity(other) == known
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if "lora_B" in name).add_(1)
    assert model_identity(other) != known


def test_a_second_run_takes_the_reference_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPOSER_CACHE", str(tmp_path / "cache"))
    config = load("smoke", settings=("optimizer.steps=2", "rollout.max_completion_tokens=4"))
    first, before = trained(config, tmp_path / "one")
    second, after = trained(config, tmp_path / "two")
    pairs = len(second.reference)
    assert pairs > 8
    assert [event for event in before if isinstance(event, Logged)] == []
    assert [event.message for event in after if isinstance(event, Logged)] == [
        f"reference log-probs of {pairs} of {pairs} pairs: from the cache"
    ]
    assert _listed(first) == _listed(second)


def _listed(trainer: ComposerTrainer) -> list[list[float]]:
    values: list[list[float]] = trainer.reference.tensors()["logps"].tolist()
    return values
