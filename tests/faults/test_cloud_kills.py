"""Whatever is killed, and whenever: no app is forgotten, none is called stopped that lives, and
no step is lost or doubled.

``COMPOSER_KILL_ROUNDS=200`` plays more rounds than the suite does; ``COMPOSER_KILL_SEED`` others.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import psutil
import pytest

from composer_engine.cloud_spec import app_name
from composer_engine.protocol import Event, StepCompleted, Unrecognized, decode, violations
from composer_tui.cloud.ledger import CloudRef, cloud_runs, connection_file, write_ref
from composer_tui.rehearsal import process
from composer_tui.rehearsal.connection import Connection
from composer_tui.runners.cloud import start_rehearsal
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import HERE as CLOUD
from tests.cloud.runs_fixtures import small_config
from tests.rehearsal.rehearsal import Rehearsal, wait_until

HERE = Path(__file__).parent
ROUNDS = int(os.environ.get("COMPOSER_KILL_ROUNDS", "1"))
SEED = int(os.environ.get("COMPOSER_KILL_SEED", "1"))
VICTIMS = {
    "viewer": "cloud_viewer.py",
    "helper": "composer_tui.cloud.bridge",
    "launch": "composer_tui.cloud.launch_child",
    "control plane": "composer_tui.rehearsal",
}
_STOPPED = 5


class Scene:
    """One machine's runs and everything that works for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = RunStore(root / "runs")
        self.environ = {**os.environ, "XDG_STATE_HOME": str(root / "state")}

    def view(self, *wishes: str) -> "subprocess.Popen[bytes]":
        """Somebody looks."""
        return subprocess.Popen(
            [sys.executable, str(HERE / "cloud_viewer.py"), str(self.store.root), *wishes],
            env=self.environ,
            stderr=(self.root / "viewers.log").open("ab"),
        )

    def look_to_the_end(self, *wishes: str) -> None:
        """Somebody looks, undisturbed, until everything is over."""
        viewer = self.view(*wishes)
        assert viewer.wait(90) == 0, (self.root / "viewers.log").read_text()[-2000:]

    def find(self, victim: str) -> list[psutil.Process]:
        """The processes of that kind that belong to this scene."""
        return [
            one for one in processes_of(self.root) if VICTIMS[victim] in " ".join(words_of(one))
        ]

    def talk(self, **plan: object) -> RunFolder:
        """A run that is under way on a control plane of its own, and that nobody follows."""
        folder = self.store.create(small_config(), "rehearsal", time.time())
        connection = connection_file(folder.run_id)
        start_rehearsal(folder, connection)
        plane = Rehearsal(folder.path / "rehearsal", _connection(connection))
        said = plane.script(CLOUD / "talker.py", folder.run_id, json.dumps(plan))
        ref = CloudRef(app_name=app_name(folder.run_id), connection=str(connection))
        ids = json.loads(said)
        write_ref(folder, msgspec.structs.replace(ref, launched_at=time.time(), **ids))
        return folder


def _connection(path: Path) -> Connection:
    found = process.find(path)
    assert found is not None
    return found


def words_of(one: psutil.Process) -> list[str]:
    try:
        return one.cmdline()
    except psutil.Error:
        return []


def processes_of(root: Path) -> list[psutil.Process]:
    """Every process whose command line names something below ``root``."""
    return [one for one in psutil.process_iter() if any(str(root) in w for w in words_of(one))]


def apps_of(folder: RunFolder) -> list[dict[str, object]]:
    """The apps that its control plane has ever had, as they are on disk."""
    files = (folder.path / "rehearsal" / "apps").glob("*/app.json")
    return [json.loads(file.read_bytes()) for file in files]


def events_in(path: Path) -> list[Event]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = [decode(line) for line in lines]
    return [event for event in found if not isinstance(event, Unrecognized)]


def kill_some(scene: Scene, dice: random.Random, victims: list[str], kills: int) -> list[str]:
    """What was killed, in order. A viewer that is gone is replaced by another."""
    killed = []
    viewer = scene.view(*(["launch"] if "launch" in victims else []))
    for _ in range(kills):
        time.sleep(dice.uniform(0.0, 3.0))
        victim = dice.choice(victims)
        for one in scene.find(victim)[:1]:
            kill(one)
            killed.append(victim)
        if viewer.poll() is not None:
            viewer = scene.view()
    if viewer.poll() is None:
        viewer.send_signal(signal.SIGKILL)
    viewer.wait()
    return killed


def kill(one: psutil.Process) -> None:
    try:
        one.kill()
    except psutil.NoSuchProcess:
        return


def check(scene: Scene, played: str) -> None:
    """The laws, for every run of the scene."""
    known = {folder.run_id: ref for folder, ref in cloud_runs(scene.store)}
    for folder in scene.store.folders():
        ref = known[folder.run_id]
        apps = apps_of(folder)
        unknown = [app for app in apps if app["description"] != ref.app_name]
        assert not unknown, f"{played}: apps that the ledger does not know: {unknown}"
        assert ref.ended, played
        alive = [app for app in apps if app["state"] != _STOPPED]
        plane = process.find(Path(ref.connection))
        assert not alive or plane is None, f"{played}: called stopped, and live: {alive}"
        containers = [
            words_of(one)
            for one in processes_of(folder.path)
            if "modal._container_entrypoint" in " ".join(words_of(one))
        ]
        assert not containers, f"{played}: {containers}"
        events = events_in(folder.events_path)
        assert violations(events) == [], played
        volume = folder.path / "rehearsal" / "volumes" / "composer-runs" / folder.run_id
        check_steps(events, events_in(volume / "events.jsonl"), played)


def check_steps(here: list[Event], there: list[Event], played: str) -> None:
    """Each step that the container has committed is here once."""
    counts = Counter(e.time for e in here if isinstance(e, StepCompleted))
    assert all(n == 1 for n in counts.values()), f"{played}: doubled"
    missing = [e.step for e in there if isinstance(e, StepCompleted) and e.time not in counts]
    assert not missing, f"{played}: lost {missing}"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Scene(tmp_path)


def end_planes(scene: Scene) -> None:
    for _, ref in cloud_runs(scene.store):
        process.stop(Path(ref.connection))
    wait_until(lambda: not processes_of(scene.root), "everything of the scene is gone")


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_kills_while_a_run_is_launched(scene: Scene, turn: int) -> None:
    dice = random.Random(f"{SEED} launch {turn}")
    played = f"seed {SEED}, launch, turn {turn}"
    killed = kill_some(scene, dice, [*VICTIMS], dice.randint(1, 3))
    scene.look_to_the_end("stop")
    check(scene, f"{played}: killed {killed}")
    end_planes(scene)


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_kills_while_a_run_is_followed(scene: Scene, turn: int) -> None:
    dice = random.Random(f"{SEED} follow {turn}")
    victims = ["viewer", "helper", "viewer", "helper", "control plane"]
    scene.talk(steps=dice.randint(50, 400), pause=0.01, commit_at=dice.randint(1, 50))
    killed = kill_some(scene, dice, victims, dice.randint(1, 4))
    scene.look_to_the_end()
    check(scene, f"seed {SEED}, follow, turn {turn}: killed {killed}")
    end_planes(scene)
