"""Every command, as a shell calls it, over one real run."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from composer_engine.config import load
from composer_engine.protocol import (
    Event,
    RunFailed,
    RunFinished,
    StepCompleted,
    Unrecognized,
    decode,
    violations,
)
from composer_tui.presets import Presets
from tests.headless.conftest import SmokeRun, call, command_line

STEPS = 150


def events_of(output: bytes) -> list[Event]:
    read = [decode(line) for line in output.splitlines()]
    events = [event for event in read if not isinstance(event, Unrecognized)]
    assert len(events) == len(read)
    return events


def test_run_with_json_prints_a_lawful_stream_and_nothing_else(smoke: SmokeRun) -> None:
    events = events_of(smoke.done.stdout)
    assert smoke.done.returncode == 0
    assert violations(events) == []
    assert isinstance(events[-1], RunFinished)


def test_the_reward_of_the_smoke_run_rises(smoke: SmokeRun) -> None:
    steps = [e for e in events_of(smoke.done.stdout) if isinstance(e, StepCompleted)]
    rewards = [step.reward_mean or 0.0 for step in steps]
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert sum(rewards[-10:]) > sum(rewards[:10])


def test_watching_a_finished_run_prints_the_same_stream(smoke: SmokeRun) -> None:
    watched = call("watch", "last", "--json", runs=smoke.runs)
    assert watched.stdout == smoke.done.stdout
    assert watched.returncode == 0


def test_watch_once_says_where_a_run_stands(smoke: SmokeRun) -> None:
    facts = json.loads(call("watch", "smoke", "--once", "--json", runs=smoke.runs).stdout)
    assert (facts["life"], facts["step"], facts["missing_events"]) == ("finished", STEPS, 0)
    words = call("watch", "smoke", "--once", runs=smoke.runs).stdout.decode()
    assert ": finished\n" in words
    assert f"step {STEPS}/{STEPS}" in words


def test_a_run_is_listed_and_shown_for_people_and_for_programs(smoke: SmokeRun) -> None:
    listed = json.loads(call("runs", "--json", runs=smoke.runs).stdout)
    assert [(run["life"], run["steps"]) for run in listed] == [("finished", STEPS)]
    run_id = listed[0]["run_id"]
    assert run_id in call("runs", runs=smoke.runs).stdout.decode()
    facts = json.loads(call("show", run_id, "--json", runs=smoke.runs).stdout)
    assert facts["config"]["optimizer"]["steps"] == STEPS
    assert "reward" in call("show", run_id[:8], runs=smoke.runs).stdout.decode()


def test_csv_jsonl_and_parquet_hold_the_same_steps(smoke: SmokeRun, tmp_path: Path) -> None:
    text = call("export", "last", "--format", "csv", runs=smoke.runs).stdout.decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    lines = call("export", "last", "--format", "jsonl", runs=smoke.runs).stdout.splitlines()
    objects = [json.loads(line) for line in lines]
    file = tmp_path / "steps.parquet"
    assert call("export", "last", "--format", "parquet", "-o", str(file), runs=smoke.runs)
    table = pq.read_table(file).to_pylist()
    assert len(rows) == len(objects) == len(table) == STEPS
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in objects]
    assert [row["loss"] for row in table] == [row["loss"] for row in objects]
    assert [path.name for path in tmp_path.iterdir()] == ["steps.parquet"]


def test_a_replay_at_once_prints_every_recorded_event(smoke: SmokeRun) -> None:
    replayed = call("replay", "last", "--speed", "inf", "--json", runs=smoke.runs)
    events = events_of(replayed.stdout)
    recorded = events_of(smoke.done.stdout)
    assert violations(events) == []
    assert [e for e in events if isinstance(e, StepCompleted)]
    assert len(events) == len(recorded)


def test_replaying_leaves_no_run_behind(smoke: SmokeRun) -> None:
    call("replay", "last", "--speed", "inf", runs=smoke.runs)
    assert len(json.loads(call("runs", "--json", runs=smoke.runs).stdout)) == 1


@pytest.mark.parametrize(
    "arguments", [["runs"], ["show", "last"], ["export", "last", "-o", "-"], ["--help"]]
)
def test_a_reader_that_has_enough_is_no_failure(
    arguments: list[str], smoke: SmokeRun, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        done = subprocess.run(
            command_line("--runs-dir", str(smoke.runs), *arguments),
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            check=False,
            cwd=tmp_path,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not any(tmp_path.iterdir())


def test_the_runs_folder_can_be_named_after_the_command(smoke: SmokeRun, tmp_path: Path) -> None:
    done = call("runs", "--json", "--runs-dir", str(smoke.runs), runs=tmp_path)
    assert len(json.loads(done.stdout)) == 1


def test_stopping_what_is_over_says_so_and_succeeds(smoke: SmokeRun) -> None:
    stopped = call("stop", "last", "--json", runs=smoke.runs)
    assert stopped.returncode == 0
    assert json.loads(stopped.stdout)["how"] == "was already over"


def test_the_doctor_finds_this_machine_fit_and_never_names_a_token(tmp_path: Path) -> None:
    hidden = "as-0123456789"
    environment = {"MODAL_TOKEN_ID": "ak-0123456789", "MODAL_TOKEN_SECRET": hidden}
    done = call("doctor", "--json", runs=tmp_path, **environment)
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 0
    assert {f["name"] for f in findings} >= {"python", "packages", "engine", "runs folder", "disk"}
    assert all(finding["fix"] for finding in findings if finding["status"] != "ok")
    assert hidden.encode() not in done.stdout


def test_the_doctor_names_what_mends_a_runs_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = call("doctor", runs=file / "runs")
    assert done.returncode == 1
    assert "COMPOSER_RUNS_DIR" in done.stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "say what to run"),
        (["run", "nope"], "there is no preset 'nope'"),
        (["run", "smoke", "--set", "optimizer.steps=-1"], "a whole number >= 1"),
        (["run", "smoke", "--set", "zzz"], "has no '='"),
        (["run", "--config", "/no/such.toml"], "/no/such.toml"),
        (["run", "smoke", "--target", "moon"], "'moon' is not"),
        (["run", "smoke", "--target", "modal"], "has no Modal token (try: modal token new"),
        (["run", "smoke", "--target", "rehearsal", "--chaos", "fire=1"], "'fire=1' is not one of"),
        (["run", "smoke", "--chaos", "slow=1"], "--chaos is for --target rehearsal"),
        (["run", "smoke", "--target", "rehearsal", "--set", "modal.gpu=H900"], "H900"),
        (["run", "smoke", "--target", "rehearsal", "--set", "modal.gpu=L4:99"], "1 to 8 of L4"),
        (["watch", "nope"], "there are no runs in"),
        (["stop", "last"], "there are no runs in"),
        (["export", "last", "--format", "xml"], "'xml' is not one of"),
        (["replay", "last", "--speed", "0"], "range"),
        (["run", "smoke", "--detach", "--set", "local.on_disconnect=stop"], "--detach leaves"),
        (["replay", "last", "--speed", "nan"], "is not a number"),
        (["stop", "last", "--grace", "nan"], "is not a number"),
        (["fly"], "No such command 'fly'"),
        (["--fly"], "No such option"),
        ([], "the app needs a terminal"),
        (["monitor", "last"], "there are no runs in"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_status_2(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    done = call(*arguments, runs=tmp_path / "runs")
    said = done.stderr.decode()
    assert done.returncode == 2
    assert said.startswith("composer-tui: ")
    assert words in said
    assert said.count("\n") == 1
    assert done.stdout == b""


def test_a_folder_with_a_hostile_name_is_listed_and_commands_nothing(tmp_path: Path) -> None:
    (tmp_path / "a\x1b]0;owned\x07b").mkdir()
    listed = call("runs", runs=tmp_path).stdout
    assert b"ab" in listed
    assert b"\x1b" not in listed


@pytest.mark.parametrize("command", [["show"], ["watch", "--once"], ["replay", "--json"]])
def test_a_damaged_record_gets_one_clear_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "run-x").mkdir()
    (tmp_path / "run-x" / "run.json").write_text("{")
    done = call(*command, "run-x", runs=tmp_path)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("composer-tui: this run's folder is damaged: run.json")


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "events.jsonl").mkdir()
    listed = json.loads(call("runs", "--json", runs=tmp_path).stdout)
    assert {run["run_id"] for run in listed} == {"bad", "good"}


def test_what_cannot_run_as_asked_has_status_2(tmp_path: Path) -> None:
    settings = ("--set", "data.path=/no/such.jsonl", "--set", "model.path=/no/model")
    done = call("run", "smoke", *settings, runs=tmp_path / "runs")
    assert done.returncode == 2
    data, model = done.stderr.decode().splitlines()
    assert data.startswith("composer-tui: data.path: cannot read /no/such.jsonl")
    assert model.startswith("composer-tui: model.path: /no/model is not a folder")
    assert not (tmp_path / "runs").exists()


def test_an_export_that_cannot_be_written_gets_one_clear_line(
    smoke: SmokeRun, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    done = call("export", "last", "-o", str(file / "x.csv"), runs=smoke.runs)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_a_dry_run_prints_a_configuration_that_runs_the_same_and_launches_nothing(
    tmp_path: Path,
) -> None:
    settings = ["--set", "loss.sdpo_weight=0.25", "--set", "name=mine"]
    done = call("run", "smoke", *settings, "--dry-run", runs=tmp_path / "runs")
    file = tmp_path / "mine.toml"
    file.write_bytes(done.stdout)
    wanted = load("smoke", settings=["loss.sdpo_weight=0.25", "name=mine"])
    assert load(file=file) == wanted
    assert not (tmp_path / "runs").exists()


def test_a_preset_that_was_saved_in_the_app_runs_by_its_name(tmp_path: Path) -> None:
    presets = Presets(tmp_path / "composer-tui" / "presets")
    presets.save("mine", load("smoke", settings=["optimizer.seed=41"]))
    done = call("run", "mine", "--dry-run", runs=tmp_path, XDG_CONFIG_HOME=str(tmp_path))
    assert "seed = 41" in done.stdout.decode()


def test_ctrl_c_saves_a_checkpoint_and_ends_the_run_early(tmp_path: Path) -> None:
    follower = subprocess.Popen(
        command_line(
            "--runs-dir", str(tmp_path), "run", "smoke", "--json", "--set", "optimizer.steps=100000"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what is read ahead here would be missing from communicate()
        start_new_session=True,
    )
    assert follower.stdout is not None
    lines = []
    for line in follower.stdout:
        lines.append(line)
        if b"step_completed" in line:
            break
    follower.send_signal(signal.SIGINT)
    rest, said = follower.communicate(timeout=60)
    events = events_of(b"".join(lines) + rest)
    assert violations(events) == []
    assert isinstance(events[-1], RunFinished)
    assert events[-1].stopped_early
    assert follower.returncode == 0
    assert b"Ctrl-C again stops at once" in said
    stopped = events[-1].steps
    assert any(tmp_path.glob("*/checkpoints/*"))
    wanted = ["--set", f"optimizer.steps={stopped + 2}"]
    resumed = call("resume", "last", "--json", *wanted, runs=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    (path,) = tmp_path.glob("*/events.jsonl")
    assert path.read_bytes() == b"".join(lines) + rest + resumed.stdout
    more = events_of(resumed.stdout)
    assert violations([*events, *more]) == []
    assert [e.step for e in more if isinstance(e, StepCompleted)] == [stopped + 1, stopped + 2]
    again = call("resume", "last", runs=tmp_path)
    assert again.returncode == 2
    assert again.stderr.count(b"\n") == 1
    assert b"finished already" in again.stderr


def test_a_detached_run_goes_on_without_us_and_a_killed_one_ends_failed(tmp_path: Path) -> None:
    arguments = ["run", "smoke", "--detach", "--set", "optimizer.steps=100000"]
    run_id = call(*arguments, runs=tmp_path).stdout.decode().strip()
    follower = subprocess.Popen(
        command_line("--runs-dir", str(tmp_path), "watch", run_id, "--json"),
        stdout=subprocess.PIPE,
        bufsize=0,  # what is read ahead here would be missing from communicate()
    )
    assert follower.stdout is not None
    lines = []
    for line in follower.stdout:
        lines.append(line)
        if b"step_completed" in line:
            break
    engine = json.loads((tmp_path / run_id / "process.json").read_bytes())
    os.kill(engine["pid"], signal.SIGKILL)
    rest, _ = follower.communicate(timeout=30)
    events = events_of(b"".join(lines) + rest)
    assert violations(events) == []
    assert isinstance(events[-1], RunFailed)
    assert events[-1].kind == "killed"
    assert follower.returncode == 1


def test_an_export_follows_links_and_feeds_pipes_instead_of_replacing_them(
    smoke: SmokeRun, tmp_path: Path
) -> None:
    real, link, pipe = (tmp_path / name for name in ("real.csv", "link.csv", "pipe"))
    real.write_text("old")
    link.symlink_to(real)
    assert call("export", "last", "-o", str(link), runs=smoke.runs).returncode == 0
    assert link.is_symlink()
    assert real.read_text().startswith("step,")
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert call("export", "last", "-o", str(pipe), runs=smoke.runs).returncode == 0
    assert reader.communicate(timeout=30)[0] == real.read_bytes()


def test_looking_at_folders_that_are_no_runs_writes_nothing_into_them(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").touch()
    os.utime(tmp_path / "src", (0, 0))
    call("runs", runs=tmp_path)
    assert [path.name for path in (tmp_path / "src").iterdir()] == ["a.py"]


def test_pipes_loops_and_names_that_are_not_utf_8_do_not_hide_the_runs(tmp_path: Path) -> None:
    for name in ("x", "y", os.fsdecode(b"bad\xff")):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "x" / "events.jsonl")
    os.mkfifo(tmp_path / "y" / "run.json")
    (tmp_path / "loop").symlink_to("loop")
    listed = json.loads(call("runs", "--json", runs=tmp_path).stdout)
    assert {run["run_id"] for run in listed} == {"x", "y", "bad\ufffd"}


def test_a_run_of_another_version_is_still_shown(smoke: SmokeRun, tmp_path: Path) -> None:
    shutil.copytree(smoke.runs, tmp_path / "runs")
    (record,) = (tmp_path / "runs").glob("*/run.json")
    tree = json.loads(record.read_bytes())
    tree["config"]["loss"] |= {"new_weight": 1.0, "jsd_beta": "half"}
    tree["config"]["new_section"] = {"x": 1}
    tree["new"] = True
    record.write_text(json.dumps(tree))
    shown = json.loads(call("show", "last", "--json", runs=tmp_path / "runs").stdout)
    assert shown["life"] == "finished"
    assert shown["config"]["optimizer"]["steps"] == STEPS


def test_what_is_no_event_is_left_out_of_the_json_stream(smoke: SmokeRun, tmp_path: Path) -> None:
    shutil.copytree(smoke.runs, tmp_path / "runs")
    (events,) = (tmp_path / "runs").glob("*/events.jsonl")
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(
        b"".join([*lines[:20], b"\xff\x00garbage\n", b'{"event":"st\n', *lines[20:]])
    )
    watched = call("watch", "last", "--json", runs=tmp_path / "runs")
    assert watched.stdout == smoke.done.stdout
    assert b"left out 2 lines" in watched.stderr
