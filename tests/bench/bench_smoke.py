"""The smoke run, as a newcomer meets it: seconds from the start of the engine to its end."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from composer_engine.protocol import StepCompleted, decode
from tests.bench.harness import report

PRESET = Path("engine/composer_engine/presets/smoke.toml")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "composer_engine", "--config", PRESET, "--run-dir", folder],
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.monotonic() - began
    events = [decode(line) for line in done.stdout.splitlines()]
    steps = [event for event in events if isinstance(event, StepCompleted)]
    report(
        bench="smoke",
        steps=len(steps),
        run_seconds=round(seconds, 1),
        first_to_last_step_seconds=round(steps[-1].time - steps[0].time, 1),
        target_steps_seconds=30,
    )


if __name__ == "__main__":
    main()
