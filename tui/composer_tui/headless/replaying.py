"""`replay` without the app: a recorded run's events at the pace at which they came, or faster."""

import math
import tempfile
import time
from pathlib import Path

from composer_tui.headless.watch import tell_to_end
from composer_tui.runners.replay import ReplayRunner
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore


def replay_run(source: RunFolder, speed: float, *, as_json: bool) -> int:
    """The recorded run's exit status, once its last event has been told."""
    with tempfile.TemporaryDirectory(prefix="composer-replay-") as root:
        run = ReplayRunner(RunStore(Path(root)), source, speed).start()

        def wait(seconds: float) -> None:
            if math.isfinite(speed):
                time.sleep(seconds)
            run.pump(time.time())

        heading = f"replay of {source.run_id} at {speed:g}x"
        return tell_to_end(run, as_json=as_json, heading=heading, wait=wait)
