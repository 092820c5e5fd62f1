"""What a function finds in its container: volumes, secrets, dictionaries, its image's settings."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.rehearsal.rehearsal import Rehearsal

USER_PROGRAM = """
import json, os
from pathlib import Path
import modal

image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install("numpy")
    .env({"HF_HOME": "/runs/hf", "STAGE": "image"})
    .workdir("/runs")
    .add_local_file(__file__, "/opt/copied.py", copy=True)
)
app = modal.App("objects", image=image)
runs = modal.Volume.from_name("objects-runs", create_if_missing=True)
data = modal.Volume.from_name("objects-data", create_if_missing=True, version=2)
notes = modal.Dict.from_name("objects-notes", create_if_missing=True)
line = modal.Queue.from_name("objects-line", create_if_missing=True)
secret = modal.Secret.from_dict({"TOKEN": "secret-value"})

@app.function(
    volumes={"/runs": runs, "/data": data.with_mount_options(read_only=True)},
    secrets=[secret],
    env={"STAGE": "function"},
)
def work(blob):
    Path("checkpoint").write_text("step 1")  # in the working folder, which is the volume
    runs.commit()
    Path("/runs/later").write_text("at the end")
    cwd = os.getcwd()
    os.chdir("/")
    with open("/runs/later"):
        try:
            runs.reload()
        except RuntimeError as error:
            reload = str(error)
    runs.reload()
    notes["from"] = "container"
    line.put("hello")
    return {
        "cwd": cwd,
        "reload": reload,
        "env": {key: os.environ.get(key) for key in ("HF_HOME", "STAGE", "TOKEN")},
        "data": Path("/data/in.txt").read_text(),
        "copied": Path("/opt/copied.py").exists(),
        "blob": blob[::-1],
        "committed": sorted(each.path for each in runs.listdir("/")),
    }

@app.function(volumes={"/runs": runs})
def killed():
    Path("/runs/kept").write_text("kept")
    runs.commit()
    Path("/runs/lost").write_text("lost")
    os.kill(os.getpid(), 9)

@app.local_entrypoint()
def main():
    with data.batch_upload(force=True) as batch:
        batch.put_file(Path(__file__).with_name("in.txt"), "/in.txt")
    blob = os.urandom(5_000_000)
    got = work.remote(blob)
    assert got.pop("blob") == blob[::-1]
    got["note"] = notes["from"]
    got["said"] = line.get(timeout=5)
    print("GOT", json.dumps(got))
    try:
        killed.remote()
    except Exception as error:
        print("KILLED", type(error).__name__)
"""


def test_a_function_finds_all_that_it_was_given(
    plane: Rehearsal, script: Callable[[str], Path]
) -> None:
    path = script(USER_PROGRAM)
    (path.parent / "in.txt").write_text("input")
    done = plane.modal("run", str(path))
    [line] = [line for line in done.stdout.splitlines() if line.startswith("GOT ")]
    assert json.loads(line.removeprefix("GOT ")) == {
        "cwd": "/runs",
        "reload": "there are open files preventing the operation: path later is open",
        "env": {"HF_HOME": "/runs/hf", "STAGE": "function", "TOKEN": "secret-value"},
        "data": "input",
        "copied": True,
        "committed": ["checkpoint"],
        "note": "container",
        "said": "hello",
    }
    assert "KILLED" in done.stdout
    assert "secret-value" not in (plane.root / "rehearsal.log").read_text()
    committed = plane.root / "volumes" / "objects-runs"
    assert (committed / "checkpoint").read_text() == "step 1"
    assert (committed / "later").read_text() == "at the end"  # committed as the container ended
    assert (committed / "kept").read_text() == "kept"
    assert not (committed / "lost").exists()
