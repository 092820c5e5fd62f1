"""A program that shows runs, without the screen: it launches, follows and stops as the app does.

    python cloud_viewer.py RUNS [launch] [stop]

"launch" begins a run first; "stop" ends every run that it finds. Returns when all are over.
"""

import sys
import time
from pathlib import Path

from composer_engine.config import load
from composer_tui.cloud.accounts import Accounts
from composer_tui.runners.attach import attach
from composer_tui.runners.cloud import CloudRunner
from composer_tui.runners.local import LocalRunner
from composer_tui.runs.store import RunStore

_SETTINGS = ("optimizer.steps=3", "optimizer.warmup_steps=0", "modal.gpu=", "modal.secrets=")


def main(root: Path, wishes: list[str]) -> None:
    store = RunStore(root)
    accounts = Accounts(store)
    if "launch" in wishes:
        CloudRunner(store, "rehearsal", accounts).start(load("smoke", settings=_SETTINGS))
    handles = [attach(LocalRunner(store), folder, accounts) for folder in store.folders()]
    if "stop" in wishes:
        for handle in handles:
            handle.stop("now")
    while handles:
        handles = [handle for handle in handles if not handle.settle()]
        time.sleep(0.05)
    accounts.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
