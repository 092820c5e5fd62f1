"""Launches a run as a program of its own: root, python, the run's name, keep or stop."""

import sys
import time
from pathlib import Path

from composer_engine.config import LocalConfig, RunConfig
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.store import RunStore

root, python, name, on_disconnect = sys.argv[1:5]
local = LocalConfig(on_disconnect="stop" if on_disconnect == "stop" else "keep")
runner = LocalRunner(RunStore(Path(root)), python=python)
print(runner.start(RunConfig(name=name, local=local)).folder.path, flush=True)
time.sleep(600)
