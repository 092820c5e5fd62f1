"""`attach`: a folder here for a run that another machine launched."""

import sys

from composer_tui.cloud.attach_app import attach_app
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore


def attach_run(store: RunStore, which: str, *, environment: str, volume: str) -> RunFolder:
    """Its folder, made or found. Raises `CloudProblem`."""
    attached = attach_app(store, which, environment=environment, volume=volume)
    if attached.existed:
        print(f"composer-tui: {attached.folder.run_id} is known here already", file=sys.stderr)
    return attached.folder
