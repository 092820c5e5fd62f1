"""A run as an app: built by the real client, run by a rehearsal, seen from another machine."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import modal
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from composer_engine.cloud_spec import CloudSpec, ControlAsk, ControlBeat, app_name
from composer_engine.config import RunConfig, load
from composer_engine.contract import CACHE_MOUNT, CONTROL_DICT, INPUTS_MOUNT, RUNS_MOUNT
from composer_engine.failures import SetupError
from composer_engine.inputs import container_config, local_inputs
from composer_engine.modal_app import BuiltApp, build, gpu_request
from composer_engine.protocol import RunFinished, RunStarted, violations
from composer_engine.requirements import engine_requirements, is_torch, torch_index
from composer_tui.rehearsal import process
from tests.engine.engine_process import read_events

BUILTIN = Path(__file__).parents[2] / "engine" / "composer_engine" / "builtin"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A control plane that the client of this process talks to; the folder of its volumes."""
    root = tmp_path_factory.mktemp("rehearsal")
    file = root / "connection.json"
    connection = process.start(root, file)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in connection.environ().items():
            patch.setenv(name, value)
        yield root / "volumes"
    process.stop(file)


def client() -> modal.Client:
    """One that knows this rehearsal: the client's own default is made once a process."""
    return modal.Client.from_credentials(
        os.environ["MODAL_TOKEN_ID"], os.environ["MODAL_TOKEN_SECRET"]
    )


def make_spec(run_id: str, *settings: str, **fields: Any) -> CloudSpec:
    return CloudSpec(run_id=run_id, config=load("smoke", settings=settings), **fields)


# ---------------------------------------------------------------- a run, whole


def test_a_run_in_a_container_is_heard_stopped_and_kept(rehearsal: Path) -> None:
    spec = make_spec(
        "stopped-1",
        "modal.gpu=L4,H100",
        "modal.retries=2",
        "optimizer.steps=100000",
        f"data.path={BUILTIN / 'tasks.jsonl'}",
        f"model.path={BUILTIN}",
        usd_per_hour="1.5",
        compute_capability=9.0,
        tags={"composer.run": "stopped-1"},
    )
    built = build(spec)
    with built.app.run(detach=True, client=client()):
        call = built.train.spawn(msgspec.json.encode(spec).decode())
        check_what_modal_was_asked(built)
        board = modal.Dict.from_name(CONTROL_DICT, create_if_missing=True, client=client())
        name = app_name(spec.run_id)
        stdout = heard(built.app, '"step":20,')
        board.put(f"{name}/ask", msgspec.json.encode(ControlAsk(stop="asked by a test")).decode())
        answer = call.get(timeout=60)
    assert answer["outcome"] == "stopped"
    assert answer["reason"] == "asked by a test"
    beat = msgspec.json.decode(board.get(f"{name}/beat"), type=ControlBeat)
    assert (beat.state, beat.run_id) == ("ended", spec.run_id)
    assert beat.step == int(answer["step"]) >= 20
    assert float(answer["spent_usd"]) > 0

    kept = rehearsal / "composer-runs" / spec.run_id
    lines = (kept / "events.jsonl").read_bytes().splitlines(keepends=True)
    events = read_events(kept / "events.jsonl")
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    assert started.engine_version == metadata.version("composer-tui")
    assert violations(events) == []
    assert isinstance(events[-1], RunFinished)
    assert lines[: len(stdout)] == stdout
    assert (kept / "checkpoints" / f"step-{answer['step']}" / "model.safetensors").is_file()
    assert msgspec.json.decode((kept / "spec.json").read_bytes(), type=CloudSpec) == spec
    config = load(file=kept / "config.toml")
    assert config.data.path == f"{INPUTS_MOUNT}/data/tasks.jsonl"
    assert config.model.path == f"{INPUTS_MOUNT}/model"


def heard(app: modal.App, text: str) -> list[bytes]:
    """The whole lines of stdout until one has the text."""
    said = ""
    for entry in app.logs.stream(timeout=60):
        if entry.source == "stdout":
            said += entry.message
            if text in said:
                break
    assert text in said
    return [line.encode() for line in said.splitlines(keepends=True) if line.endswith("\n")]


def check_what_modal_was_asked(built: BuiltApp) -> None:
    assert built.app.get_tags()["composer.run"] == "stopped-1"
    info = modal.Function.from_id(built.train.object_id, client=client()).info()
    assert [tuple(gpu) for gpu in info.gpus] == [("L4", 1), ("H100", 1)]
    assert info.timeout == 3600


def test_a_mistake_in_the_configuration_ends_the_call_without_a_crash(rehearsal: Path) -> None:
    spec = make_spec("mistaken-1", "modal.gpu=", "rollout.prompts_per_step=5000")
    built = build(spec)
    with built.app.run(client=client()):
        answer = built.train.remote(msgspec.json.encode(spec).decode())
    assert answer["outcome"] == "config"
    assert "prompts_per_step" in answer["reason"]
    kept = (rehearsal / "composer-runs" / spec.run_id / "events.jsonl").read_bytes()
    assert b'"run_failed"' in kept


# ---------------------------------------------------------------- what goes along


def test_local_paths_become_the_containers() -> None:
    config = load("smoke", settings=("data.path=~/rows/a b.jsonl", "model.path=../models/m"))
    there = container_config(config)
    assert there.data.path == f"{INPUTS_MOUNT}/data/a b.jsonl"
    assert there.model.path == f"{INPUTS_MOUNT}/model"
    assert container_config(there) == there


@pytest.mark.parametrize("path", ["builtin", f"{CACHE_MOUNT}/models/m", f"{RUNS_MOUNT}/r/data"])
def test_what_the_container_has_already_is_not_brought(path: str) -> None:
    config = load("smoke", settings=(f"data.path={path}", f"model.path={path}"))
    assert container_config(config) == config
    assert local_inputs(config) == ()


@pytest.mark.parametrize("field", ["data.path", "model.path"])
def test_what_is_not_there_is_refused_before_anything_is_asked(field: str, tmp_path: Path) -> None:
    config = load("smoke", settings=(f"{field}={tmp_path / 'nothing'}",))
    with pytest.raises(SetupError, match=field):
        build(CloudSpec(run_id="r", config=config))


def test_gpus_that_cannot_share_a_step_are_refused_before_anything_is_asked() -> None:
    config = load("smoke", settings=("modal.gpu=L4, H100:8", "rollout.prompts_per_step=4"))
    with pytest.raises(SetupError, match="8 processes cannot share evenly"):
        build(CloudSpec(run_id="r", config=config))


def test_a_sampler_that_no_container_has_is_refused_before_anything_is_asked() -> None:
    config = load("smoke", settings=("model.device=auto", "rollout.backend=vllm"))
    with pytest.raises(SetupError, match="the container has no vllm"):
        build(CloudSpec(run_id="r", config=config))


def test_one_gpu_several_and_none() -> None:
    assert gpu_request(()) is None
    assert gpu_request(("H100:2",)) == "H100:2"
    assert gpu_request(("H100", "A100-80GB")) == ["H100", "A100-80GB"]


# ---------------------------------------------------------------- the image


def test_the_container_gets_the_pins_of_this_distribution() -> None:
    stated = {
        Requirement(text).name: Requirement(text).specifier
        for text in metadata.requires("composer-tui") or []
    }
    wanted = [Requirement(text) for text in engine_requirements()]
    assert {"torch", "trl", "transformers", "msgspec", "psutil"} <= {r.name for r in wanted}
    assert not {"textual", "click", "modal"} & {r.name for r in wanted}
    assert all(stated[requirement.name] == requirement.specifier for requirement in wanted)
    assert [text for text in engine_requirements() if is_torch(text)] == [
        text for text in engine_requirements() if re.match(r"torch[<>=]", text)
    ]


def test_a_container_gets_the_packages_of_its_sinks_and_no_others() -> None:
    plain = {Requirement(text).name for text in engine_requirements()}
    with_two = {Requirement(text).name for text in engine_requirements(("tensorboard", "wandb"))}
    assert with_two - plain == {"tensorboard", "wandb"}
    assert "trackio" not in plain


def test_everything_that_the_engine_imports_is_installed_in_its_container() -> None:
    """By name: what is imported anywhere in the package, against the list of packages."""
    package = Path(__file__).parents[2] / "engine" / "composer_engine"
    imported = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    ours = {"composer_engine", "modal", "packaging"}  # modal is there; packaging stays here
    names = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py", "tomli_w": "tomli-w"}
    names["huggingface_hub"] = "huggingface-hub"
    foreign = {names.get(n, n) for n in imported - set(sys.stdlib_module_names) - ours}
    assert foreign <= {Requirement(text).name for text in engine_requirements()}


@pytest.mark.parametrize(
    ("compute_capability", "build_name"),
    [(0, "cpu"), (7.5, "cu130"), (8.0, "cu130"), (8.9, "cu130"), (9.0, "cu130"), (10.0, "cu130"),
     (10.3, "cu132"), (12.0, "cu130")],
)  # fmt: skip
def test_the_torch_build_suits_the_gpu(compute_capability: float, build_name: str) -> None:
    assert torch_index(compute_capability).rpartition("/")[2] == build_name


def test_a_gpu_that_is_too_old_is_refused() -> None:
    with pytest.raises(ValueError, match=r"7\.0"):
        torch_index(7.0)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", fullmatch=True))
def test_any_run_id_makes_a_name_that_modal_takes(run_id: str) -> None:
    assert build(CloudSpec(run_id=run_id, config=RunConfig())).app.name == app_name(run_id)
