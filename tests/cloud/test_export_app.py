"""What was exported runs without this program: here, and on Modal (as a rehearsal has it)."""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from composer_engine.config import load
from composer_engine.protocol import RunFinished, RunStarted, violations
from composer_tui.cli import run_command_line
from composer_tui.headless.exporting_app import next_commands
from composer_tui.rehearsal import process
from tests.engine.engine_process import read_events

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "engine" / "composer_engine" / "builtin" / "tasks.jsonl"

# A Python that has this environment's packages, and neither of ours: what there is of them must
# come from the exported folder.
ALONE = f"""
import runpy, sys
sys.path = [path for path in sys.path if not path.startswith({str(ROOT / "tui")!r})
            and not path.startswith({str(ROOT / "engine")!r})]
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "composer_tui":
            raise ImportError("this program is not installed")
sys.meta_path.insert(0, Refuse())
script = sys.argv.pop(1)
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
finally:
    import composer_engine
    print(composer_engine.__file__, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke preset on a data file of its own, three steps long."""
    root = tmp_path_factory.mktemp("export")
    data = root / "rows of 'mine'.jsonl"
    shutil.copyfile(TASKS, data)
    folder = root / "it's my app"
    settings = ("optimizer.steps=3", f"data.path={data}", "modal.gpu=", "modal.cap_usd=1")
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert run_command_line(["export-app", "smoke", *arguments, "-o", str(folder)]) == 0
    data.unlink()  # the folder holds all that it needs
    return folder


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Variables with which a modal client talks to a rehearsal; its folder as REHEARSAL_ROOT."""
    root = tmp_path_factory.mktemp("rehearsal")
    connection = process.start(root, root / "connection.json")
    yield {**connection.environ(), "REHEARSAL_ROOT": str(root)}
    process.stop(root / "connection.json")


@pytest.fixture(scope="module")
def local_run(exported: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The local script at work, beside whatever else is tested meanwhile."""
    command = [sys.executable, "-I", "-c", ALONE, str(exported / "train_local.py")]
    command += ["--set", "optimizer.steps=2"]
    bare = {"PATH": os.environ["PATH"], "HOME": str(exported)}
    run = subprocess.Popen(
        command, env=bare, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    yield run
    run.kill()
    run.wait()


@pytest.mark.usefixtures("local_run")
def test_the_modal_script_trains_in_a_container(
    exported: Path, rehearsal: Mapping[str, str]
) -> None:
    engine = exported / "composer_engine" / "modal_app.py"
    engine.write_text(engine.read_text("utf-8") + "\nprint('the exported engine')\n", "utf-8")
    # Isolated: modal is found, and neither of our packages is, but for the one in the folder.
    shim = (
        "import sys; sys.path = [p for p in sys.path if not p.startswith("
        f"({str(ROOT / 'tui')!r}, {str(ROOT / 'engine')!r}))]; "
        "import runpy; sys.argv[0] = 'modal'; runpy.run_module('modal', run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", shim, "run", "modal_app.py", "--run-id", "mine-1"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(exported), **rehearsal}
    done = subprocess.run(
        command, env=environ, cwd=exported, capture_output=True, check=False, timeout=120
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert "finished at step 3" in said
    assert "the exported engine" in said  # and not the one that is installed here
    kept = Path(rehearsal["REHEARSAL_ROOT"]) / "volumes" / "composer-runs" / "mine-1"
    events = read_events(kept / "events.jsonl")
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    assert started.engine_version == metadata.version("composer-tui")
    assert violations(events) == []
    assert isinstance(events[-1], RunFinished)
    assert (kept / "checkpoints" / "step-3" / "model.safetensors").is_file()


def test_the_local_script_trains_without_this_program(
    exported: Path, local_run: subprocess.Popen[bytes]
) -> None:
    stdout, stderr = local_run.communicate(timeout=120)
    assert local_run.returncode == 0, stderr.decode()
    assert stderr.decode().strip() == str(exported / "composer_engine" / "__init__.py")
    (run,) = (exported / "runs").iterdir()
    assert (run / "events.jsonl").read_bytes() == stdout
    events = read_events(run / "events.jsonl")
    assert violations(events) == []
    assert isinstance(events[-1], RunFinished)
    assert events[-1].steps == 2
    assert (run / "checkpoints" / "step-2" / "model.safetensors").is_file()


def test_the_folder_says_what_was_asked(exported: Path) -> None:
    config = load(file=exported / "config.toml")
    assert config.data.path == "inputs/rows of 'mine'.jsonl"
    assert (exported / config.data.path).is_file()
    assert config.optimizer.steps == 3
    script = (exported / "modal_app.py").read_text("utf-8")
    settings = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(script).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper() and target.id != "HERE"
    }
    assert settings["NAME"] == "smoke"
    assert settings["GPU"] is None
    assert settings["SECRETS"] == []
    assert settings["TORCH_INDEX"].endswith("/cpu")
    requirements = (exported / "requirements.txt").read_text("utf-8").split()
    assert sorted([*settings["TORCH"], *settings["PACKAGES"]]) == requirements
    spec = json.loads((exported / "spec.json").read_bytes())
    assert float(spec["usd_per_hour"]) > 0


def test_nothing_in_the_folder_is_of_this_machine(exported: Path) -> None:
    for file in exported.iterdir():
        if file.is_file():
            text = file.read_text("utf-8")
            assert str(ROOT) not in text
            assert str(exported.parent) not in text


def test_a_gpu_of_a_list_and_secrets_are_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    arguments = ["--set", "modal.gpu=L4, B300:2", "--secret", "huggingface", "-o", str(folder)]
    assert run_command_line(["export-app", "smoke", *arguments]) == 0
    script = (folder / "modal_app.py").read_text("utf-8")
    assert 'GPU = ["L4", "B300:2"]' in script
    assert 'SECRETS = ["huggingface"]' in script
    assert "/whl/cu132" in script


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["smoke", "--set", "modal.gpu=H1000"], "there is no such GPU"),
        (["smoke", "--set", "modal.gpu=H100:8"], "cannot share evenly"),
        (["smoke", "--set", "data.path=/nonexistent/rows.jsonl"], "data.path"),
        (
            ["smoke", "--set", "data.path=/dev/null"],
            "data.path: /dev/null is neither a file nor a folder",
        ),
        (["smoke", "--set", "model.path=/nonexistent/model"], "model.path"),
        (["smoke", "--set", "optimizer.steps=none"], "optimizer.steps"),
        ([], "say what to export"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "app"
    assert run_command_line(["export-app", *arguments, "-o", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line
    assert not folder.exists()


@pytest.mark.parametrize("name", ["app", 'it\'s "my" $app', "-app"])
def test_what_is_to_be_typed_next_can_be_pasted_one_after_the_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    script = tmp_path / name / "train_local.py"
    script.write_text("print('trained')")
    modal, here = (line.partition(": ")[2] for line in next_commands(Path(name)))
    enter, train = modal.partition(" && ")[0], here.rpartition(" && ")[2]
    typed = f"{enter}; pwd; {train.replace('python', shlex.quote(sys.executable), 1)}"
    said = subprocess.check_output(["sh", "-c", typed], cwd=tmp_path, text=True)
    assert said.splitlines() == [str(script.parent), "trained"]


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    assert run_command_line(["export-app", "smoke", "-o", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [mine]
