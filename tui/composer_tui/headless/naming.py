"""What a person calls a run or an app, as Modal knows it: the one rule for all commands."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from composer_tui.cloud.accounts import OWN, account_environ
from composer_tui.cloud.ledger import CloudRef, cloud_runs, known_ref
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.wire import Problem
from composer_tui.rehearsal import process
from composer_tui.runs.folder import DamagedFolder, RunFolder
from composer_tui.runs.store import AmbiguousRun, RunNotFound, RunStore

_MODAL_ID = re.compile(r"(ap|ta)-[A-Za-z0-9]{22}")


class Named(NamedTuple):
    """``which`` is what Modal is to be asked for: an id, or the name as it was given.

    ``folder`` and ``ref`` are of this machine's run that was meant, where there is one.
    """

    which: str
    folder: RunFolder | None = None
    ref: CloudRef = CloudRef(app_name="")


def named(store: RunStore, text: str) -> Named:
    """An id of Modal's; else a run of this machine (its id, the only one that begins so, "last").

    Everything else is for Modal to know. Raises `CloudProblem` for a run that has no app there.
    """
    if _MODAL_ID.fullmatch(text):
        known = ((folder, ref) for folder, ref in cloud_runs(store) if ref.app_id == text)
        return Named(text, *next(known, ()))
    try:
        folder = store.find(text)
    except AmbiguousRun as several:
        raise CloudProblem(problem("refused", str(several), "say more of its id")) from None
    except RunNotFound:
        return Named(text)
    try:
        ref = known_ref(folder)
    except DamagedFolder as damage:
        raise CloudProblem(_not_on_modal(folder, str(damage))) from None
    if not ref.app_id and not ref.rebuilt:
        message = f"{folder.run_id} has no app on Modal yet, or its launch failed"
        raise CloudProblem(problem("refused", message, f"composer-tui show {folder.run_id}"))
    return Named(ref.app_id or ref.app_name, folder, ref)


def in_its_account(store: RunStore, text: str) -> Named:
    """The same; from here on this process talks to the account and environment that it is in.

    Raises `CloudProblem`, also for a rehearsal that has ended.
    """
    found = named(store, text)
    if found.ref.connection != OWN:
        if process.find(Path(found.ref.connection)) is None:
            run_id = found.folder.run_id if found.folder is not None else text
            message = f"the rehearsal of {run_id} has ended, and its containers with it"
            raise CloudProblem(problem("refused", message, f"composer-tui watch {run_id}"))
        os.environ.update(account_environ(found.ref.connection))
    elif found.ref.environment:
        os.environ["MODAL_ENVIRONMENT"] = found.ref.environment
    return found


def _not_on_modal(folder: RunFolder, damage: str) -> Problem:
    if folder.cloud_path.exists():
        return problem("refused", f"{folder.run_id}: {damage}", "composer-tui apps shows its app")
    message = f"{folder.run_id} runs on this machine, or did: it has no app on Modal"
    return problem("refused", message, f"composer-tui watch {folder.run_id}")
