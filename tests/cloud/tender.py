"""Sees a run through, as a program of its own: the run's folder, and "launch" to launch it."""

import sys
from pathlib import Path

from composer_tui.cloud.tend import tend
from composer_tui.runs.folder import RunFolder

tend(RunFolder(Path(sys.argv[1])), launch=sys.argv[2:] == ["launch"], should_stop=lambda: False)
