"""A model comes from a folder or from the Hub, whole and safe, or one line says why it does not."""

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from composer_engine.config import ModelConfig, load
from composer_engine.failures import SetupError
from composer_engine.hub import stored_bytes, telling
from composer_engine.inputs import container_config, local_inputs
from composer_engine.model import check_top_k, embedded_tokens, load_model, unwrapped
from composer_engine.model_folder import model_folder
from tests.engine.hub_server import GATED, Hub, serving

TINY, PICKLED = "owner/tiny", "owner/pickled"
TOKEN = "hf_only_for_the_hub"  # noqa: S105  # no token of anybody

# Each in a process of its own: the Hub's client reads its environment as it is imported.
ASK = """
import json, sys
from composer_engine.config import ModelConfig
from composer_engine.failures import SetupError
from composer_engine.model_folder import model_folder
told = []
try:
    told += [str(model_folder(ModelConfig(**json.loads(sys.argv[1])), told.append))]
except SetupError as error:
    told += [str(error), error.hint]
print(json.dumps(told))
"""

Ask = Callable[..., list[str]]


@pytest.fixture(scope="module")
def hub(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with a model that is whole (and brings what nobody wants), and others that are not."""
    root = tmp_path_factory.mktemp("hub")
    tiny, pickled = root / "tiny", root / "pickled"
    shutil.copytree(random_model, tiny)
    for unwanted in ("pytorch_model.bin", "modeling_tiny.py", "onnx/model.safetensors"):
        (tiny / unwanted).parent.mkdir(exist_ok=True)
        (tiny / unwanted).write_bytes(b"?")
    pickled.mkdir()
    shutil.copy(random_model / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"?")
    with serving({TINY: tiny, PICKLED: pickled, GATED: tiny}) as server:
        yield server


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    """What a fresh process is told on the way to a model's folder, and that folder or the error."""

    def asking(path: str, revision: str = "", url: str = hub.url) -> list[str]:
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environ |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        wanted = json.dumps({"path": path, "revision": revision})
        command = [sys.executable, "-c", ASK, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
        assert TOKEN not in done.stdout + done.stderr
        told: list[str] = json.loads(done.stdout)
        return told

    return asking


def test_a_hub_model_is_fetched_once_without_code_or_pickles(ask: Ask, hub: Hub) -> None:
    *said, folder = ask(TINY)
    assert "downloading" in said[0]
    assert "MB" in said[0]
    assert {file.name for file in Path(folder).iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert f"Bearer {TOKEN}" in hub.tokens
    asked = len(hub.asked)
    said, again = ask(TINY)[:-1], ask(TINY, url="http://127.0.0.1:9")[-1]
    assert again == folder
    assert "from the cache" in said[0]
    assert len(hub.asked) == asked  # nobody was asked again
    loaded = load_model(ModelConfig(path=folder, device="cpu"), 0)
    assert loaded.causal_lm.config._attn_implementation == "sdpa"


def test_a_long_download_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "1").write_bytes(b"a" * 30)
    (blobs / "2.incomplete").write_bytes(b"a" * 12)
    told: queue.Queue[int] = queue.Queue()
    with telling(lambda: told.put(stored_bytes(TINY)), every_seconds=0.01):
        assert told.get(timeout=60) == 42
    assert stored_bytes("owner/none") == 0


@pytest.mark.parametrize("gone", ["model.safetensors", "../../trees"])
def test_a_download_that_was_cut_off_is_not_taken_for_a_model(
    ask: Ask, gone: str, random_model: Path
) -> None:
    folder = Path(ask(TINY)[-1])
    if gone == "model.safetensors":
        (folder / gone).unlink()
    else:  # as an older client left it: no list of what there should be, but an index of shards
        shutil.rmtree(folder / gone)
        shards = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert "downloading" in ask(TINY)[0]
    assert (folder / "model.safetensors").read_bytes() == (
        random_model / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("path", "revision", "words"),
    [
        ("owner/none", "", "model.path: the Hub shows no model owner/none"),
        (TINY, "v9", "model.revision: owner/tiny has no branch, tag or commit 'v9'"),
        (GATED, "", "model.path: owner/gated is gated"),
        (PICKLED, "", "model.path: owner/pickled has no .safetensors weights"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    ask: Ask, path: str, revision: str, words: str
) -> None:
    *_, message, _hint = ask(path, revision)
    assert message.startswith(words)
    assert "\n" not in message


def test_without_a_network_the_line_says_so_and_what_to_do(ask: Ask) -> None:
    message, hint = ask(TINY, url="http://127.0.0.1:9")
    assert message.startswith("model.path: cannot fetch owner/tiny: ")
    assert "hf download owner/tiny" in hint


def test_who_may_not_download_is_told_to_fetch_it_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match="this is offline"):
        model_folder(ModelConfig(path="owner/tiny"))


def test_a_folder_goes_before_a_hub_id_and_has_no_revisions(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    Path("owner/tiny").symlink_to(random_model)
    assert model_folder(ModelConfig(path=TINY)) == Path(TINY)
    with pytest.raises(SetupError, match="is a folder here"):
        model_folder(ModelConfig(path=TINY, revision="main"))


def test_a_hub_id_is_left_to_the_container_and_a_folder_is_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("smoke", settings=(f"model.path={TINY}",))
    assert container_config(config).model.path == TINY
    assert local_inputs(config) == ()
    (tmp_path / TINY).mkdir(parents=True)
    assert container_config(config).model.path == "/composer/inputs/model"
    assert [item.local for item in local_inputs(config)] == [tmp_path / TINY]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_float32_and_alone_is_trained(
    random_model: Path, dtype: str, dora: bool
) -> None:
    config = load(
        settings=(
            f"model.path={random_model}",
            "model.device=cpu",
            "model.lora_rank=2",
            f"model.lora_dora={str(dora).lower()}",
            f"model.dtype={dtype}",
        )
    )
    loaded = load_model(config.model, 0)
    trained = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("magnitude" in name for name in trained) is dora
    causal_lm = unwrapped(loaded.model)
    assert causal_lm.dtype == getattr(torch, dtype)
    hidden = causal_lm.base_model(torch.tensor([[1, 2, 3]])).last_hidden_state
    hidden.float().square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())


def test_float16_is_refused_where_there_is_no_cuda(random_model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    config = ModelConfig(path=str(random_model), dtype="float16", lora_rank=2)
    with pytest.raises(SetupError, match="float16 trains on CUDA only"):
        load_model(config, 0)


def test_more_likeliest_tokens_than_there_are_is_refused(random_model: Path) -> None:
    causal_lm = load_model(ModelConfig(path=str(random_model), device="cpu"), 0).causal_lm
    size = embedded_tokens(causal_lm)
    check_top_k(size, causal_lm)
    with pytest.raises(SetupError, match=f"loss.top_k: {size + 1} is more than"):
        check_top_k(size + 1, causal_lm)
