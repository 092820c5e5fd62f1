"""Sees a run through, as a program of its own: the run's folder, and "launch" to launch it.

A machine that is busy with tests alone need not be waited for as long as Modal.
"""

import sys
from pathlib import Path

from composer_tui.cloud import follow, log_stream, tend
from composer_tui.runs.folder import RunFolder

tend.AGAIN_SECONDS = 0.2
tend.FIND_SECONDS = 1.0
tend.PLANE_SECONDS = 0.2
follow.TICK_SECONDS = 0.03
follow.POLL_SECONDS = 0.2
log_stream.FIRST_WAIT_SECONDS = 0.02
log_stream.MOST_WAIT_SECONDS = 0.1
tend.tend(
    RunFolder(Path(sys.argv[1])), launch=sys.argv[2:] == ["launch"], should_stop=lambda: False
)
