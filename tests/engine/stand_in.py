"""An engine by contract that ends as told: the name of its run says how. Imports nothing heavy."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from composer_engine.contract import OPENING_VARIABLE, PREEMPTED
from composer_engine.emitter import Emitter, take_stdout
from composer_engine.protocol import (
    Channels,
    CheckpointSaved,
    Device,
    Logged,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
)
from composer_engine.safety import StopRequest

folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run_id = sys.argv[sys.argv.index("--run-id") + 1]
fault = run_id.split("-")[0]


def start(emitter: Emitter) -> None:
    emitter.emit(
        RunStarted(
            run_id=run_id,
            attempt=emitter.attempt,
            total_steps=1000,
            model="m",
            parameters=1,
            device=Device(kind="cpu", name="a stand-in", count=1, total_bytes=1),
            engine_version="0",
            config_hash="0",
        )
    )


def save(emitter: Emitter, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"step-{step}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "weights").write_text(str(step))
    emitter.emit(CheckpointSaved(step=step, path=f"checkpoints/step-{step}", bytes=1))


def main() -> int:
    stdout = take_stdout()
    if fault == "leaver":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", run_id])
    if fault == "speechless":
        sys.exit("Traceback: cannot even begin")
    if fault == "hangs":  # in a call that no signal handler of Python interrupts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with Emitter(stdout, folder) as emitter:
        stop = StopRequest(emitter, folder)
        stop.listen()
        if opening := os.environ.get(OPENING_VARIABLE):
            emitter.emit(Logged(level="warning", message=opening))
        if fault == "mistaken":
            emitter.emit(RunFailed(kind="config", message="no such model"))
            return 2
        if fault == "slow":
            wait_for(stop)
        start(emitter)
        step = 0
        while not stop.reason():
            step += 1
            emitter.emit(StepCompleted(step=step, loss=1.0, channels=Channels()))
            if notice := stop.notice():
                emitter.emit(Logged(level="warning", message=notice))
            if step == 2:
                save(emitter, step)
                act(emitter, stdout)
            if step == 3 and fault in {"finishes", "leaver"}:
                emitter.emit(RunFinished(steps=step))
                return 0
            if fault == "stalls" and step == 4:
                wait_for(stop)
            time.sleep(0.02)
        save(emitter, step)
        end(emitter, stop, step)
    return 0 if isinstance(emitter.last, RunFinished) else 1


def wait_for(stop: StopRequest) -> None:
    """No step, but it still looks whether it should stop."""
    while not stop.reason():
        time.sleep(0.02)


def act(emitter: Emitter, stdout: int) -> None:
    """What goes wrong at step 2."""
    match fault:
        case "crashes":
            raise ZeroDivisionError("division by zero")
        case "torn":
            os.write(stdout, b'{"event":"step_completed","seq":4,"ti')
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exits":
            sys.stderr.write("boom\n")
            sys.stderr.flush()
            os._exit(7)
        case "hangs":
            while True:
                time.sleep(1)
        case "starves":
            emitter.emit(RunFailed(kind="oom", message="out of memory"))
            sys.exit(1)
        case _:
            pass


def end(emitter: Emitter, stop: StopRequest, step: int) -> None:
    if stop.reason() == PREEMPTED:
        emitter.emit(RunFailed(kind="preempted", message=PREEMPTED))
    else:
        emitter.emit(
            RunFinished(
                steps=step, stopped_early=True, reason=stop.reason(), ended_by=stop.ended_by
            )
        )


if __name__ == "__main__":
    sys.exit(main())
