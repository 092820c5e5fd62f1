"""An engine by contract that fails as told: the name of its run says how."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run_id = sys.argv[sys.argv.index("--run-id") + 1]
fault = run_id.split("-")[0]
seq = 0
asked: list[int] = []
children: list[subprocess.Popen[bytes]] = []


def emit(**event: object) -> None:
    global seq  # noqa: PLW0603  # a script of one run, with one count
    line = json.dumps({"event": event.pop("event"), "seq": seq, "time": time.time(), **event})
    with (folder / "events.jsonl").open("a") as file:
        file.write(line + "\n")
    seq += 1


def on_signal(number: int, _frame: object) -> None:
    asked.append(number)
    if len(asked) > 1:
        emit(event="run_failed", kind="killed", message="a second signal")
        os._exit(1)


def follow_heartbeat(end: int) -> None:
    os.read(end, 1)
    asked.append(0)


def child(code: str, *, own_session: bool = False) -> None:
    argv = [sys.executable, "-c", f"import os, signal, time\n{code}\ntime.sleep(600)"]
    children.append(subprocess.Popen(argv, start_new_session=own_session))


def say_who() -> None:
    who = {"pid": os.getpid(), "start_time": psutil.Process().create_time(), "pgid": os.getpgid(0)}
    (folder / ".process").write_text(json.dumps(who))
    (folder / ".process").replace(folder / "process.json")


def main() -> None:
    if fault == "speechless":
        sys.exit("cannot even begin")
    say_who()
    if heartbeat := os.environ.get("COMPOSER_HEARTBEAT_FD"):
        threading.Thread(target=follow_heartbeat, args=(int(heartbeat),), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    if fault in {"stubborn", "lingers"}:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child("signal.signal(signal.SIGINT, 1); signal.signal(signal.SIGTERM, 1)")
    if fault == "leaver":
        child("pass", own_session=True)
        child("if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)")
        children[-1].wait()
    emit(
        event="run_started",
        run_id=run_id,
        total_steps=1000,
        model="m",
        parameters=1,
        device={"kind": "cpu", "name": "c", "count": 1, "total_bytes": 1},
        engine_version="0",
        config_hash="0",
    )
    step = 0
    while not asked and not (folder / "stop").exists():
        step += 1
        emit(event="step_completed", step=step, loss=1.0, channels={})
        if step == 2 and fault == "exits":
            print("Traceback (most recent call last):\n\x1b[31mBoom: no", file=sys.stderr)
            sys.exit(7)
        if step == 2 and fault == "segfaults":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        if step == 2 and fault == "torn":
            with (folder / "events.jsonl").open("a") as file:
                file.write('{"event":"step_completed","seq":3,"ti')
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and fault == "finishes":
            emit(event="run_finished", steps=step)
            return
        time.sleep(0.02)
    if fault == "slow":
        time.sleep(0.5)
    if fault != "forgets":
        emit(event="checkpoint_saved", step=step, path="checkpoints/last", bytes=1)
    emit(event="run_finished", steps=step, stopped_early=True, reason="asked")
    if fault == "lingers":
        time.sleep(600)


main()
