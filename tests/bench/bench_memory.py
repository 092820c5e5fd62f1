"""The app on a run of a million steps with sixteen metrics: time to load it, and memory."""

import tempfile
import time
from pathlib import Path

import psutil

from tests.bench.harness import make_run, monitor, report

STEPS = 1_000_000


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        make_run(Path(root), STEPS, finished=True)
        with monitor(root) as running:
            began = time.monotonic()
            process = psutil.Process(running.process.pid)
            shown = ""
            while time.monotonic() - began < 120:
                running.drain(0.5)
                shown = "\n".join(running.screen())
                running.chunks[:-1] = running.chunks[-400:-1]
                if f"{STEPS}/{STEPS}" in shown.replace(",", ""):
                    break
            loaded = time.monotonic() - began
            running.drain(2.0)
            report(
                bench="memory",
                steps=STEPS,
                all_steps_shown=f"{STEPS}/{STEPS}" in shown.replace(",", ""),
                load_seconds=round(loaded, 1),
                resident_mb=round(process.memory_info().rss / 1e6, 1),
                target_resident_mb=150,
            )


if __name__ == "__main__":
    main()
