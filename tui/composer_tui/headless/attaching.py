"""`attach`: a folder here for a run that another machine launched."""

import sys

from composer_tui.cloud.attach_app import attach_app
from composer_tui.headless.naming import named
from composer_tui.headless.troubles import asking_modal
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore


def attach_run(
    store: RunStore, text: str, *, environment: str, volume: str, quietly: bool
) -> RunFolder:
    """Its folder, found here or made. Raises `CloudProblem`."""
    here = named(store, text).folder
    if here is None:
        with asking_modal(quietly=quietly):
            attached = attach_app(store, text, environment=environment, volume=volume)
        if not attached.existed:
            return attached.folder
        here = attached.folder
    print(f"composer-tui: {here.run_id} is known here already", file=sys.stderr)
    return here
